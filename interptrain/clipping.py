"""Gradient clipping after steering, the same in every loop."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from interptrain.sites.sharding import is_sharded, local


@torch.no_grad()
def clip_(parameters: Iterable[Tensor], norm: Tensor | float) -> None:
    """`g <- g min(1, norm / ||g||)` with `||g||` over all parameters and processes; overwrites their gradients.

    Where `||g||` is not finite nothing is clipped: one infinite gradient must not reach the others, as it does in
    `torch.nn.utils.clip_grad_norm_`.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> clip_([weight], 1.0)
        >>> weight.grad
        tensor([0.6000, 0.8000])
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return
    found = get_total_norm(gradients)
    whole = found.full_tensor() if is_sharded(found) else found
    factor = torch.where(torch.isfinite(whole), norm / (whole + 1e-6), 1.0).clamp_max(1.0)
    by_device: dict[torch.device, list[Tensor]] = defaultdict(list)
    for gradient in gradients:
        by_device[gradient.device].append(local(gradient))
    for device, here in by_device.items():
        torch._foreach_mul_(here, factor.to(device))
