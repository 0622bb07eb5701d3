"""Gradients of a loss of our own, beside the user's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interptrain.processes import mean_over_processes


def gradients_of(
    loss: Float[Tensor, ""], parameters: Sequence[nn.Parameter], who: str
) -> list[tuple[nn.Parameter, Tensor]]:
    """Each parameter that a loss depends on, and `dloss/dp`; of several processes, the mean.

    Raises:
        ValueError: it depends on none of them.
    """
    found = torch.autograd.grad(loss, parameters, allow_unused=True) if loss.requires_grad else ()
    pairs = [
        (parameter, mean_over_processes(gradient))
        for parameter, gradient in zip(parameters, found, strict=False)
        if gradient is not None
    ]
    if not pairs:
        raise ValueError(f"nothing that trains has a part in what {who} reads; train something below its hook points")
    return pairs


@torch.no_grad()
def add_gradient_(
    loss: Float[Tensor, ""], parameters: Sequence[nn.Parameter], who: str, scale: Tensor | float = 1.0
) -> None:
    """`p.grad += scale dloss/dp`; overwrites the gradients in place, makes those that are missing.

    Where a single `dloss/dp` is not finite, none of them is added.

    Raises:
        ValueError: the loss depends on none of the parameters.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor(2.0))
        >>> add_gradient_(weight**2, [weight], "the example")
        >>> weight.grad
        tensor(4.)
    """
    pairs = gradients_of(loss, parameters, who)
    finite = torch.stack([gradient.isfinite().all() for _, gradient in pairs]).all()
    for parameter, gradient in pairs:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad.add_(torch.where(finite, gradient * scale, 0.0).to(parameter.grad.dtype))
