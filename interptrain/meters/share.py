"""The energy share of a step's matrices in each concept: of gradients, or of what was written."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interptrain.meters.null_energy import Measurable, null_energy
from interptrain.meters.spans import Spans
from interptrain.projection import Sums
from interptrain.report import Reading


def energy_share(measured: Sequence[Measurable], sums: Sums, *, null: bool) -> Reading:
    """Share of the energy of several sites' matrices `M` that lies in each concept's span.

        share_c = sum_sites ||Q_c M||_F^2 / sum_sites ||M||_F^2

    A concept's sum runs over the sites it reaches. The expectation for random directions is `k / d_model`.

    Args:
        measured: for every site its spans, and its matrix with the spans' rows as its directions.
        sums: the projector's reading of the whole matrices; where a total is not finite the site is left out.
        null: whether to measure the null groups too, which costs more than the concepts themselves.
    """
    finite = torch.isfinite(sums.total)[:, None]
    reached = torch.stack([spans.reached for spans, _ in measured])
    overall = torch.where(finite & reached, sums.total[:, None], 0.0).sum(0)
    energy = torch.where(finite, _by_concept([spans for spans, _ in measured], sums.energy), 0.0).sum(0)
    if not null:
        unmeasured = torch.full((len(overall), len(measured[0][0].null)), torch.nan, device=overall.device)
        return Reading(energy / overall, unmeasured)
    return Reading(energy / overall, null_energy(measured, finite[:, 0]) / overall[:, None])


def _by_concept(spans: Sequence[Spans], energy: Float[Tensor, "site direction"]) -> Float[Tensor, "site concept"]:
    """Sum over each concept's directions; sites differ in how many they pad to."""
    lengths = [each.bases.shape[:2] for each in spans]
    if len(set(lengths)) == 1:
        return energy.view(len(spans), *lengths[0]).sum(-1)
    return torch.stack(
        [row[: each.numel()].view(each).sum(-1) for each, row in zip(lengths, energy.unbind(), strict=True)]
    )
