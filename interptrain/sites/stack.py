"""The one stack of blocks in a model, whatever it is wrapped in."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from interptrain.sites.families import FAMILIES, Family


@dataclass(frozen=True, eq=False)
class Stack:
    """A transformer's blocks and where they stand in the model around them.

    Args:
        family: whose names the modules bear.
        name: of the `ModuleList`, as `model.named_modules()` gives it.
        blocks: the list.
        around: the modules that hold it, by name, innermost first.
    """

    family: Family
    name: str
    blocks: nn.ModuleList
    around: dict[str, nn.Module]


def find_stack(model: nn.Module) -> Stack:
    """The one stack of blocks of a known family in a module that holds a transformer.

    Raises:
        ValueError: there is none, or more than one; the message says what was found.

    Example:
        >>> from torch import nn
        >>> find_stack(nn.Linear(4, 4))
        Traceback (most recent call last):
        ValueError: found no blocks of a known family (Llama-like, GPT-2) in Linear: it holds no list of blocks...
    """
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    found = [
        Stack(family, name, blocks, _around(model, name))
        for name, blocks in lists
        for family in FAMILIES
        if all(family.mismatch(block) is None for block in blocks)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(f"'{stack.name}' ({stack.family.title}, {len(stack.blocks)} blocks)" for stack in found)
        raise ValueError(
            f"expected one stack of blocks in {type(model).__name__}, found {len(found)}: {names}; "
            "pass the part of the model that holds the one to train"
        )
    titles = ", ".join(family.title for family in FAMILIES)
    seen = "; ".join(_why_not(name, blocks) for name, blocks in lists) or "it holds no list of blocks"
    raise ValueError(
        f"found no blocks of a known family ({titles}) in {type(model).__name__}: {seen}. "
        "Post-norm, fused, parallel and mixture-of-experts blocks are not understood yet"
    )


def _why_not(name: str, blocks: nn.ModuleList) -> str:
    """The first block that keeps a list from being a stack, where a family comes near."""
    for family in FAMILIES:
        if family.attention.module not in dict(blocks[0].named_children()):
            continue
        for layer, block in enumerate(blocks):
            if reason := family.mismatch(block):
                return f"'{name}.{layer}' ({type(block).__name__}) is not {family.title}: it {reason}"
    return f"'{name}' is a list of {type(blocks[0]).__name__}"


def _around(model: nn.Module, name: str) -> dict[str, nn.Module]:
    parts = name.split(".")[:-1] if name else []
    holders = (".".join(parts[:depth]) for depth in range(len(parts), -1, -1))
    return {holder: model.get_submodule(holder) for holder in holders}
