"""The energy share of a step's matrices in each concept: of gradients, or of what was written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from interptrain.meters.spans import Spans
from interptrain.report import Reading

Measurable: TypeAlias = "tuple[Spans, Float[Tensor, 'd_model _'], Float[Tensor, '']]"


def energy_share(
    measured: Iterable[Measurable],
    *,
    null: bool,
) -> Reading:
    """Share of the energy of several sites' matrices `M` that lies in each concept's span.

        share_c = sum_sites ||Q_c M||_F^2 / sum_sites ||M||_F^2

    A concept's sum runs over the sites it reaches. The expectation for random directions is `k / d_model`.

    Args:
        measured: for every site its spans, its matrix with the residual axis first, and that matrix's energy
            `||M||_F^2`; where it is not finite the site is left out.
        null: whether to measure the null groups too, which costs more than the concepts themselves.
    """
    energy: list[Tensor] = []
    total: list[Tensor] = []
    spread: list[Tensor] = []
    for spans, columns, whole in _narrow_ones_together(measured):
        finite = torch.isfinite(whole)
        energy.append(torch.where(finite, spans.energy(columns), 0.0))
        total.append(torch.where(finite & spans.reached, whole, 0.0))
        if null:
            spread.append(torch.where(finite, spans.null_energy(columns), 0.0))
    overall = torch.stack(total).sum(0)
    unmeasured = torch.full((len(overall), len(spans.null)), torch.nan, device=overall.device)
    nulls = torch.stack(spread).sum(0) if null else unmeasured
    return Reading(torch.stack(energy).sum(0) / overall, nulls / overall[:, None])


def _narrow_ones_together(measured: Iterable[Measurable]) -> Iterator[Measurable]:
    """Matrices seen by the same spans side by side, as long as that copies little: energies of columns add up."""
    alike: dict[int, list[Measurable]] = defaultdict(list)
    for spans, columns, whole in measured:
        if 4 * columns.shape[1] <= columns.shape[0]:
            alike[id(spans)].append((spans, columns, whole))
        else:
            yield spans, columns, whole
    for group in alike.values():
        finite = [torch.isfinite(whole) for _, _, whole in group]
        kept = [torch.where(ok, columns.float(), 0.0) for ok, (_, columns, _) in zip(finite, group, strict=True)]
        whole = torch.stack([torch.where(ok, each, 0.0) for ok, (_, _, each) in zip(finite, group, strict=True)]).sum()
        yield group[0][0], torch.cat(kept, dim=1), whole
