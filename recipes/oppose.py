r"""Oppose: answers that are to go are made less likely than they were, with a bound.

    L' = L + weight 2/beta mean_a log(1 + (p_theta(a) / p_theta0(a))^beta)

Negative preference optimisation (Zhang et al. 2024): gradient ascent on the answers' loss whose pull fades as they
become unlikely, so that it does not run away. The baseline that knows no concept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from interptrain.interventions.added import add_gradient_
from interptrain.interventions.probes import ProbeTexts

if TYPE_CHECKING:
    from interptrain.interventions import Context

BETA = 0.1  # the paper's


@dataclass(frozen=True, eq=False)
class Oppose:
    """Adds the gradient of the bounded ascent.

    Args:
        answers: batches of questions with the answers that are to go, labelled.
        weight: of the term beside the loss.
    """

    answers: Sequence[Mapping[str, Tensor]] = field(repr=False)
    weight: float = 1.0

    def attach(self, context: Context) -> None:
        """Read how likely the answers are now, and add the term's gradient before every step."""
        texts = ProbeTexts("oppose", context, self.answers, log_likelihoods, what="log-likelihoods")

        def add(_loss_scale: Tensor | float) -> None:
            with texts.next() as (now, before):
                term = 2 / BETA * softplus(BETA * (now - before)).mean()
                add_gradient_(self.weight * term, context.trainable, "oppose", context.gradient_scale)
            context.figures["oppose/fallen"] = (before - now).detach().mean()

        context.before_step(add, "oppose")


def log_likelihoods(
    model: nn.Module, batch: Mapping[str, Tensor], counted: Bool[Tensor, "batch token"]
) -> Float[Tensor, "batch 1"]:
    """`log p(a)` of each text's answer, its labelled tokens, in nats."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
    following = batch["input_ids"].roll(-1, dims=-1)
    each = logits.log_softmax(-1).gather(-1, following[..., None])[..., 0]
    return torch.where(counted, each, 0.0).sum(-1, keepdim=True)
