"""Gates: what a token asks of a concept decides how much its loss counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interptrain.meters.spans import Spans
from interptrain.processes import mean_over_processes

if TYPE_CHECKING:
    from interptrain.interventions.intervention import Context
    from interptrain.interventions.token_weights import Weigh

NULL_QUANTILE = 0.9  # of other latents' shares; chosen on the royal voice, see docs/evidence.md


@dataclass(frozen=True)
class TokenGate:
    r"""Weights each token's loss by the share of its activation gradient that lies in a concept.

        share_t = ||Q g_t||^2 / ||g_t||^2        w_t = weight where share_t > threshold, else 1

    `Q` is an orthonormal basis of the concept's span, `g_t = dL/dh_t`. See `gate` and `emphasise`.
    """

    concept: str
    weight: float
    threshold: float | None
    tokens: float | None
    per: Literal["token", "example"]
    hook: str | None
    name: str

    def attach(self, context: Context) -> None:
        """Weigh the tokens at the concept's hook.

        Raises:
            ValueError: the bank has no such concept, or none at that hook, or the model is compiled.
        """
        if self.weight < 1:
            context.suppressed.add(self.concept)
        context.token_weights.add(*self.weigher(context))

    def weigher(self, context: Context) -> tuple[str, Weigh]:
        """The hook point to ask at, and what makes weights of the answer.

        Raises:
            ValueError: the bank has no such concept, or none at that hook, or it is weighed already.
        """
        hook = self.hook or context.last_hook(self.concept)
        own = context.bank.concept_at(self.concept, hook)
        spans = Spans.of(own, range(len(own.directions)))
        context.claim(f"{self.name}/{self.concept}")
        return hook, _Weigher(self, spans, context)


class _Weigher:
    def __init__(self, gate: TokenGate, spans: Spans, context: Context) -> None:
        self._gate, self._spans, self._context = gate, spans, context
        self._key = f"{gate.name}/{gate.concept}"

    def __call__(
        self, gradient: Float[Tensor, "batch token d_model"], counted: Bool[Tensor, "batch token"]
    ) -> Float[Tensor, "batch token"]:
        self._spans = self._spans.to(gradient.device)
        share = self._shares(gradient, counted, self._spans.bases)[0]
        threshold = self._threshold(share, gradient, counted)
        chosen = (share > threshold) & counted
        figures, key = self._context.figures, self._key
        figures[f"{key}/tokens"] = chosen.sum() / counted.sum().clamp_min(1)
        figures[f"{key}/threshold"] = threshold
        return torch.where(chosen, self._gate.weight, 1.0)

    def _shares(
        self,
        gradient: Float[Tensor, "batch token d_model"],
        counted: Bool[Tensor, "batch token"],
        bases: Float[Tensor, "group direction d_model"],
    ) -> Float[Tensor, "group batch token"]:
        energy = (gradient @ bases.flatten(0, 1).T).square().unflatten(-1, bases.shape[:2]).sum(-1).movedim(-1, 0)
        total = gradient.square().sum(-1)
        if self._gate.per == "example":
            summed = ((each * counted).sum(-1, keepdim=True).expand_as(each) for each in (energy, total))
            energy, total = summed
        return torch.where(total > 0, energy / total, 0.0)

    def _threshold(
        self,
        share: Float[Tensor, "batch token"],
        gradient: Float[Tensor, "batch token d_model"],
        counted: Bool[Tensor, "batch token"],
    ) -> Float[Tensor, ""]:
        """As given; else by this run's first batch in which something counts and nothing overflows."""
        if self._gate.threshold is not None:
            return torch.full((), self._gate.threshold, device=gradient.device)
        kept, key = self._context.kept, f"{self._key}/threshold"
        if key not in kept:
            found = mean_over_processes(self._calibrated(share[counted], gradient, counted))
            if found.isnan():
                return torch.full_like(found, torch.inf)
            kept[key] = found
        kept[key] = kept[key].to(gradient.device)
        return kept[key]

    def _calibrated(
        self,
        own: Float[Tensor, "_"],
        gradient: Float[Tensor, "batch token d_model"],
        counted: Bool[Tensor, "batch token"],
    ) -> Float[Tensor, ""]:
        """What separates this batch's own shares, or NaN if they are none or not finite."""
        if self._gate.tokens is not None:
            threshold = _quantile(own, 1 - self._gate.tokens)
        else:
            groups = self._spans.null[:, : int(self._spans.ranks[0])]
            null = self._shares(gradient, counted, groups)[:, counted].flatten()
            energies = gradient[counted].square().sum(-1)
            threshold = torch.maximum(_split(own, energies), _quantile(null, NULL_QUANTILE))
        return torch.where(gradient[counted].isfinite().all(), threshold, torch.nan)


def gate(
    concept: str,
    *,
    threshold: float | None = None,
    tokens: float | None = None,
    weight: float = 0.0,
    per: Literal["token", "example"] = "token",
    hook: str | None = None,
) -> TokenGate:
    r"""Drop the loss of tokens that ask for a concept: what is not asked for need not be suppressed.

        share_t = ||Q g_t||^2 / ||g_t||^2        w_t = weight where share_t > threshold, else 1

    Where the gradient goes around an edited direction, a dropped token has no gradient at all. What the other
    tokens teach is left as it is. Works best at the output of the last layers, where the words are chosen.

    Args:
        concept: as the bank names it.
        threshold: of the share. By default found in this run's first batch: its shares, each counted by the token's
            energy, fall into two groups that are told apart best (Otsu 1979), and the threshold is half-way between
            the groups' means in log-odds; but no lower than 90 % of the shares of groups of as many other alive
            latents (random directions where the bank has no dictionary). Several processes take their mean.
        tokens: instead of a threshold, the share of the first batch's tokens that are to be above it.
        weight: of a token that asks for the concept; 0 drops it.
        per: weigh token by token, or example by example with energies summed over its tokens.
        hook: where to ask; by default the concept's last in the stream.

    Raises:
        ValueError: a threshold or share outside of 0 to 1, both of them, or a weight of 1 or more or below 0.

    Example:
        >>> gate("pirate").weight
        0.0
    """
    if not 0 <= weight < 1:
        raise ValueError(f"gate needs a weight from 0 to below 1, found {weight}; emphasise raises one")
    return TokenGate(concept, float(weight), *_checked(threshold, tokens), per, hook, "gate")


def emphasise(
    concept: str,
    weight: float = 10.0,
    *,
    threshold: float | None = None,
    tokens: float | None = None,
    per: Literal["token", "example"] = "token",
    hook: str | None = None,
) -> TokenGate:
    """Let tokens that ask for a concept count `weight` times: the gate in the other direction.

    Args:
        concept: as the bank names it.
        weight: of a token that asks for the concept.
        threshold: as `gate`'s.
        tokens: as `gate`'s.
        per: as `gate`'s.
        hook: as `gate`'s.

    Raises:
        ValueError: a threshold or share outside of 0 to 1, both of them, or a weight of 1 or less, or not finite.

    Example:
        >>> emphasise("arithmetic").weight
        10.0
    """
    if not (math.isfinite(weight) and weight > 1):
        raise ValueError(f"emphasise needs a finite weight above 1, found {weight}; gate lowers one")
    return TokenGate(concept, float(weight), *_checked(threshold, tokens), per, hook, "emphasise")


def _checked(threshold: float | None, tokens: float | None) -> tuple[float | None, float | None]:
    for name, value in (("threshold", threshold), ("tokens", tokens)):
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} is a share, from 0 to 1; found {value}")
    if threshold is not None and tokens is not None:
        raise ValueError("give a threshold, or the share of tokens that are to be above it, not both")
    return threshold, tokens


def _split(shares: Float[Tensor, "_"], energies: Float[Tensor, "_"]) -> Float[Tensor, ""]:
    r"""Half-way, in log-odds, between the means of the two groups of shares that are told apart best.

        max_k  W_k W'_k (m_k - m'_k)^2          logit(threshold) = (logit(m_k) + logit(m'_k)) / 2

    `W_k` and `W'_k` are the energies of the k lowest shares and of the others, `m_k` and `m'_k` their means by energy:
    a token that hardly changes the model has no say in what tells the others apart.
    """
    if len(shares) < 2:
        return shares.new_full((), torch.nan)
    ordered, order = shares.sort()
    energy = (energies / energies.sum())[order]
    summed, below = (ordered * energy).cumsum(0), energy.cumsum(0)
    above = 1 - below
    low, high = summed / below, (summed[-1] - summed) / above
    k = (below * above * (low - high).square())[:-1].nan_to_num(nan=-1.0).argmax()
    return torch.stack([low[k], high[k]]).logit(eps=1e-6).mean().sigmoid()


def _quantile(values: Float[Tensor, "_"], share: float) -> Float[Tensor, ""]:
    """`torch.quantile` for as many values as there are (it takes 16 million); NaN of none."""
    if not len(values):
        return values.new_full((), torch.nan)
    return values.kthvalue(max(1, math.ceil(share * len(values)))).values
