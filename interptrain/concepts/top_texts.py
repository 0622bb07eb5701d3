"""The texts in which something is most active, and how often it is active at all."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class TopText(NamedTuple):
    """A text by its number, and the largest activation in it."""

    text: int
    most: float


def top_texts(values: Float[Tensor, "token"], text: Int[Tensor, "token"], count: int) -> list[TopText]:
    """The texts with the largest activations, `max_t a_t` in a text, the largest first.

    Args:
        values: an activation a token.
        text: which text each token belongs to.
        count: how many at most.

    Example:
        >>> top_texts(torch.tensor([0.5, 2.0, 1.0]), torch.tensor([0, 0, 1]), 1)
        [TopText(text=0, most=2.0)]
    """
    if len(text) == 0:
        return []
    peaks = torch.full((int(text.max()) + 1,), -torch.inf).scatter_reduce_(0, text, values, "amax")
    order = peaks.argsort(descending=True, stable=True)[:count]
    return [TopText(int(each), float(peaks[each])) for each in order if peaks[each] > -torch.inf]


def neighbours(
    direction: Float[Tensor, "d_model"], rows: Float[Tensor, "row d_model"], count: int, without: tuple[int, ...] = ()
) -> list[tuple[int, float]]:
    """The unit rows nearest to a unit direction, `cos = d . r`, the nearest first.

    Args:
        direction: a unit direction.
        rows: unit rows, such as a dictionary's.
        count: how many at most.
        without: rows that are passed over, such as the direction's own.

    Example:
        >>> neighbours(torch.tensor([1.0, 0.0]), torch.tensor([[0.6, 0.8], [1.0, 0.0]]), 2, without=(1,))
        [(0, 0.6000000238418579)]
    """
    cosines = rows @ direction
    cosines[list(without)] = -torch.inf
    order = cosines.argsort(descending=True)[: min(count, len(rows) - len(set(without)))]
    return [(int(row), float(cosines[row])) for row in order]
