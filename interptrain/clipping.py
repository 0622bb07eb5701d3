"""Gradient clipping after steering, the same in every loop."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm


@torch.no_grad()
def clip_(parameters: Iterable[Tensor], norm: Tensor | float) -> None:
    """`g <- g min(1, norm / ||g||)` with `||g||` over all parameters; overwrites their gradients.

    Where `||g||` is not finite nothing is clipped: one infinite gradient must not reach the others.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> clip_([weight], 1.0)
        >>> weight.grad
        tensor([0.6000, 0.8000])
    """
    moving = [parameter for parameter in parameters if parameter.grad is not None]
    if not moving:
        return
    found = get_total_norm([parameter.grad for parameter in moving if parameter.grad is not None])
    clip_grads_with_norm_(moving, norm, torch.where(torch.isfinite(found), found, 0.0))  # type: ignore[arg-type]
