"""Several ways to find a concept in two sets of texts, and how each does on texts that it never saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from interptrain.concepts.bank import unit_rows
from interptrain.concepts.contrast import TextActivations, auc, difference_of_means, separating_latents
from interptrain.concepts.sparse_probe import sparse_probe
from interptrain.meters.linear_probe import discriminant

SHUFFLES, RANDOM_DRAWS = 16, 64
MIN_TEXTS = 4  # of a set, to search in or to test on


@dataclass(frozen=True, eq=False)
class TextSet:
    """A set of texts, one row a text.

    Args:
        means: its mean activation at the hook.
        starts: its activation where the answer begins: at the last token of the prompt.
        latents: the mean activation of every latent of a dictionary, where there is one.
    """

    means: Float[Tensor, "text d_model"]
    starts: Float[Tensor, "text d_model"]
    latents: Float[Tensor, "text latent"] | None = None

    def __len__(self) -> int:
        return len(self.means)

    def with_texts_of(self, other: TextSet) -> TextSet:
        """Both sets in one."""
        latents = None if self.latents is None or other.latents is None else torch.cat([self.latents, other.latents])
        return TextSet(torch.cat([self.means, other.means]), torch.cat([self.starts, other.starts]), latents)

    def take(self, texts: Int[Tensor, "some"]) -> TextSet:
        """The set of these texts."""
        return TextSet(self.means[texts], self.starts[texts], None if self.latents is None else self.latents[texts])


@dataclass(frozen=True, eq=False)
class Dictionary:
    """What of an SAE a search uses.

    Args:
        decoder: what each latent writes to the stream.
        alive: latents that fire on the texts.
        effect: how much more likely each makes answers that show the concept, see `effects`; None ranks by AUC.
    """

    decoder: Float[Tensor, "latent d_model"]
    alive: Bool[Tensor, "latent"]
    effect: Float[Tensor, "latent"] | None = None


@dataclass(frozen=True, eq=False)
class Candidate:
    """Directions that a method found, and how it scores a text.

        score(text) = w . x        x: the text's mean activation, or that of its latents

    Args:
        directions: unit rows, what a bank keeps.
        weights: `w`, one a feature: of the stream, or of the chosen latents.
        latents: their numbers; empty for a direction of the stream.
    """

    directions: Float[Tensor, "direction d_model"]
    weights: Float[Tensor, "feature"]
    latents: tuple[int, ...] = ()

    @property
    def direction(self) -> Float[Tensor, "d_model"]:
        """The unit mean of its directions: what is added to the stream."""
        return normalize(self.directions.sum(0), dim=0)

    def features(self, texts: TextSet) -> Float[Tensor, "text feature"]:
        """What the weights weigh."""
        if not self.latents:
            return texts.means
        assert texts.latents is not None
        return texts.latents[:, list(self.latents)]

    def scores(self, texts: TextSet) -> Float[Tensor, "text"]:
        """The score of each text."""
        return self.features(texts) @ self.weights


Method = Callable[[TextSet, TextSet], Candidate]


def means(positive: TextSet, negative: TextSet) -> Candidate:
    """The difference of the mean activations, `d = m+ - m-`, over whole answers."""
    return _along(difference_of_means(_texts(positive.means), _texts(negative.means)))


def start_means(positive: TextSet, negative: TextSet) -> Candidate:
    """The same where the answer begins: what makes the model choose to show the concept.

    Source: as Zou et al., *Representation Engineering* (2023), and Chen et al., *Persona Vectors* (2025), read the
    last token of the prompt.
    """
    return _along(difference_of_means(_texts(positive.starts), _texts(negative.starts)))


def linear_probe(positive: TextSet, negative: TextSet) -> Candidate:
    """The linear discriminant of the mean activations, `w = S*^-1 (m+ - m-)`; see `discriminant`."""
    return _along(discriminant(positive.means, negative.means).float())


def separating(dictionary: Dictionary, count: int, *, min_auc: float = 0.7) -> Method:
    """The `count` latents that separate the texts, those first that bring the concept about; see `separating_latents`.

    score(text) = sum_i z_i / spread_i, each latent in units of its spread over the search's texts.
    """

    def find(positive: TextSet, negative: TextSet) -> Candidate:
        first, second = _latents(positive), _latents(negative)
        group = separating_latents(
            _texts(first), _texts(second), count=count, decoder=dictionary.decoder, effect=dictionary.effect,
            min_auc=min_auc, alive=dictionary.alive,
        )  # fmt: skip
        return _of_latents(dictionary, group.latents, 1 / torch.tensor(group.scale).clamp_min(1e-12))

    return find


def sparse(dictionary: Dictionary, count: int) -> Method:
    """A probe on `count` latents; see `sparse_probe`."""

    def find(positive: TextSet, negative: TextSet) -> Candidate:
        probe = sparse_probe(_latents(positive), _latents(negative), count=count, alive=dictionary.alive)
        return _of_latents(dictionary, probe.latents, probe.weights)

    return find


def methods(dictionary: Dictionary | None, *, group: int, sparse_counts: tuple[int, ...]) -> dict[str, Method]:
    """All methods by name; without a dictionary those of the stream alone.

    Args:
        dictionary: of the hook.
        group: latents of `latents`.
        sparse_counts: latents of each sparse probe.

    Example:
        >>> list(methods(None, group=8, sparse_counts=(1, 4)))
        ['means', 'start-means', 'linear-probe']
        >>> some = Dictionary(torch.eye(4), torch.ones(4, dtype=torch.bool))
        >>> list(methods(some, group=8, sparse_counts=(1, 4)))[3:]
        ['latents', 'sparse-probe-1', 'sparse-probe-4']
    """
    found: dict[str, Method] = {"means": means, "start-means": start_means, "linear-probe": linear_probe}
    if dictionary is not None:
        found["latents"] = separating(dictionary, group)
        found |= {f"sparse-probe-{count}": sparse(dictionary, count) for count in sparse_counts}
    return found


def without_effects(dictionary: Dictionary | None, *, group: int, sparse_counts: tuple[int, ...]) -> dict[str, Method]:
    """The same methods for a null: latents by their AUC alone, and however badly they separate."""
    found = methods(dictionary, group=group, sparse_counts=sparse_counts)
    if dictionary is not None:
        found["latents"] = separating(replace(dictionary, effect=None), group, min_auc=0.0)
    return found


@dataclass(frozen=True)
class HeldOut:
    """An AUC on texts that a search never saw, with its nulls.

    Args:
        auc: of the candidate.
        shuffled: mean AUC of the same search with the labels of its texts shuffled, and its spread.
        random: mean AUC of random directions, or of as many random latents, and its spread.
    """

    auc: float
    shuffled: tuple[float, float]
    random: tuple[float, float]


def text_auc(candidate: Candidate, positive: TextSet, negative: TextSet) -> float:
    """How well the candidate's scores tell two sets of texts apart."""
    return float(auc(candidate.scores(positive)[:, None], candidate.scores(negative)[:, None])[0])


def held_out(
    candidate: Candidate,
    null: Method,
    search: tuple[TextSet, TextSet],
    test: tuple[TextSet, TextSet],
    dictionary: Dictionary | None,
    *,
    seed: int = 0,
) -> HeldOut:
    """A candidate's AUC on held-out texts, that of its method on shuffled labels, and that of random directions.

    Labels are shuffled before the search, and the true ones judge what it finds: a spread of this null that is wide
    says that any direction the texts vary along tells them apart now and then.

    Args:
        candidate: what a method found in `search`.
        null: the method, to search again.
        search: texts that show the concept, and others.
        test: the same, held out.
        dictionary: of the candidate's latents.
        seed: of the shuffles and draws.

    Raises:
        ValueError: the method finds nothing under shuffled labels.
    """
    random = torch.Generator().manual_seed(seed)
    pooled, shown = search[0].with_texts_of(search[1]), len(search[0])
    shuffled = []
    for _ in range(SHUFFLES):
        order = torch.randperm(len(pooled), generator=random)
        found = null(pooled.take(order[:shown]), pooled.take(order[shown:]))
        shuffled.append(text_auc(found, *test))
    drawn = [text_auc(_drawn(candidate, pooled, dictionary, random), *test) for _ in range(RANDOM_DRAWS)]
    return HeldOut(text_auc(candidate, *test), _spread(shuffled), _spread(drawn))


def _drawn(candidate: Candidate, texts: TextSet, dictionary: Dictionary | None, random: torch.Generator) -> Candidate:
    """A random direction, or as many random latents as the candidate has."""
    if not candidate.latents:
        return _along(torch.randn(texts.means.shape[1], generator=random))
    assert dictionary is not None
    assert texts.latents is not None
    alive = dictionary.alive.nonzero()[:, 0]
    chosen = alive[torch.randperm(len(alive), generator=random)[: len(candidate.latents)]]
    spread = texts.latents[:, chosen].std(0).clamp_min(1e-12)
    return _of_latents(dictionary, tuple(chosen.tolist()), 1 / spread)


def _along(direction: Float[Tensor, "d_model"]) -> Candidate:
    unit = unit_rows(direction[None])
    return Candidate(unit, unit[0])


def _of_latents(dictionary: Dictionary, latents: tuple[int, ...], weights: Tensor) -> Candidate:
    return Candidate(unit_rows(dictionary.decoder[list(latents)].float()), weights, latents)


def _texts(rows: Float[Tensor, "text width"]) -> TextActivations:
    return TextActivations(rows, torch.arange(len(rows)))


def _latents(texts: TextSet) -> Float[Tensor, "text latent"]:
    assert texts.latents is not None, "a search in latents needs a dictionary"
    return texts.latents


def _spread(values: list[float]) -> tuple[float, float]:
    found = torch.tensor(values)
    return float(found.mean()), float(found.std())
