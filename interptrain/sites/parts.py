"""The modules of a stack that a family knows, and what each is to the residual stream."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

from interptrain.sites.family import Half
from interptrain.sites.layer import bare
from interptrain.sites.stack import Stack

EMBEDDINGS, ATTENTION, MLP, HEAD = -1.0, 0.25, 0.75, math.inf


@dataclass(frozen=True, eq=False)
class Part:
    """A module that a family knows, or a weight that a module holds itself.

    Args:
        name: as `model.named_modules()` gives it; of a weight, as `model.named_parameters()` does without adapters.
        module: as it stands there, an adapter's wrapping included; of a weight, its holder.
        kind: what it does: add to the stream, take from it, norm it, or act inside a half only.
        position: place in the stream.
        norm: the norm between it and the stream: in front of a reader, behind a writer.
        weight: its name in the holder; None for a module.
    """

    name: str
    module: nn.Module
    kind: Literal["writer", "reader", "norm", "inner"]
    position: float
    norm: Part | None = None
    weight: str | None = None

    @property
    def place(self) -> str:
        """The name of the module."""
        return self.name if self.weight is None else self.name.removesuffix(f".{self.weight}")


def parts(stack: Stack) -> Iterator[Part]:
    """Every module of a stack and around it that its family knows, in the order they run.

    Both halves of a parallel block stand where its attention does: they read the same stream.
    """
    family = stack.family
    beside, holder = next(iter(stack.around.items()))
    for name, module in _children(beside, holder, family.embeddings):
        yield Part(name, module, "writer", EMBEDDINGS)
    offsets = (ATTENTION, ATTENTION if family.parallel else MLP)
    for layer, (block, halves) in enumerate(zip(stack.blocks, stack.halves, strict=True)):
        for half, offset in zip(halves, offsets, strict=True):
            yield from _half(f"{stack.name}.{layer}" if stack.name else str(layer), block, half, layer + offset)
    final_norms = [Part(*found, "norm", HEAD) for found in _children(beside, holder, (family.final_norm,))]
    yield from final_norms
    for final_norm in final_norms:  # without a known norm in front of it, a head is not understood
        heads = [head for around in stack.around.items() for head in _children(*around, (family.head,))]
        yield from (Part(*head, "reader", HEAD, final_norm) for head in heads[:1])


def _half(name: str, block: nn.Module, half: Half, position: float) -> Iterator[Part]:
    norms = {each: Part(f"{name}.{each}", block.get_submodule(each), "norm", position) for each in half.norms}
    front, behind = norms.get(half.norm or ""), norms.get(half.post_norm or "")
    yield from norms.values()
    for inside in half.inside(half.readers):
        yield _part(name, block, inside, "reader", position, front)
    for inside in half.inside(half.inner):
        if (found := _found(block, inside)) is not None:
            yield Part(f"{name}.{inside}", found, "inner", position)
    for inside in half.inside(half.writers):
        yield _part(name, block, inside, "writer", position, behind)


def _part(
    name: str, block: nn.Module, inside: str, kind: Literal["writer", "reader"], position: float, norm: Part | None
) -> Part:
    module = _found(block, inside)
    if module is not None:
        return Part(f"{name}.{inside}", module, kind, position, norm)
    place, _, weight = inside.rpartition(".")
    holder = _found(block, place)
    assert holder is not None, f"'{name}' was found to have '{inside}'"
    return Part(f"{name}.{inside}", holder, kind, position, norm, weight)


def _found(block: nn.Module, inside: str) -> nn.Module | None:
    """A module in a block, as it stands there; None where it has none of this name."""
    *places, last = inside.split(".")
    module = block
    for place in places:
        module = bare(module).get_submodule(place)
    return dict(bare(module).named_children()).get(last)


def _children(name: str, module: nn.Module, wanted: tuple[str, ...]) -> Iterator[tuple[str, nn.Module]]:
    for child, found in module.named_children():
        if child in wanted:
            yield (f"{name}.{child}" if name else child), found
