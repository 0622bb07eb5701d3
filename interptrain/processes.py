"""Several processes, each with a part of the batch.

Where `torch.distributed` is initialised with more than one rank, all ranks of the default group are taken to train
one model. Every one of them makes the same calls in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def count() -> int:
    """How many processes train the model; 1 where nothing is distributed.

    Example:
        >>> count()
        1
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def rank() -> int:
    """The number of this process, from 0.

    Example:
        >>> rank()
        0
    """
    return torch.distributed.get_rank() if count() > 1 else 0


def sum_over_processes_(tensors: Sequence[Tensor]) -> None:
    """Overwrite each tensor with its sum over the processes, by one all-reduce for all of them.

    It is made in float32, in float64 where one of them is. Tensors of several devices take one all-reduce a device.
    Nothing is done where there is one process or no element.

    Args:
        tensors: of the same shapes in every process.

    Example:
        >>> figures = torch.tensor([1.0, 2.0])
        >>> sum_over_processes_([figures])
        >>> figures
        tensor([1., 2.])
    """
    if count() == 1:
        return
    for device in dict.fromkeys(tensor.device for tensor in tensors):
        here = [tensor for tensor in tensors if tensor.device == device and tensor.numel()]
        if here:
            dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in here) else torch.float32
            flat = torch.cat([tensor.detach().flatten().to(dtype) for tensor in here])
            torch.distributed.all_reduce(flat)
            for tensor, total in zip(here, flat.split([tensor.numel() for tensor in here]), strict=True):
                tensor.copy_(total.view(tensor.shape))


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of every process's value; itself where there is one process.

    Example:
        >>> mean_over_processes(torch.tensor(2.0))
        tensor(2.)
    """
    if count() == 1:
        return value
    mean = value.clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(mean)
    return mean / count()
