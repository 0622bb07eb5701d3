"""Pooling over texts of any length: one row a token, and which text each belongs to; nothing is padded."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def segment_sum(
    values: Float[Tensor, "token column"], text: Int[Tensor, "token"], texts: int
) -> Float[Tensor, "text column"]:
    """The sum over each text's tokens.

    Example:
        >>> segment_sum(torch.tensor([[1.0], [2.0], [5.0]]), torch.tensor([0, 0, 1]), 2)
        tensor([[3.],
                [5.]])
    """
    return values.new_zeros(texts, values.shape[1]).index_add(0, text, values)


def segment_mean(
    values: Float[Tensor, "token column"], text: Int[Tensor, "token"], texts: int
) -> Float[Tensor, "text column"]:
    """The mean over each text's tokens."""
    return segment_sum(values, text, texts) / segment_lengths(text, texts).to(values)[:, None]


def segment_max(
    values: Float[Tensor, "token column"], text: Int[Tensor, "token"], texts: int
) -> Float[Tensor, "text column"]:
    """The largest value of each text's tokens."""
    lowest = values.new_full((texts, values.shape[1]), -torch.inf)
    return lowest.scatter_reduce(0, text[:, None].expand_as(values), values, "amax")


def segment_softmax(
    logits: Float[Tensor, "token column"], text: Int[Tensor, "token"], texts: int
) -> Float[Tensor, "token column"]:
    """Softmax over each text's tokens: `a_t = exp(l_t) / sum_{t' in text} exp(l_t')`.

    Example:
        >>> segment_softmax(torch.tensor([[0.0], [0.0], [9.0]]), torch.tensor([0, 0, 1]), 2).flatten()
        tensor([0.5000, 0.5000, 1.0000])
    """
    most = segment_max(logits.detach(), text, texts)
    raised = (logits - most[text]).exp()
    return raised / segment_sum(raised, text, texts)[text]


def segment_lengths(text: Int[Tensor, "token"], texts: int) -> Int[Tensor, "text"]:
    """How many tokens each text has."""
    return torch.bincount(text, minlength=texts)
