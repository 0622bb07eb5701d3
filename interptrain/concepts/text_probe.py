"""What a probe of texts is, and the linear ones: a score of each token, pooled over the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from interptrain.concepts.bank import unit_rows
from interptrain.concepts.contrast import TextActivations, auc
from interptrain.concepts.segments import segment_lengths, segment_max, segment_sum

Pool = Literal["mean", "max"]
MAX_COSINE = 0.9  # between two of a probe's directions: those that lie closer are one


@runtime_checkable
class TextProbe(Protocol):
    """A classifier of texts by their activations, whatever it was fitted by."""

    @property
    def width(self) -> int:
        """Of the activations that it takes: the stream's, or how many latents a dictionary has."""
        ...

    def contributions(self, texts: TextActivations) -> Float[Tensor, "token"]:
        """What each token adds to its text's score; their sum and the bias are the score."""
        ...

    def score(self, texts: TextActivations) -> Float[Tensor, "text"]:
        """How much each text shows the concept; 0 is even odds."""
        ...

    def directions(self) -> Float[Tensor, "direction d_model"]:
        """Unit directions in the stream that raise the score, for a bank; the strongest first."""
        ...


@dataclass(frozen=True, eq=False)
class PooledProbe:
    """A linear score of each token, pooled over the text.

        s = b + mean_t w . x_t        or        s = b + max_t w . x_t

    Args:
        weight: `w`.
        bias: `b`.
        pool: how.

    Example:
        >>> probe = PooledProbe(torch.tensor([1.0, 0.0]), torch.tensor(-1.0), "max")
        >>> probe.score(TextActivations(torch.tensor([[0.0, 9.0], [3.0, 9.0]]), torch.tensor([0, 0])))
        tensor([2.])
    """

    weight: Float[Tensor, "width"]
    bias: Float[Tensor, ""]
    pool: Pool

    @property
    def width(self) -> int:
        """Of the activations that it takes."""
        return len(self.weight)

    def contributions(self, texts: TextActivations) -> Float[Tensor, "token"]:
        """`w . x_t` over the text's length; or of the highest token alone, shared where several are."""
        count = text_count(texts)
        tokens, text = texts.values @ self.weight.to(texts.values), texts.text.to(texts.values.device)
        if self.pool == "mean":
            return tokens / segment_lengths(text, count)[text]
        highest = (tokens[:, None] == segment_max(tokens[:, None], text, count)[text]).to(tokens)
        return tokens * (highest / segment_sum(highest, text, count)[text])[:, 0]

    def score(self, texts: TextActivations) -> Float[Tensor, "text"]:
        """`b` and the sum of the contributions."""
        return summed(self.contributions(texts), texts) + self.bias.to(texts.values)

    def directions(self) -> Float[Tensor, "direction width"]:
        """`w`, made unit."""
        return unit_rows(self.weight[None])


def text_count(texts: TextActivations) -> int:
    """How many texts there are, counted where their numbers lie."""
    return int(texts.text.max()) + 1


def summed(contributions: Float[Tensor, "token"], texts: TextActivations) -> Float[Tensor, "text"]:
    """The sum over each text."""
    return segment_sum(contributions[:, None], texts.text.to(contributions.device), text_count(texts))[:, 0]


def probe_auc(probe: TextProbe, positive: TextActivations, negative: TextActivations) -> float:
    """How often a positive text scores above a negative one: `P(s+ > s-) + P(s+ = s-) / 2`.

    Example:
        >>> probe = PooledProbe(torch.tensor([1.0]), torch.tensor(0.0), "mean")
        >>> one, other = (TextActivations(torch.tensor([[x]]), torch.tensor([0])) for x in (2.0, 1.0))
        >>> probe_auc(probe, one, other)
        1.0
    """
    with torch.no_grad():
        first, second = (probe.score(each)[:, None] for each in (positive, negative))
    return float(auc(first, second)[0])


def distinct_rows(rows: Float[Tensor, "row width"], *, max_cosine: float = MAX_COSINE) -> Float[Tensor, "kept width"]:
    """Unit rows without zero ones and those that lie within a cosine of a longer one, longest first.

    Example:
        >>> distinct_rows(torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 0.1], [0.0, 0.0]]))
        tensor([[1., 0.],
                [0., 1.]])
    """
    lengths = rows.norm(dim=-1)
    kept: list[Tensor] = []
    for number in lengths.argsort(descending=True).tolist():
        if lengths[number] > 0:
            unit = rows[number] / lengths[number]
            if all(abs(float(unit @ other)) <= max_cosine for other in kept):
                kept.append(unit)
    return torch.stack(kept) if kept else rows[:0]
