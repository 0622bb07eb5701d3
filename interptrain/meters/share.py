"""The energy share of a step's matrices in each concept: of gradients, or of what was written."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from interptrain.meters.spans import Spans
from interptrain.report import Reading


def energy_share(
    measured: Iterable[tuple[Spans, Float[Tensor, "d_model _"], Float[Tensor, ""]]],
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
    for spans, columns, whole in measured:
        finite = torch.isfinite(whole)
        squared = torch.where(finite, whole, 0.0)
        energy.append(torch.where(finite, spans.energy(columns), 0.0))
        total.append(torch.where(spans.ranks > 0, squared, 0.0))
        if null:
            spread.append(torch.where(finite, spans.null_energy(columns), 0.0))
        else:
            spread.append(torch.full((len(spans.bases), len(spans.null)), torch.nan, device=columns.device))
    overall = torch.stack(total).sum(0)
    return Reading(torch.stack(energy).sum(0) / overall, torch.stack(spread).sum(0) / overall[:, None])
