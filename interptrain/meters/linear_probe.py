"""A linear probe of a concept, which knows nothing of the SAE: it notices what comes back by other directions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from interptrain.concepts.contrast import TextActivations


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A direction that separates a concept's texts from neutral ones, scaled by where those stood before training.

        score(h) = w . (h - origin)        0: the neutral set, 1: the concept's own set, both before training

    Args:
        weight: `w`, scaled.
        origin: mean activation of the neutral set before training.
        auc: of held-out texts' mean scores, before training.
    """

    weight: Float[Tensor, "d_model"]
    origin: Float[Tensor, "d_model"]
    auc: Float[Tensor, ""]

    @classmethod
    def fit(
        cls,
        shown: TextActivations,
        neutral: TextActivations,
        *,
        zero: Float[Tensor, "d_model"],
        one: Float[Tensor, "d_model"],
    ) -> LinearProbe:
        """Fit on every other text, and test on the rest.

        Args:
            shown: tokens of texts that show the concept.
            neutral: tokens of neutral texts.
            zero: the activation that scores 0.
            one: the activation that scores 1.

        Raises:
            ValueError: fewer than two texts in a set, or sets that do not differ.
        """
        from interptrain.concepts.contrast import auc

        if min(int(texts.text.max()) for texts in (shown, neutral)) < 1:
            raise ValueError("a linear probe needs two texts or more of each set: half to fit and half to test")
        weight = discriminant(_half(shown, 0).values, _half(neutral, 0).values).to(zero)
        scores = [(_half(texts, 1).means() @ weight.cpu())[:, None] for texts in (shown, neutral)]
        reach = weight @ (one - zero)
        if not reach > 0:
            raise ValueError("the concept's texts do not differ from the neutral ones as a linear probe sees them")
        return cls(weight / reach, zero, auc(*scores)[0])

    def score(self, activations: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any"]:
        """The score of activations, such as the mean of a set."""
        return (activations - self.origin) @ self.weight

    def to(self, device: torch.device) -> LinearProbe:
        """The same on a device."""
        return replace(self, weight=self.weight.to(device), origin=self.origin.to(device))


def discriminant(
    shown: Float[Tensor, "shown d_model"], other: Float[Tensor, "other d_model"]
) -> Float[Tensor, "d_model"]:
    """Fisher's linear discriminant in float64, its covariance shrunk by OAS.

        w = S*^-1 (mean+ - mean-)        S* = (1 - rho) S + rho tr(S)/d I        (S: pooled within-class covariance)

        rho = min(1, ((1 - 2/d) tr(S^2) + tr(S)^2) / ((n + 1 - 2/d) (tr(S^2) - tr(S)^2 / d)))

    Source: Chen, Wiesel, Eldar and Hero, *Shrinkage Algorithms for MMSE Covariance Estimation* (2010), eq. 23. It
    takes tokens to be independent, which those of one text are not.

    Raises:
        ValueError: no token differs from its set's mean.

    Example:
        >>> shown = torch.tensor([[3.0, 1.0], [3.0, -1.0]])
        >>> w = discriminant(shown, shown - torch.tensor([2.0, 0.0]))
        >>> w[0] > 0, w[1] == 0
        (tensor(True), tensor(True))
    """
    first, second = shown.cpu().double(), other.cpu().double()
    within = torch.cat([first - first.mean(0), second - second.mean(0)])
    count, width = within.shape
    pooled = within.T @ within / count
    trace, energy = pooled.trace(), pooled.square().sum()
    if not trace > 0:
        raise ValueError("the tokens of both sets are all alike; a linear probe needs texts that differ")
    excess = energy - trace.square() / width
    rho = ((1 - 2 / width) * energy + trace.square()) / ((count + 1 - 2 / width) * excess)
    rho = torch.where(excess > 0, rho, 1.0).clamp_max(1.0)
    shrunk = (1 - rho) * pooled + rho * trace / width * torch.eye(width, dtype=torch.float64)
    return torch.linalg.solve(shrunk, first.mean(0) - second.mean(0))


def _half(texts: TextActivations, which: int) -> TextActivations:
    """Every other text, from the first or from the second on."""
    chosen = texts.text % 2 == which
    return replace(texts, values=texts.values[chosen].cpu().float(), text=texts.text[chosen].cpu() // 2)
