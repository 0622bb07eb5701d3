"""Gradient: how much of the sites' raw parameter gradients lies in each concept."""

from __future__ import annotations

from collections.abc import Sequence

from interptrain.meters.null_energy import Measurable
from interptrain.meters.share import energy_share
from interptrain.projection import Sums
from interptrain.report import Reading


def gradient_reading(measured: Sequence[Measurable], sums: Sums, *, null: bool) -> Reading:
    """Energy share of the raw gradients of several sites in each concept's span.

        share_c = sum_sites ||Q_c G||_F^2 / sum_sites ||G||_F^2

    The share has no sign and knows nothing of the optimizer: what a step really writes is `write_reading`.

    Args:
        measured: for every site its spans, and its gradient with their rows as its directions.
        sums: the projector's reading of them.
        null: whether to measure the null groups too.
    """
    return energy_share(measured, sums, null=null)
