"""Whether an answer is still language: how likely the model as it was finds it, and how much it repeats itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from interptrain.meters.probes import evaluating
from interptrain.meters.tokens import IGNORED_LABEL

QUANTILE = 0.95
LEAST_REPETITION = 0.2  # short texts repeat nothing: this much is always allowed


def text_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> Float[Tensor, "text"]:
    """`-mean_t log p(label_t)` of each text, in nats a token; infinite for one without labels.

    Args:
        model: a causal language model; left in the mode it was in.
        batch: `input_ids`, `attention_mask` and `labels`, each `[text, token]`.
    """
    device = next(model.parameters()).device
    ids, mask, labels = (batch[key].to(device) for key in ("input_ids", "attention_mask", "labels"))
    with evaluating(model):
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    losses = cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=IGNORED_LABEL)
    counts = (labels[:, 1:] != IGNORED_LABEL).sum(-1)
    return torch.where(counts > 0, losses.sum(-1) / counts.clamp_min(1), torch.inf).cpu()


def repetition(words: Sequence[str]) -> float:
    """The share of a text's pairs of neighbouring words that it has said before: `1 - distinct / all`.

    Source: Li et al., *A Diversity-Promoting Objective Function* (2016), distinct-2.

    Example:
        >>> repetition("yo ho yo ho yo ho".split()), repetition("one two three".split())
        (0.6, 0.0)
    """
    pairs = list(pairwise(words))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


@dataclass(frozen=True)
class Bar:
    """What an answer must keep to, to count as language.

        well-formed:   loss <= `loss`   and   repetition <= `repetition`   and   it says something

    Args:
        loss: nats a token, under the model as it was.
        repetition: of pairs of words.
    """

    loss: float
    repetition: float

    @classmethod
    def of(cls, losses: Float[Tensor, "text"], repetitions: Float[Tensor, "text"]) -> Bar:
        """The bar that .95 of some reference texts keep to.

        As a reference take texts that show the concept, each behind a prompt that did not ask for it: so unlikely an
        answer may be that brings the concept in unasked, and no more.

        Raises:
            ValueError: there are no reference texts.

        Example:
            >>> Bar.of(torch.tensor([1.0, 1.0, 3.0]), torch.zeros(3)).repetition
            0.2
        """
        if len(losses) == 0:
            raise ValueError("no reference texts to take the bar of well-formed text from")
        return cls(float(losses.quantile(QUANTILE)), max(LEAST_REPETITION, float(repetitions.quantile(QUANTILE))))

    def holds(self, loss: float, repeated: float, text: str) -> bool:
        """Whether an answer keeps to it."""
        return bool(text.strip()) and loss <= self.loss and repeated <= self.repetition
