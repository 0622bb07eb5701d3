"""The modules of a stack that a family knows, and what each is to the residual stream."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

from interptrain.sites.families import Half
from interptrain.sites.stack import Stack

EMBEDDINGS, ATTENTION, MLP, HEAD = -1.0, 0.25, 0.75, math.inf


@dataclass(frozen=True, eq=False)
class Part:
    """A module that a family knows.

    Args:
        name: as `model.named_modules()` gives it.
        module: as it stands there, an adapter's wrapping included.
        kind: what it does: add to the stream, take from it, norm it, or act inside a half only.
        position: place in the stream.
        norm: for a reader, the norm in front of it.
    """

    name: str
    module: nn.Module
    kind: Literal["writer", "reader", "norm", "inner"]
    position: float
    norm: Part | None = None


def parts(stack: Stack) -> Iterator[Part]:
    """Every module of a stack and around it that its family knows, in the order they run."""
    family = stack.family
    beside, holder = next(iter(stack.around.items()))
    for name, module in _children(beside, holder, family.embeddings):
        yield Part(name, module, "writer", EMBEDDINGS)
    for layer, block in enumerate(stack.blocks):
        for half, offset in ((family.attention, ATTENTION), (family.mlp, MLP)):
            yield from _half(f"{stack.name}.{layer}" if stack.name else str(layer), block, half, layer + offset)
    final_norms = [Part(*found, "norm", HEAD) for found in _children(beside, holder, (family.final_norm,))]
    yield from final_norms
    for final_norm in final_norms:  # without a known norm in front of it, a head is not understood
        heads = [head for around in stack.around.items() for head in _children(*around, (family.head,))]
        yield from (Part(*head, "reader", HEAD, final_norm) for head in heads[:1])


def _half(name: str, block: nn.Module, half: Half, position: float) -> Iterator[Part]:
    norm = Part(f"{name}.{half.norm}", block.get_submodule(half.norm), "norm", position)
    inside = (f"{name}.{half.module}", block.get_submodule(half.module))
    yield norm
    for found in _children(*inside, half.readers):
        yield Part(*found, "reader", position, norm)
    for found in _children(*inside, half.inner):
        yield Part(*found, "inner", position)
    for found in _children(*inside, (half.writer,)):
        yield Part(*found, "writer", position)


def _children(name: str, module: nn.Module, wanted: tuple[str, ...]) -> Iterator[tuple[str, nn.Module]]:
    for child, found in module.named_children():
        if child in wanted:
            yield (f"{name}.{child}" if name else child), found
