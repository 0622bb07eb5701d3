"""Reading a concept's directions from a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interptrain.concepts.bank import ConceptBank, unit_rows
from interptrain.sites.hooks import HookPoint

if TYPE_CHECKING:
    from torch import nn


class Directions:
    """`z_tk = d_k . h_t`: a concept's directions at its hook points.

    Args:
        bank: the concepts.
        concept: which of them.
        hooks: at these hook points only; None for all of the concept's.
        mean: read along the unit mean of the directions at each hook point, instead of each of them.

    Raises:
        ValueError: the bank has no such concept, none of its directions at a hook, or no hooks are chosen.
    """

    def __init__(
        self, bank: ConceptBank, concept: str, hooks: Iterable[str] | None = None, *, mean: bool = False
    ) -> None:
        own = bank.select(concept).hook_points
        self._rows: dict[str, Tensor] = {}
        for hook in own if hooks is None else hooks:
            rows = bank.concept_at(concept, hook).directions
            self._rows[hook] = unit_rows(rows.mean(0, keepdim=True)) if mean else rows
        if not self._rows:
            raise ValueError(f"no hook points of '{concept}' are chosen; it has directions at {', '.join(own)}")

    @contextmanager
    def listening(self, model: nn.Module) -> Iterator[Callable[[Bool[Tensor, "batch token"]], Float[Tensor, "_ _"]]]:
        """Catch the next forward pass inside; what is given reads it at the tokens of a mask, `[token, direction]`."""
        caught: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for hook in self._rows:
                handle = HookPoint.parse(hook).listen(model, partial(caught.__setitem__, hook))
                stack.callback(handle.remove)
            yield partial(self._read, caught)

    def _read(self, caught: dict[str, Tensor], mask: Bool[Tensor, "batch token"]) -> Float[Tensor, "_ _"]:
        read = []
        for hook, rows in self._rows.items():
            self._rows[hook] = rows.to(caught[hook].device)
            read.append(caught[hook][mask.to(caught[hook].device)].float() @ self._rows[hook].T)
        return torch.cat([each.to(read[0].device) for each in read], dim=-1)
