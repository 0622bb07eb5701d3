"""Gradients of a loss of our own, beside the user's."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn


@torch.no_grad()
def add_gradient_(parameters: Iterable[nn.Parameter], loss: Float[Tensor, ""], scale: Tensor | float = 1.0) -> None:
    """`p.grad += scale dloss/dp`; overwrites the gradients in place, makes those that are missing.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor(2.0))
        >>> add_gradient_([weight], weight**2)
        >>> weight.grad
        tensor(4.)
    """
    each = list(parameters)
    for parameter, gradient in zip(each, torch.autograd.grad(loss, each, allow_unused=True), strict=True):
        if gradient is None:
            continue
        scaled = gradient * scale
        if parameter.grad is None:
            parameter.grad = scaled.to(parameter.dtype)
        else:
            parameter.grad.add_(scaled.to(parameter.grad.dtype))
