"""How alike a document's gradient is to those of a few examples, against what is usual in the corpus."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

RIDGE = 3.0  # times the mean eigenvalue; chosen in benchmarks/similar.py
_SMALLEST = 1e-6  # of the largest eigenvalue; less is rounding


@dataclass(frozen=True, eq=False)
class Likeness:
    """Scores features one by one; nothing of the corpus is kept.

        s_i = a_i . (phi/|phi| - mu)        z_i = (s_i - centre_i) / spread_i        score = sqrt(mean_i max(0, z_i)^2)

    Args:
        directions: `a`, one an example that was asked for.
        mean: `mu`.
        centre: of each `s_i` over the corpus.
        spread: its standard deviation there.
    """

    directions: Float[Tensor, "query feature"]
    mean: Float[Tensor, "feature"]
    centre: Float[Tensor, "query"]
    spread: Float[Tensor, "query"]

    def __call__(self, features: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch"]:
        """The score of each document, in standard deviations of the corpus."""
        return self.each(features).relu().square().mean(-1).sqrt()

    def each(self, features: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch query"]:
        """`z_i` of each document."""
        return (_unit(features) @ self.directions.T - self.directions @ self.mean - self.centre) / self.spread


def whitened(
    query: Float[Tensor, "query feature"], sample: Float[Tensor, "sample feature"], *, ridge: float = RIDGE
) -> Likeness:
    r"""Likeness that does not count what most of the corpus asks for anyway.

        u = phi/|phi|      mu, C: mean and covariance of the sample's u      W = (I + C / (ridge mean eigenvalue))^-1/2
        a_i = W W (q_i - mu) / |W (q_i - mu)|

    `W` is the inverse root of the sample's empirical Fisher matrix, regularised, which turns an inner product of
    gradients into an influence (TRAK, Park et al. 2023; preconditioned and normalised in TrackStar, Chang et al. 2024,
    arXiv:2410.17413). Each example is then compared by itself and its figures standardised, since a mean of gradients
    loses what examples of one skill do not share: answers differ from problem to problem.

    Args:
        query: of the examples that show the skill.
        sample: of documents drawn from the corpus.
        ridge: large for a plain inner product.

    Raises:
        ValueError: no example, or fewer than two documents in the sample.

    Example:
        >>> sample = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
        >>> sample[:, 0] += 9  # what everything asks for
        >>> score = whitened(torch.eye(8)[:2] * 9 + torch.eye(8)[3], sample)
        >>> bool(score(torch.eye(8))[1] > score(torch.eye(8))[2])
        True
    """
    if len(query) == 0 or len(sample) < 2:
        raise ValueError(f"expected an example and two documents or more, found {len(query)} and {len(sample)}")
    u = _unit(sample)
    mean = u.mean(0)
    apart = (u - mean).double()
    values, vectors = torch.linalg.eigh(apart @ apart.T / len(u))
    kept = values > _SMALLEST * values[-1]
    values, basis = values[kept], normalize(vectors[:, kept].T @ apart, dim=-1)
    shrunk = (1 + values / (ridge * values.sum() / max(1, len(values)))).rsqrt()  # none where all are the same

    def white(x: Tensor) -> Tensor:
        return x + ((x @ basis.T) * (shrunk - 1)) @ basis

    directions = white(normalize(white((_unit(query) - mean).double()), dim=-1)).float()
    scores = (u - mean) @ directions.T
    return Likeness(directions, mean, scores.mean(0), scores.std(0).clamp_min(torch.finfo(scores.dtype).tiny))


def cosine(query: Float[Tensor, "query feature"], sample: Float[Tensor, "sample feature"]) -> Likeness:
    """The cosine to each example, standardised: what `whitened` is with an endless ridge and without centring.

    Example:
        >>> score = cosine(torch.eye(3)[:1], torch.eye(3))
        >>> score(torch.eye(3)).argmax().item()
        0
    """
    directions = _unit(query)
    scores = _unit(sample) @ directions.T
    spread = scores.std(0).clamp_min(torch.finfo(scores.dtype).tiny)
    return Likeness(directions, torch.zeros_like(query[0]), scores.mean(0), spread)


def _unit(features: Tensor) -> Tensor:
    return normalize(features.float(), dim=-1)
