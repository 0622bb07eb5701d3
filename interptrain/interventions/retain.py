"""Retain: what the model says on probe texts stays what it was, by a KL term beside the user's loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from interptrain.interventions.added import add_gradient_
from interptrain.interventions.probes import Batch, ProbeTexts, read_logits

if TYPE_CHECKING:
    from interptrain.interventions.intervention import Context


@dataclass(frozen=True, eq=False)
class Retain:
    """Adds the gradient of a KL term on probe texts; see `retain`."""

    probes: tuple[Batch, ...] = field(repr=False)
    weight: float

    def attach(self, context: Context) -> None:
        """Read the probe texts as they are now, and add the term's gradient before every step.

        Raises:
            ValueError: the probe texts are not understood, the model returns no logits, or something is retained
                already.
        """
        context.needs_whole_parameters("retain")
        texts = ProbeTexts("retain", context, self.probes, read_logits, what="logits")

        def add(_loss_scale: Tensor | float) -> None:
            with texts.next() as (now, before):
                start = before.log_softmax(-1)
                kl = (start.exp() * (start - now.log_softmax(-1))).sum(-1).mean()
                add_gradient_(self.weight * kl, context.trainable, "retain", context.gradient_scale)
            context.figures["retain/kl"] = kl.detach()

        context.before_step(add, "retain")


def retain(probes: Iterable[Mapping[str, Tensor]], weight: float = 1.0) -> Retain:
    r"""Keep the model's words on probe texts near those before training.

        L' = L + weight mean_p KL(p_theta0(. | p) || p_theta(. | p))

    The plain way to keep what is not to change, and the one to compare others with. Nothing of a concept is in it.
    One batch of the texts is read a step; the logits before training are kept, `[counted token, vocabulary]`.

    Args:
        probes: batches of neutral texts, as `hold` takes them.
        weight: of the term beside the user's loss.

    Raises:
        ValueError: a weight that is not positive and finite.

    Example:
        >>> import torch
        >>> texts = [{"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}]
        >>> retain(texts, 0.5)
        Retain(weight=0.5)
    """
    if not (math.isfinite(weight) and weight > 0):
        raise ValueError(f"retain needs a finite weight above 0, found {weight}")
    return Retain(tuple(probes), float(weight))
