"""A direction added to the stream while a model generates: what a concept does, as against what detects it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interptrain.sites.hooks import HookPoint

Place = Literal["throughout", "start"]
PLACES: tuple[Place, ...] = ("throughout", "start")


@contextmanager
def adding(
    model: nn.Module, hook: str, vector: Float[Tensor, "d_model"], place: Place = "throughout"
) -> Iterator[None]:
    r"""Add a vector to the stream while the model generates; afterwards it is as it was.

        throughout:   h'_t = h_t + v        at every token, the prompt's too
        start:        h'_t = h_t + v        at the last token of the prompt alone, where the answer is chosen

    A vector that makes the model begin in a manner need not let it go on: added throughout, it may begin for ever.

    Source: Turner et al., *Activation Addition* (2023); Panickssery et al., *Contrastive Activation Addition* (2023).

    Args:
        model: generates with a cache, prompts padded on the left and of two tokens or more, so that a pass of one
            token goes on with an answer.
        hook: where, e.g. `blocks.2.hook_resid_post`.
        vector: what is added.
        place: at which tokens.

    Raises:
        ValueError: the hook point is not in the model.
    """

    def change(activation: Tensor) -> Tensor:
        added = vector.to(activation)
        if place == "throughout":
            return activation + added
        if activation.shape[1] == 1:
            return activation
        return torch.cat([activation[:, :-1], activation[:, -1:] + added], dim=1)

    handle = HookPoint.parse(hook).edit(model, change)
    try:
        yield
    finally:
        handle.remove()


def gap(
    direction: Float[Tensor, "d_model"],
    positive: Float[Tensor, "positive d_model"],
    negative: Float[Tensor, "negative d_model"],
) -> float:
    """How far apart two sets of texts lie along a unit direction: `d . (m+ - m-)`, the unit of steering.

    Example:
        >>> gap(torch.tensor([1.0, 0.0]), torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 1.0]]))
        2.0
    """
    return float(direction @ (positive.mean(0) - negative.mean(0)))
