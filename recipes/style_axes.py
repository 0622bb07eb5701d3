"""Where a style is spoken, without an SAE: the axes along which the same answers differ behind the last layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interptrain.concepts import ConceptBank
from interptrain.concepts.contrast import collect
from interptrain.recipes.examples import Example
from interptrain.recipes.loading import blocks_of
from interptrain.recipes.voice import Voice


def leading_axes(differences: Float[Tensor, "text d_model"], count: int) -> Float[Tensor, "axis d_model"]:
    """The orthonormal axes that hold most of the differences' energy: rows of `V^T` in `X = U S V^T`, not centred.

    Raises:
        ValueError: there are fewer texts or dimensions than axes.

    Example:
        >>> leading_axes(torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), 1).abs()
        tensor([[1., 0., 0.]])
    """
    if count > min(differences.shape):
        raise ValueError(f"asked for {count} axes of {differences.shape[0]} texts of width {differences.shape[1]}")
    return torch.linalg.svd(differences, full_matrices=False).Vh[:count]


def style_axes(
    voice: Voice, name: str, shown: Sequence[Example], absent: Sequence[Example], *, count: int
) -> ConceptBank:
    """A concept of `count` axes behind the last block, from the same answers in two styles, text by text.

        X_n = mean_t h(shown_n) - mean_t h(absent_n)

    Args:
        voice: the model before training.
        name: of the concept.
        shown: in the style, in the order of the others.
        absent: the same answers without it.
        count: of axes.

    Raises:
        ValueError: there are too few texts.
    """
    hook = f"blocks.{blocks_of(voice.model) - 1}.hook_resid_post"
    means = [collect(voice.model, hook, voice.batches(side)).means() for side in (shown, absent)]
    axes = leading_axes(means[0] - means[1], count)
    return ConceptBank.from_directions({name: axes}, hook=hook, source={"kind": "axes of paired differences"})
