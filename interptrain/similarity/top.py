"""What is kept of a stream: the highest scores, and a fair sample; and how alike two rankings are."""

from __future__ import annotations

import heapq
import random
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

Item = TypeVar("Item")


class Top:
    """The numbers of the highest scores of a stream; of equal ones the earlier.

    Args:
        count: how many.

    Example:
        >>> top = Top(2)
        >>> for number, score in enumerate([0.5, 2.0, 1.0, 2.0]):
        ...     top.add(number, score)
        >>> top.ranked()
        [(1, 2.0), (3, 2.0)]
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._heap: list[tuple[float, int]] = []

    def add(self, number: int, score: float) -> None:
        """Look at the next."""
        if len(self._heap) < self._count:
            heapq.heappush(self._heap, (score, -number))
        elif self._heap and (score, -number) > self._heap[0]:
            heapq.heapreplace(self._heap, (score, -number))

    def ranked(self) -> list[tuple[int, float]]:
        """Numbers with their scores, highest first."""
        return [(-number, score) for score, number in sorted(self._heap, reverse=True)]


class Reservoir(Generic[Item]):
    """So many items of a stream, each with the same chance, in no order (Vitter 1985, algorithm R).

    Args:
        count: how many.
        seed: of the draw.

    Example:
        >>> few = Reservoir(5)
        >>> for number in range(1000):
        ...     few.add(number)
        >>> len(few.items), max(few.items) > 100
        (5, True)
    """

    def __init__(self, count: int, *, seed: int = 0) -> None:
        self.items: list[Item] = []
        self.seen = 0
        self._count, self._random = count, random.Random(seed)

    def add(self, item: Item) -> None:
        """Look at the next."""
        self.seen += 1
        if len(self.items) < self._count:
            self.items.append(item)
        elif (place := self._random.randrange(self.seen)) < self._count:
            self.items[place] = item


def rank_correlation(a: Float[Tensor, "document"], b: Float[Tensor, "document"]) -> float:
    """Spearman's correlation of two lists of scores: that of their ranks, equal scores sharing the mean of theirs.

    Example:
        >>> rank_correlation(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([5.0, 6.0, 7.0]))
        1.0
    """
    ranks = torch.stack([_ranks(a), _ranks(b)])
    apart = ranks - ranks.mean(1, keepdim=True)
    scale = apart.norm(dim=1).prod()
    return round(float(apart[0] @ apart[1] / scale), 6) if scale > 0 else 0.0


def _ranks(scores: Tensor) -> Tensor:
    _, place, counts = scores.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2).double()[place]
