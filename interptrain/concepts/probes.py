"""The probes of texts by name, each fitted to two sets of texts in one way: `fit_probe("attention", shown, absent)`.

    linear-mean, linear-max   one direction for every token (Fisher's discriminant), its scores pooled over the text
    mean                      logistic regression on the text's mean activation, L2 by validation
    attention                 softmax attention over the tokens, a query and a value a head
    latents-k                 logistic regression on the mean of the k latents of an SAE that differ most, L2
    latents-l1                the same on all of its latents that fire, L1
    latents-attention         attention over the same k latents

The linear probes are the discriminant that runs log as `probe/SET`: closed form, nothing to choose by validation, and
each class enters by its own mean, however large it is. A max is no logistic regression's own score; as a rule of thumb
it finds a few tokens that show a concept, and a mean many that show it a little.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from interptrain.concepts.attention_fit import fit_attention
from interptrain.concepts.attention_probe import AttentionProbe
from interptrain.concepts.contrast import TextActivations
from interptrain.concepts.labelled import Labelled, class_weights
from interptrain.concepts.latent_probe import LatentProbe, chosen, separated_most
from interptrain.concepts.logistic import lasso_logistic, least_l1, ridge_logistic, validated
from interptrain.concepts.segments import segment_mean
from interptrain.concepts.standard import Standard
from interptrain.concepts.text_probe import Pool, PooledProbe, TextProbe
from interptrain.meters.linear_probe import discriminant

L2 = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4)
L1 = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)  # of the least that makes every weight zero


@dataclass(frozen=True)
class Fitting:
    """How probes are fitted.

    Args:
        seed: of the parts held out and of the first weights.
        parts: to hold out in turn, for penalties and early stopping.
        heads: of an attention probe.
        steps: of its training, at most.
        rate: Adam's.
        attention_l2: its penalties, to choose from.
        sparse: how many latents `latents-k` and `latents-attention` look at.
    """

    seed: int = 0
    parts: int = 4
    heads: int = 4
    steps: int = 150
    rate: float = 0.03
    attention_l2: tuple[float, ...] = (0.03, 3e-3, 3e-4)
    sparse: int = 16


class Fitter(Protocol):
    """How a probe comes of labelled texts."""

    def __call__(self, texts: Labelled, fitting: Fitting, decoder: Tensor | None) -> TextProbe:
        """Fit one."""
        ...


def fit_probe(
    name: str,
    positive: TextActivations,
    negative: TextActivations,
    *,
    fitting: Fitting | None = None,
    decoder: Float[Tensor, "latent d_model"] | None = None,
) -> TextProbe:
    """Fit a probe that tells two sets of texts apart; both sets weigh the same, whatever their sizes.

    Args:
        name: one of `PROBES`.
        positive: texts that show the concept: activations, or latents where the name says so.
        negative: texts that do not.
        fitting: how.
        decoder: of the dictionary whose latents these are, in any scale.

    Raises:
        ValueError: an unknown name, fewer than two texts in a set, widths that differ, sets that are alike, or
            latents without their decoder.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> text = torch.arange(8).repeat_interleave(3)
        >>> absent = TextActivations(torch.randn(24, 4, generator=generator), text)
        >>> shown = TextActivations(torch.randn(24, 4, generator=generator) + torch.tensor([4.0, 0, 0, 0]), text)
        >>> probe = fit_probe("mean", shown, absent)
        >>> bool((probe.score(shown) > 0).all()), bool(probe.directions()[0, 0] > 0.9)
        (True, True)
    """
    if name not in PROBES:
        raise ValueError(f"unknown probe '{name}'; there are {', '.join(PROBES)}")
    texts = Labelled.of(positive, negative)
    return fit_labelled(name, texts, fitting=fitting or Fitting(), decoder=decoder)


def fit_labelled(name: str, texts: Labelled, *, fitting: Fitting, decoder: Tensor | None = None) -> TextProbe:
    """The same of texts with their labels, such as shuffled ones.

    Raises:
        ValueError: as `fit_probe` does.
    """
    if reads_latents(name):
        if decoder is None:
            raise ValueError(f"'{name}' looks at latents: give the decoder of their dictionary")
        if len(decoder) != texts.values.shape[1]:
            raise ValueError(
                f"'{name}' was given {texts.values.shape[1]} latents and a decoder of {len(decoder)} rows; "
                "both must be of one dictionary"
            )
    return PROBES[name](texts, fitting, decoder)


def reads_latents(name: str) -> bool:
    """Whether a probe of this name takes an SAE's latents rather than the stream."""
    return name.startswith("latents")


def parameters_of(probe: TextProbe) -> int:
    """How many numbers were fitted."""
    inner = probe.inner if isinstance(probe, LatentProbe) else probe
    return sum(value.numel() for value in vars(inner).values() if isinstance(value, Tensor))


def _linear(texts: Labelled, pool: Pool) -> PooledProbe:
    shown = texts.positive[texts.text]
    weight = discriminant(texts.values[shown], texts.values[~shown]).to(texts.values)
    if not weight.norm() > 0:
        raise ValueError("the two sets of texts have the same mean: there is nothing to tell them apart by")
    probe = PooledProbe(weight, weight.new_zeros(()), pool)
    scores = probe.score(TextActivations(texts.values, texts.text))
    middle = (scores[texts.positive].mean() + scores[~texts.positive].mean()) / 2
    return PooledProbe(weight, -middle, pool)


def _mean_pooled(texts: Labelled, fitting: Fitting) -> PooledProbe:
    means = segment_mean(texts.values, texts.text, len(texts))
    standard = Standard.of(means, class_weights(texts.positive))
    solution, _ = validated(ridge_logistic, standard(means), texts.positive, L2, parts=fitting.parts, seed=fitting.seed)
    return _pooled(solution, standard)


def _attention(texts: Labelled, fitting: Fitting, *, each: bool) -> AttentionProbe:
    return fit_attention(
        texts, heads=fitting.heads, steps=fitting.steps, rate=fitting.rate, penalties=fitting.attention_l2,
        parts=fitting.parts, seed=fitting.seed, each=each,
    )  # fmt: skip


def _latents(texts: Labelled, fitting: Fitting, decoder: Tensor | None, way: str) -> LatentProbe:
    assert decoder is not None
    means = segment_mean(texts.values, texts.text, len(texts))
    alive = int((texts.values != 0).any(0).sum())
    found, difference = separated_most(means, texts.positive, alive if way == "l1" else fitting.sparse)
    if len(found) == 0:
        raise ValueError("no latent differs between the two sets of texts: there is nothing to tell them apart by")
    if way == "attention":
        own = Labelled(texts.values[:, found], texts.text, texts.positive)
        return chosen(found, difference, decoder, _attention(own, fitting, each=False))
    weights = class_weights(texts.positive)
    standard = Standard.of(means[:, found], weights, each=False)
    inputs = standard(means[:, found])
    if way == "k":
        solution, _ = validated(ridge_logistic, inputs, texts.positive, L2, parts=fitting.parts, seed=fitting.seed)
    else:
        most = least_l1(inputs, texts.positive, weights)
        penalties = [share * most for share in L1]
        solution, _ = validated(
            lasso_logistic, inputs, texts.positive, penalties, parts=fitting.parts, seed=fitting.seed
        )
    probe = _pooled(solution, standard)
    kept = probe.weight != 0
    return chosen(found[kept], difference, decoder, PooledProbe(probe.weight[kept], probe.bias, "mean"))


def _pooled(solution: tuple[Tensor, Tensor], standard: Standard) -> PooledProbe:
    """The same in the units of the activations."""
    weight = solution[0] / standard.scale.double()
    bias = solution[1] - weight @ standard.centre.double()
    return PooledProbe(weight.float(), bias.float(), "mean")


PROBES: Mapping[str, Fitter] = {
    "linear-mean": lambda texts, fitting, decoder: _linear(texts, "mean"),
    "linear-max": lambda texts, fitting, decoder: _linear(texts, "max"),
    "mean": lambda texts, fitting, decoder: _mean_pooled(texts, fitting),
    "attention": lambda texts, fitting, decoder: _attention(texts, fitting, each=True),
    "latents-k": lambda texts, fitting, decoder: _latents(texts, fitting, decoder, "k"),
    "latents-l1": lambda texts, fitting, decoder: _latents(texts, fitting, decoder, "l1"),
    "latents-attention": lambda texts, fitting, decoder: _latents(texts, fitting, decoder, "attention"),
}
