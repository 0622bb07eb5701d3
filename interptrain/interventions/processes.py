"""Several processes, each with a part of the batch."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of every process's value; itself where there is one process. All of them have to ask.

    Example:
        >>> mean_over_processes(torch.tensor(2.0))
        tensor(2.)
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    mean = value.clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(mean)
    return mean / torch.distributed.get_world_size()
