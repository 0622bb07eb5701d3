"""What is kept of a stream: the highest scores, and a fair sample."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable
from typing import TypeVar

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


def reservoir(items: Iterable[Item], count: int, *, seed: int = 0) -> list[Item]:
    """So many items of a stream, each with the same chance, in no order (Vitter 1985, algorithm R).

    Example:
        >>> sorted(reservoir(range(3), 5)), len(reservoir(range(1000), 5))
        ([0, 1, 2], 5)
    """
    kept: list[Item] = []
    generator = random.Random(seed)
    for seen, item in enumerate(items):
        if len(kept) < count:
            kept.append(item)
        elif (place := generator.randrange(seen + 1)) < count:
            kept[place] = item
    return kept
