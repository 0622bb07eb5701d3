"""Write: how much of what the optimizer really changed lies in each concept, and which way it moves the stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from interptrain.meters.null_energy import Measurable
from interptrain.meters.share import energy_share
from interptrain.projection import Sums
from interptrain.report import Reading


def write_reading(
    measured: Sequence[Measurable],
    sums: Sums,
    moved: Mapping[tuple[int, ...], Float[Tensor, "d_model"]],
    means: Mapping[tuple[int, ...], Float[Tensor, "flip_and_one concept d_model"]],
    *,
    null: bool,
) -> Reading:
    """Energy share of the realised changes `dW` in each concept's span, and their signed effect on the stream.

        share_c  = sum_sites ||Q_c dW||_F^2 / sum_sites ||dW||_F^2
        signed_c = sum_writers m_c . (dW x_mean)

    `signed` is the first-order move of the stream along the concept's mean direction at the mean input of the
    loss tokens, in activation units; it is what the weights now add, however the loss came to ask for it. Its
    null flips the signs of the concept's own directions. Readers and embeddings have no part in it.

    Args:
        measured: for every site its spans, and its change with their rows as its directions.
        sums: the projector's reading of them.
        moved: for the writers that reach the same rows of the bank, the sum of `dW x_mean`; may be empty.
        means: for the same rows, each concept's mean direction, then the sign-flipped ones.
        null: whether to measure the null groups too.
    """
    reading = energy_share(measured, sums, null=null)
    if not moved:
        return reading
    along = torch.stack([means[rows] @ torch.where(torch.isfinite(v), v, 0.0) for rows, v in moved.items()]).sum(0)
    return replace(reading, signed=along[0], signed_null=along[1:].T)
