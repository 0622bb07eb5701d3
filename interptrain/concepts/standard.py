"""Standardised inputs: what a penalty on a probe's weights is measured in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_STILL = 1e-6  # of a dimension's mean and of the mean spread: what spreads less is rounding


@dataclass(frozen=True, eq=False)
class Standard:
    """A shift and a scale: `(x - centre) / scale`.

    Args:
        centre: the weighted mean.
        scale: the weighted spread, of each dimension or of all of them.
    """

    centre: Float[Tensor, "width"]
    scale: Float[Tensor, "width"]

    @classmethod
    def of(cls, rows: Float[Tensor, "row width"], weights: Float[Tensor, "row"], *, each: bool = True) -> Standard:
        """Of weighted rows.

            centre = sum_r c_r x_r,   scale^2 = sum_r c_r (x_r - centre)^2        sum_r c_r = 1

        Args:
            rows: `x_r`.
            weights: `c_r`.
            each: every dimension by its own spread, for a residual stream, whose dimensions differ by orders of
                magnitude; else all by the root of the mean, for latents, where a rare one is not to count like others.

        Example:
            >>> Standard.of(torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.tensor([0.5, 0.5]))
            Standard(centre=tensor([1., 1.]), scale=tensor([1., 1.]))
        """
        centre = weights @ rows
        variance = weights @ (rows - centre).square()
        spread = variance.sqrt() if each else variance.mean().sqrt().expand_as(variance)
        moves = spread > _STILL * (centre.abs() + spread.mean())
        return cls(centre, torch.where(moves, spread, 1.0))

    def __call__(self, rows: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
        """Standardise."""
        return (rows - self.centre) / self.scale
