"""Achieved: the gain that a step really had, beside the one that was asked for."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interptrain.projection import Part


class AchievedGain:
    """The gain between a step's coefficients before and after an edit, by least squares over a concept's rows.

        gain_c = sum_sites <D_c dW, D_c dW'> / sum_sites ||D_c dW||^2

    Exact where the edit is: `D dW' = gain D dW` gives `gain`. NaN where the step had nothing in the concept.

    Args:
        count: how many concepts there are.
        device: where the coefficients are.

    Example:
        >>> rows = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
        >>> gain = AchievedGain(3, rows.device)
        >>> gain.add(rows, torch.tensor([[0.5, 1.0], [9.0, 0.0]]), torch.tensor([0, 1]), Part())
        >>> gain.value()
        tensor([0.5000, 3.0000,    nan])
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self._whole, self._split = torch.zeros(2, count, device=device), torch.zeros(2, count, device=device)
        self._by_columns = False
        self._by_rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(
        self,
        before: Float[Tensor, "direction other"],
        after: Float[Tensor, "direction other"],
        concept: Int[Tensor, "direction"],
        part: Part,
    ) -> None:
        """Take one site.

        Args:
            before: `D dW` as the optimizer left it; of a part of `dW`, as far as that goes.
            after: the same, measured again on the edited parameters, their rounding included.
            concept: of each row.
            part: what of `dW` it is.
        """
        if part.split == "rows":
            self._by_rows.append((before, after, concept))
        elif part.split == "columns":
            self._by_columns = True
            _add_products_(self._split, before, after, concept)
        else:
            _add_products_(self._whole, before, after, concept)

    @property
    def partial(self) -> list[Tensor]:
        """What has to be summed over the processes before the value is known."""
        split = [self._split] if self._by_columns else []
        return [*split, *(each for before, after, _ in self._by_rows for each in (before, after))]

    def value(self) -> Float[Tensor, "concept"]:
        """The gain of each concept."""
        products = self._whole + self._split
        for before, after, concept in self._by_rows:
            _add_products_(products, before, after, concept)
        return products[0] / products[1]


def _add_products_(
    products: Float[Tensor, "2 concept"],
    before: Float[Tensor, "direction other"],
    after: Float[Tensor, "direction other"],
    concept: Int[Tensor, "direction"],
) -> None:
    products[0].index_add_(0, concept, (before * after).sum(-1))
    products[1].index_add_(0, concept, before.square().sum(-1))


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
