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

    It is made in float32, in float64 where one of them is, in bytes where all are bytes. Tensors of several devices
    take one all-reduce a device. Nothing is done where there is one process or no element.

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
            dtype = _summed_in({tensor.dtype for tensor in here})
            flat = torch.cat([tensor.detach().flatten().to(dtype) for tensor in here])
            torch.distributed.all_reduce(flat)
            for tensor, total in zip(here, flat.split([tensor.numel() for tensor in here]), strict=True):
                tensor.copy_(total.view(tensor.shape))


def gather_over_processes(tensors: Sequence[Tensor]) -> list[Tensor]:
    """`[x_0, ..., x_N-1]` of each tensor `x`, one a process, along a new first axis and bit for bit, by one all-gather.

    Tensors of several devices take one all-gather a device, those of several dtypes do not: bytes are gathered.

    Args:
        tensors: of the same shapes and dtypes in every process.

    Example:
        >>> gather_over_processes([torch.tensor([1.0, 2.0])])
        [tensor([[1., 2.]])]
    """
    if count() == 1:
        return [tensor[None] for tensor in tensors]
    gathered: dict[int, Tensor] = {}
    for device in dict.fromkeys(tensor.device for tensor in tensors):
        here = {number: tensor for number, tensor in enumerate(tensors) if tensor.device == device}
        flat = torch.cat([_bytes(tensor) for tensor in here.values()])
        every = flat.new_empty(count() * len(flat))
        _all_gather(every, flat)
        parts = every.view(count(), len(flat)).split([tensor.nbytes for tensor in here.values()], dim=1)
        for (number, tensor), part in zip(here.items(), parts, strict=True):
            gathered[number] = part.contiguous().view(tensor.dtype).view(count(), *tensor.shape)
    return [gathered[number] for number in range(len(tensors))]


def merge_over_processes_(tensors: Sequence[Tensor]) -> None:
    """Overwrite each tensor, zero but for what this process has of it, with what all of them have, by one all-reduce.

    `x = 0 + ... + x + ... + 0` byte by byte, so bit for bit. Tensors of several devices take one all-reduce a device.
    Nothing is done where there is one process.

    Args:
        tensors: contiguous, of the same shapes and dtypes in every process; no element is other than zero in two of
            them.

    Example:
        >>> weight = torch.tensor([1.0, 2.0])
        >>> merge_over_processes_([weight])
        >>> weight
        tensor([1., 2.])
    """
    sum_over_processes_([_bytes(tensor) for tensor in tensors])


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


def _summed_in(dtypes: set[torch.dtype]) -> torch.dtype:
    if dtypes == {torch.uint8}:
        return torch.uint8
    return torch.float64 if torch.float64 in dtypes else torch.float32


def _bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, in its own memory where it is contiguous."""
    return tensor.detach().flatten().view(torch.uint8)


def _all_gather(every: Tensor, own: Tensor) -> None:
    """Fill one flat tensor with those of all processes, by the name that the installed torch has for it."""
    gather = getattr(torch.distributed, "all_gather_single", None) or torch.distributed.all_gather_into_tensor
    gather(every, own)
