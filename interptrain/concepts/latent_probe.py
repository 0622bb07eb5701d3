"""Probes on SAE latents: which latents tell the texts apart, and their decoder rows as directions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Float, Int
from torch import Tensor

from interptrain.concepts.attention_probe import AttentionProbe
from interptrain.concepts.bank import unit_rows
from interptrain.concepts.contrast import TextActivations
from interptrain.concepts.text_probe import MAX_COSINE, PooledProbe

Inner = PooledProbe | AttentionProbe
MOST_DIRECTIONS = 8  # of a bank: as many as a concept's latents by default


@dataclass(frozen=True, eq=False)
class LatentProbe:
    """A probe of texts that looks at some latents of a dictionary.

        s(z) = inner(z[latents])

    Args:
        latents: their numbers.
        decoder: unit decoder rows of these.
        difference: of each, its mean on the positive texts less that on the negative ones.
        inner: the probe of these latents' activations.
        dictionary: how many latents there are in all.
    """

    latents: Int[Tensor, "latent"]
    decoder: Float[Tensor, "latent d_model"]
    difference: Float[Tensor, "latent"]
    inner: Inner
    dictionary: int

    @property
    def width(self) -> int:
        """Of the activations that it takes: all latents of the dictionary."""
        return self.dictionary

    def contributions(self, texts: TextActivations) -> Float[Tensor, "token"]:
        """What each token adds to its text's score."""
        return self.inner.contributions(self._own(texts))

    def score(self, texts: TextActivations) -> Float[Tensor, "text"]:
        """How much each text shows the concept."""
        return self.inner.score(self._own(texts))

    def shares(self) -> Float[Tensor, "latent"]:
        """What tells the classes apart, latent by latent: `w_i (mean+ z_i - mean- z_i)`, heads summed."""
        weight = self.inner.weight if isinstance(self.inner, PooledProbe) else self.inner.value.sum(0)
        return weight * self.difference

    def named(self, count: int = MOST_DIRECTIONS) -> tuple[int, ...]:
        """The latents that fire on the concept, by their share, without those whose row is within .9 of a better one's.

        Latents with a negative weight speak against the concept: they are in the score, and are none of its directions.
        """
        weight = self.inner.weight if isinstance(self.inner, PooledProbe) else self.inner.value.sum(0)
        shares, chosen = self.shares(), list[int]()
        for number in shares.argsort(descending=True).tolist():
            if len(chosen) == count or shares[number] <= 0:
                break
            if weight[number] > 0 and (self.decoder[chosen] @ self.decoder[number] <= MAX_COSINE).all():
                chosen.append(number)
        return tuple(self.latents[chosen].tolist())

    def directions(self) -> Float[Tensor, "direction d_model"]:
        """Decoder rows of the named latents."""
        rows = {latent: row for row, latent in enumerate(self.latents.tolist())}
        return self.decoder[[rows[latent] for latent in self.named()]]

    def _own(self, texts: TextActivations) -> TextActivations:
        return replace(texts, values=texts.values[:, self.latents.to(texts.values.device)])


def separated_most(
    means: Float[Tensor, "text latent"], positive: Tensor, count: int
) -> tuple[Int[Tensor, "chosen"], Float[Tensor, "latent"]]:
    """The latents whose mean differs most between the classes, and every latent's difference.

    Source: Gurnee et al., *Finding Neurons in a Haystack* (2023), section 3.2: the largest mean difference.
    """
    difference = means[positive].mean(0) - means[~positive].mean(0)
    most = difference.abs().argsort(descending=True)[:count]
    return most[difference[most] != 0], difference


def chosen(
    latents: Int[Tensor, "latent"],
    difference: Float[Tensor, "dictionary"],
    decoder: Float[Tensor, "dictionary d_model"],
    inner: Inner,
) -> LatentProbe:
    """A probe of these latents of a dictionary."""
    rows = unit_rows(decoder[latents.to(decoder.device)].float())
    return LatentProbe(latents, rows, difference[latents], inner, len(decoder))
