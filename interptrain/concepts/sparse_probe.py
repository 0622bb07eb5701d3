"""A sparse probe: few latents, and a linear probe on those alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interptrain.meters.linear_probe import discriminant


@dataclass(frozen=True, eq=False)
class SparseProbe:
    """A probe that reads a text by a few of its latents.

        score(z) = sum_{i in S} w_i z_i

    Args:
        latents: `S`, those whose means differ most first.
        weights: `w`, one a latent.
    """

    latents: tuple[int, ...]
    weights: Float[Tensor, "chosen"]


def sparse_probe(
    positive: Float[Tensor, "positive latent"],
    negative: Float[Tensor, "negative latent"],
    *,
    count: int,
    alive: Bool[Tensor, "latent"] | None = None,
) -> SparseProbe:
    """Choose `count` latents that fire more on one set of texts than on another, and fit a linear probe on them.

        t_i = (m+_i - m-_i) / sqrt((v+_i + v-_i) / 2)         S: the `count` largest,     w = S_S^-1 (m+ - m-)_S

    `m` and `v` are the means and variances over texts, `S_S` the shrunk covariance of the chosen (`discriminant`).
    Source: Gurnee et al., *Finding Neurons in a Haystack: Case Studies with Sparse Probing* (2023), whose maximum mean
    difference ranks neurons; here it ranks latents, in units of their spread and of one sign: those that mark the
    concept, not those that mark its absence.

    Args:
        positive: a text's mean activation of every latent, in texts that show the concept.
        negative: the same in texts that do not.
        count: how many latents, `k`.
        alive: latents to choose from; None for all.

    Raises:
        ValueError: a set has no texts, or fewer than `count` latents fire more on the positive one.

    Example:
        >>> shown = torch.tensor([[2.0, 1.0, 0.0], [3.0, 0.0, 1.0]])
        >>> other = torch.tensor([[0.0, 1.0, 0.5], [0.0, 0.0, 0.5]])
        >>> probe = sparse_probe(shown, other, count=1)
        >>> probe.latents, bool(probe.weights[0] > 0)
        ((0,), True)
    """
    if min(len(positive), len(negative)) == 0:
        raise ValueError("a set of texts is empty: no latents to compare")
    difference = positive.mean(0) - negative.mean(0)
    spread = ((positive.var(0, correction=0) + negative.var(0, correction=0)) / 2).sqrt()
    fires = (difference > 0) if alive is None else (difference > 0) & alive
    # A latent that never varies within a set separates them perfectly: its spread is rounding alone.
    standing = difference / spread.clamp_min(1e-6 * difference.abs().max().clamp_min(1e-30))
    if (found := int(fires.sum())) < count:
        raise ValueError(f"asked for {count} latents but only {found} fire more on the texts that show the concept")
    chosen = standing.masked_fill(~fires, -torch.inf).topk(count).indices
    # One latent needs no weighing, and may not vary within a set at all.
    weights = torch.ones(1) if count == 1 else discriminant(positive[:, chosen], negative[:, chosen]).float()
    return SparseProbe(tuple(chosen.tolist()), weights)
