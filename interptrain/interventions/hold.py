"""Hold: after each step the parameters go back until a concept is no more present on probe texts than at the start."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interptrain.interventions.added import gradients_of
from interptrain.interventions.directions import Directions
from interptrain.interventions.probes import Batch, ProbeTexts, Read, read_logits
from interptrain.projection import full_precision

if TYPE_CHECKING:
    from interptrain.interventions.intervention import Context


@dataclass(frozen=True, eq=False)
class Hold:
    r"""Moves the parameters back along the gradient of a concept's read-out; see `hold`."""

    concept: str
    probes: tuple[Batch, ...] = field(repr=False)
    words: tuple[int, ...] | None
    hooks: tuple[str, ...] | None
    margin: float
    steps: int

    def attach(self, context: Context) -> None:
        """Read the probe texts as they are now, and hold them there after every step.

        Raises:
            ValueError: the bank has no such concept, or none at a hook, or it is held already; nobody says when the
                optimizer steps; or the probe texts or the words are not understood.
        """
        context.needs_whole_parameters("hold")
        name = f"hold/{self.concept}"
        context.bank.rows(self.concept)  # also where words stand for it: the alarm reads its directions
        context.suppressed.add(self.concept)
        read = _words(self.words) if self.words is not None else _directions(self, context)
        context.after_step(lambda: self._move_back(context, texts, name), "hold")
        texts = ProbeTexts(name, context, self.probes, read, what=f"words {self.words}, hooks {self.hooks}")

    @torch.no_grad()
    @full_precision()
    def _move_back(self, context: Context, texts: ProbeTexts, name: str) -> None:
        for number in range(self.steps):
            with texts.next() as (now, before):
                excess = (now - before - self.margin).clamp_min(0).mean()
                pairs = gradients_of(excess, context.trainable, name)
            norm = torch.stack([gradient.float().square().sum() for _, gradient in pairs]).sum().sqrt()
            length = (excess / norm).nan_to_num(nan=0.0, posinf=0.0)  # where nothing is to be done, or nothing can be
            for parameter, gradient in pairs:
                step = torch.where(length > 0, length * (gradient / norm), 0.0)
                parameter.sub_(step.to(parameter.dtype))
            if number == 0:
                context.figures |= {f"{name}/excess": excess.detach(), f"{name}/moved": length}


def hold(
    concept: str,
    probes: Iterable[Mapping[str, Tensor]],
    *,
    words: Sequence[int] | None = None,
    hooks: Sequence[str] | None = None,
    margin: float = 0.0,
    steps: int = 1,
) -> Hold:
    r"""Keep a concept on probe texts no higher than before training, text by text.

        L(theta)  = mean_{p,l} relu(z_pl(theta) - z_pl(theta_0) - margin),   z_pl = m_l . h_pl
        theta <- theta - L / ||dL/dtheta||^2 dL/dtheta                       (after each optimizer step)

    `m_l` is the concept's unit mean direction at its hook point `l`. The step back is the shortest along which `L`,
    were it as steep all the way, would come to 0 (a Polyak step); no text can pay for another, and what lowers the
    concept costs nothing. Where a projection blocks directions of the weights, this constrains what the weights do.
    One batch of the probe texts is read a step, with a forward and a backward pass.

    Args:
        concept: as the bank names it.
        probes: batches of neutral texts, with `input_ids`, `attention_mask` and `labels`; counted are the positions
            that predict a label, as `ProbeSets` counts them: best the first token of each answer.
        words: read by the log-odds `log p - log(1 - p)` of these token ids together, at the counted positions, instead
            of along the concept's directions.
        hooks: read the directions at these hook points only; by default at all of the concept's.
        margin: how much more is allowed, in the read-out's own units.
        steps: steps back after each optimizer step, on a batch of the texts each.

    Raises:
        ValueError: a margin that is negative or not finite, fewer than one step, no words or a negative one, or words
            and hooks together.

    Example:
        >>> import torch
        >>> texts = [{"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}]
        >>> hold("pirate", texts)
        Hold(concept='pirate', words=None, hooks=None, margin=0.0, steps=1)
    """
    if not (math.isfinite(margin) and margin >= 0):
        raise ValueError(f"the margin must be finite and 0 or more, found {margin}")
    if steps < 1:
        raise ValueError(f"hold needs at least one step back, found {steps}")
    if words is not None and (not len(words) or min(words) < 0):
        raise ValueError(f"hold by words needs at least one token id, and none below 0; found {list(words)}")
    if words is not None and hooks is not None:
        raise ValueError("words are read from the logits, and hooks would not be read; give one of the two")
    return Hold(
        concept, tuple(probes), None if words is None else tuple(words), None if hooks is None else tuple(hooks),
        float(margin), steps,
    )  # fmt: skip


def _directions(hold: Hold, context: Context) -> Read:
    """`z_pl = m_l . h_pl` at every hook point of the concept."""
    directions = Directions(context.bank, hold.concept, hold.hooks, mean=True)

    def read(model: nn.Module, batch: Batch, counted: Bool[Tensor, "batch token"]) -> Float[Tensor, "_ _"]:
        with directions.listening(model) as caught:
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            return caught(counted)

    return read


def _words(words: tuple[int, ...]) -> Read:
    """`log p - log(1 - p)` with `p` the total probability of some words."""

    def read(model: nn.Module, batch: Batch, counted: Bool[Tensor, "batch token"]) -> Float[Tensor, "_ 1"]:
        logits = read_logits(model, batch, counted)
        if max(words) >= logits.shape[-1] or len(set(words)) == logits.shape[-1]:
            raise ValueError(
                f"hold by words needs token ids below {logits.shape[-1]}, the size of the vocabulary, and not all of "
                f"them; found {len(set(words))} up to {max(words)}"
            )
        chosen = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        chosen[list(words)] = True
        inside, outside = (logits.masked_fill(left_out, -torch.inf).logsumexp(-1) for left_out in (~chosen, chosen))
        return (inside - outside)[:, None]

    return read
