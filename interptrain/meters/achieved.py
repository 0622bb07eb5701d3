"""Achieved: the gain that a step really had, beside the one that was asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def achieved_gain(
    before: Sequence[Float[Tensor, "direction _"]],
    after: Sequence[Float[Tensor, "direction _"]],
    concepts: Sequence[Int[Tensor, "direction"]],
    count: int,
) -> Float[Tensor, "concept"]:
    """The gain between a step's coefficients before and after an edit, by least squares over a concept's rows.

        gain_c = sum_sites <D_c dW, D_c dW'> / sum_sites ||D_c dW||^2

    Exact where the edit is: `D dW' = gain D dW` gives `gain`. NaN where the step had nothing in the concept.

    Args:
        before: for every site, `D dW` as the optimizer left it.
        after: the same, measured again on the edited parameters, their rounding included.
        concepts: for every site, the concept of each row.
        count: how many concepts there are.

    Example:
        >>> rows = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
        >>> achieved_gain([rows], [torch.tensor([[0.5, 1.0], [9.0, 0.0]])], [torch.tensor([0, 1])], 3)
        tensor([0.5000, 3.0000,    nan])
    """
    device = before[0].device
    kept, whole = torch.zeros(count, device=device), torch.zeros(count, device=device)
    for old, new, concept in zip(before, after, concepts, strict=True):
        kept.index_add_(0, concept, (old * new).sum(-1))
        whole.index_add_(0, concept, old.square().sum(-1))
    return kept / whole


def achieved_from_shares(
    gradient: Float[Tensor, "concept"], write: Float[Tensor, "concept"]
) -> Float[Tensor, "concept"]:
    """An estimate of the achieved gain where the gradient was edited: the change of the concept's odds.

        gain_c ~ sqrt( write_c / (1 - write_c)  /  (gradient_c / (1 - gradient_c)) )

    `gradient` is the raw share, before the edit, and `write` the share of what the optimizer made of the edited
    gradient. With SGD on full parameters, one concept and no momentum this is the absolute gain. With Adam it also
    holds what Adam's scaling does to the share without any steering: what the same step would have written
    unsteered is not known.
    """
    return (write / (1 - write) * (1 - gradient) / gradient).sqrt()
