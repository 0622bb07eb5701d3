"""The attention probe: each head looks for the tokens that show a concept, and weighs what it finds there."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from interptrain.concepts.contrast import TextActivations
from interptrain.concepts.segments import segment_softmax
from interptrain.concepts.text_probe import distinct_rows, summed, text_count


@dataclass(frozen=True, eq=False)
class AttentionProbe:
    """A classifier of texts by softmax attention over their tokens.

        s = b + sum_h sum_t a_ht (v_h . x_t)        a_ht = exp(q_h . x_t) / sum_{t' in text} exp(q_h . x_t')

    With `q = 0` it is the mean-pool probe. It knows no positions: any order of a text's tokens scores the same.

    Sources: McKenzie et al., *Detecting High-Stakes Interactions with Activation Probes* (2025); Shabalin and Belrose,
    *Attention Probes* (EleutherAI, 2025), whose learnt penalty on positions is left out.

    Args:
        query: `q_h`, what a head looks for.
        value: `v_h`, how it weighs what it finds.
        bias: `b`.

    Example:
        >>> import torch
        >>> probe = AttentionProbe(torch.tensor([[99.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor(0.0))
        >>> texts = TextActivations(torch.tensor([[0.0, 5.0], [9.0, 3.0]]), torch.tensor([0, 0]))
        >>> probe.weights(texts), probe.score(texts)
        (tensor([[0.],
                [1.]]), tensor([3.]))
    """

    query: Float[Tensor, "head width"]
    value: Float[Tensor, "head width"]
    bias: Float[Tensor, ""]

    @property
    def width(self) -> int:
        """Of the activations that it takes."""
        return self.query.shape[1]

    def weights(self, texts: TextActivations) -> Float[Tensor, "token head"]:
        """`a_ht`: how much each head looks at each token; they sum to 1 over a text."""
        values = texts.values
        return segment_softmax(values @ self.query.to(values).T, texts.text.to(values.device), text_count(texts))

    def contributions(self, texts: TextActivations) -> Float[Tensor, "token"]:
        """`sum_h a_ht (v_h . x_t)`: what each token adds to its text's score."""
        return (self.weights(texts) * (texts.values @ self.value.to(texts.values).T)).sum(-1)

    def score(self, texts: TextActivations) -> Float[Tensor, "text"]:
        """`b` and the sum of the contributions."""
        return summed(self.contributions(texts), texts) + self.bias.to(texts.values)

    def directions(self) -> Float[Tensor, "direction width"]:
        """The heads' values, made unit, the longest first; of heads that look for nearly the same, one."""
        return distinct_rows(self.value)
