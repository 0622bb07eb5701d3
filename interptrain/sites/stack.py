"""The one stack of blocks in a model, whatever it is wrapped in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from interptrain.sites.families import FAMILIES
from interptrain.sites.family import Family, Half, nearness


@dataclass(frozen=True, eq=False)
class Stack:
    """A transformer's blocks and where they stand in the model around them.

    Args:
        family: whose names the modules bear.
        name: of the `ModuleList`, as `model.named_modules()` gives it.
        blocks: the list.
        around: the modules that hold it, by name, innermost first.
        halves: of each block, attention and MLP.
    """

    family: Family
    name: str
    blocks: nn.ModuleList
    around: dict[str, nn.Module]
    halves: tuple[tuple[Half, Half], ...]


def find_stack(model: nn.Module) -> Stack:
    """The one stack of blocks of a known family in a module that holds a transformer.

    Raises:
        ValueError: there is none, or more than one, or it is of a family that cannot be read; the message says what
            was found.

    Example:
        >>> from torch import nn
        >>> find_stack(nn.Linear(4, 4))
        Traceback (most recent call last):
        ValueError: found no blocks of a known family (Llama-like, Phi-3, ...) in Linear: it holds no list of blocks...
    """
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    found = [stack for name, blocks in lists for stack in _stacks(model, name, blocks)]
    if len(found) > 1:
        names = ", ".join(f"'{stack.name}' ({stack.family.title}, {len(stack.blocks)} blocks)" for stack in found)
        raise ValueError(
            f"expected one stack of blocks in {type(model).__name__}, found {len(found)}: {names}; "
            "pass the part of the model that holds the one to train"
        )
    if not found:
        titles = ", ".join(family.title for family in FAMILIES if family.refused is None)
        seen = "; ".join(_why_not(name, blocks) for name, blocks in lists) or "it holds no list of blocks"
        raise ValueError(
            f"found no blocks of a known family ({titles}) in {type(model).__name__}: {seen}. A pre-norm transformer "
            "with names of its own can be described: interptrain.sites.register_family"
        )
    stack = found[0]
    if stack.family.refused is not None:
        block = type(stack.blocks[0]).__name__
        raise ValueError(f"'{stack.name}' ({block}) is {stack.family.title}, not to be read: {stack.family.refused}")
    return stack


def _stacks(model: nn.Module, name: str, blocks: nn.ModuleList) -> Iterator[Stack]:
    """A list of blocks as a stack of the first family that knows every one of them, if any does."""
    for family in FAMILIES:
        halves = [found for block in blocks if (found := family.halves(block)) is not None]
        if len(halves) == len(blocks):
            yield Stack(family, name, blocks, _around(model, name), tuple(halves))
            return


def _why_not(name: str, blocks: nn.ModuleList) -> str:
    """The first block that keeps a list from being a stack, and how it differs from the family it comes nearest to."""
    children = {name for name, _ in blocks[0].named_children()}
    readable = [family for family in FAMILIES if family.refused is None]
    near = [f for f in readable if children & {half.module for half in (f.attention, *f.mlps)}]
    if not near:
        return f"'{name}' is a list of {type(blocks[0]).__name__}"
    differing = [_first_mismatch(family, blocks) for family in near]
    family, layer, reasons = min(differing, key=lambda found: nearness(found[2]))
    block = type(blocks[layer]).__name__
    return f"'{name}.{layer}' ({block}) is not {family.title}: it {'; '.join(reasons)}"


def _first_mismatch(family: Family, blocks: nn.ModuleList) -> tuple[Family, int, list[str]]:
    found = ((family, layer, family.mismatch(block)) for layer, block in enumerate(blocks))
    return next(each for each in found if each[2])


def _around(model: nn.Module, name: str) -> dict[str, nn.Module]:
    parts = name.split(".")[:-1] if name else []
    holders = (".".join(parts[:depth]) for depth in range(len(parts), -1, -1))
    return {holder: model.get_submodule(holder) for holder in holders}
