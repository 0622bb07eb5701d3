"""How an attention probe is fitted: every held-out part and every penalty at once, stopped where those do best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interptrain.concepts.attention_probe import AttentionProbe
from interptrain.concepts.labelled import Labelled, class_weights, folds
from interptrain.concepts.logistic import log_loss
from interptrain.concepts.segments import segment_softmax, segment_sum
from interptrain.concepts.standard import Standard
from interptrain.meters.linear_probe import discriminant

_NOISE = 0.01  # spread of what is added to the first q and v, over sqrt(width)
_STILL = 1e-12  # a spread of scores that is none
_SHARPEST = 3.0  # of the first heads: how many times the discriminant, whose scores have spread 1


@dataclass(frozen=True, eq=False)
class _Heads:
    """Several probes side by side, each with its own heads.

    Args:
        query: `q`.
        value: `v`.
        bias: `b`.
    """

    query: Float[Tensor, "probe head width"]
    value: Float[Tensor, "probe head width"]
    bias: Float[Tensor, "probe"]

    @classmethod
    def begun(cls, along: Float[Tensor, "probe width"], heads: int, seed: int) -> _Heads:
        """Between a linear probe's mean and its max: `q_h = beta_h w`, `v_h = w / H`, beta_h from 0 to 3, and noise."""
        generator = torch.Generator().manual_seed(seed)
        drawn = _NOISE * torch.randn(2, 1, heads, along.shape[1], generator=generator) / along.shape[1] ** 0.5
        sharpness = torch.linspace(0, _SHARPEST, heads)[:, None].to(along)
        query = sharpness * along[:, None] + drawn[0].to(along)
        value = along[:, None] / heads + drawn[1].to(along)
        bias = along.new_zeros(len(along))
        return cls(query.requires_grad_(), value.requires_grad_(), bias.requires_grad_())

    @property
    def parameters(self) -> list[Tensor]:
        """All that is trained."""
        return [self.query, self.value, self.bias]

    def scores(
        self, values: Float[Tensor, "token width"], text: Int[Tensor, "token"], texts: int
    ) -> Float[Tensor, "probe text"]:
        """What each probe says of each text, by two products in all."""
        logits, found = (values @ each.flatten(0, 1).T for each in (self.query, self.value))
        weighed = (segment_softmax(logits, text, texts) * found).unflatten(1, self.query.shape[:2]).sum(-1)
        return (segment_sum(weighed, text, texts) + self.bias).T

    def penalty(self) -> Float[Tensor, "probe"]:
        """`||q||^2 + ||v||^2` of each probe."""
        return (self.query.square() + self.value.square()).sum((1, 2))


def fit_attention(
    texts: Labelled,
    *,
    heads: int,
    steps: int,
    rate: float,
    penalties: Sequence[float],
    parts: int,
    seed: int,
    each: bool = True,
) -> AttentionProbe:
    """Fit an attention probe by full-batch Adam, with class weights and early stopping.

        min_{q, v, b}  sum_i c_i log(1 + exp(-y_i s_i)) + l2/2 (||q||^2 + ||v||^2)

    in standardised activations. The first heads are the linear probe `w` (Fisher's discriminant, its scores scaled to
    spread 1) pooled from a mean to nearly a max: begun at 0, a head hardly finds one token among hundreds. For each
    penalty and each held-out part a probe is trained on the rest; the penalty and the step at which the class-weighted
    log loss of the held-out parts is least are then used on all texts. The same seed gives the same probe.

    Args:
        texts: of both classes.
        heads: how many.
        steps: at most.
        rate: Adam's.
        penalties: `l2`, to choose from.
        parts: to hold out in turn.
        seed: of the first weights and the parts.
        each: standardise each dimension by itself; else all by one scale.
    """
    standard = Standard.of(texts.values, texts.token_weights(class_weights(texts.positive)), each=each)
    values, count = standard(texts.values), len(texts)
    held = folds(texts.positive, parts, seed)
    parts_held = held.unique().tolist()
    ways = [(l2, part) for l2 in penalties for part in parts_held]
    fitted = torch.stack([class_weights(texts.positive, held != part) for _, part in ways])
    rest = torch.stack([class_weights(texts.positive, held == part) for _, part in ways])
    l2 = values.new_tensor([each_l2 for each_l2, _ in ways])
    begun = {part: _along(values, texts, (held != part)[texts.text]) for part in parts_held}
    probes = _Heads.begun(torch.stack([begun[part] for _, part in ways]), heads, seed)
    losses = _train(probes, values, texts, count, fitted, rest, l2, steps=steps, rate=rate)
    held_out = losses.unflatten(1, (len(penalties), -1)).mean(-1)  # [step, penalty]
    best = int(held_out.argmin())
    step, chosen = best // len(penalties), penalties[best % len(penalties)]
    probe = _Heads.begun(_along(values, texts, torch.ones_like(texts.text, dtype=torch.bool))[None], heads, seed)
    everything = class_weights(texts.positive)[None]
    _train(probe, values, texts, count, everything, everything, l2.new_tensor([chosen]), steps=step, rate=rate)
    query, value, bias = (parameter.detach()[0] for parameter in probe.parameters)
    # q . (x - m) / s: the part with m is the same for every token of a text, so attention does not see it
    return AttentionProbe(
        query / standard.scale, value / standard.scale, bias - (value / standard.scale).sum(0) @ standard.centre
    )


def _along(values: Tensor, texts: Labelled, chosen: Tensor) -> Float[Tensor, "width"]:
    """The discriminant of some tokens, scaled so that their scores have spread 1."""
    shown = texts.positive[texts.text]
    weight = discriminant(values[chosen & shown], values[chosen & ~shown]).to(values)
    return weight / (values[chosen] @ weight).std().clamp_min(_STILL)


def _train(
    probes: _Heads,
    values: Tensor,
    texts: Labelled,
    count: int,
    fitted: Float[Tensor, "probe text"],
    rest: Float[Tensor, "probe text"],
    l2: Float[Tensor, "probe"],
    *,
    steps: int,
    rate: float,
) -> Float[Tensor, "step probe"]:
    """Train in place; the loss of what was held out before the first step and after each."""
    optimizer = torch.optim.Adam(probes.parameters, lr=rate)
    found = []
    with torch.enable_grad():
        for step in range(steps + 1):
            scores = probes.scores(values, texts.text, count)
            found.append(log_loss(scores.detach(), texts.positive, rest))
            if step == steps:
                break
            loss = log_loss(scores, texts.positive, fitted) + l2 / 2 * probes.penalty()
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
    return torch.stack(found)
