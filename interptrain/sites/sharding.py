"""Parameters whose elements lie in several processes, as FSDP2 leaves them; what lies otherwise is refused by name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interptrain.processes import count, gather_over_processes, merge_over_processes_
from interptrain.projection import WHOLE, Part, as_columns

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

INSTEAD = "use DDP, or FSDP2 (torch.distributed.fsdp.fully_shard) over all processes"


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor is a `DTensor`: this process holds a part of it.

    Example:
        >>> is_sharded(torch.zeros(2))
        False
    """
    if "torch.distributed.tensor" not in sys.modules:  # nobody has made one, and the import takes most of a second
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, in the tensor's own memory; all of it where it is not sharded.

    Example:
        >>> weight = nn.Parameter(torch.zeros(2))
        >>> local(weight).data_ptr() == weight.data_ptr()
        True
    """
    held = tensor.detach()
    return held.to_local() if is_sharded(held) else held


def part_of(tensor: Tensor, axis: int) -> Part:
    """What this process holds of a tensor, seen as a matrix with this axis first: everything, rows or columns.

    Example:
        >>> part_of(torch.zeros(4, 2), 0)
        Part(split=None, start=0, stop=None)
    """
    if not is_sharded(tensor):
        return WHOLE
    dim, start, stop = _held(tensor)
    return Part("rows" if dim == axis else "columns", start, stop)


def matrices(held: Tensor, like: Tensor, axis: int) -> list[tuple[Float[Tensor, "d_model _"], Part]]:
    """Views of a parameter, its gradient or a copy as matrices, residual axis first, and what each is of the whole.

        [d_model, other], [other, d_model], [d_model]        one
        [expert, other, d_model]                             one, experts side by side
        [expert, d_model, other]                             one an expert

    Each expert's columns belong to one process, where processes share the experts: to the others it has none.

    Args:
        held: what this process has of it.
        like: the tensor itself, which is sharded or not.
        axis: the residual axis.

    Example:
        >>> [tuple(columns.shape) for columns, _ in matrices(torch.zeros(3, 4, 2), torch.zeros(3, 4, 2), 1)]
        [(4, 2), (4, 2), (4, 2)]
    """
    if held.ndim < 3:
        return [(as_columns(held, axis), part_of(like, axis))]
    dim, start, stop = _held(like) if is_sharded(like) else (None, 0, len(held))
    if axis == 2 and held.is_contiguous():
        side_by_side = held.view(-1, held.shape[2]).T
        return [(side_by_side, _split(dim, axis, start, stop, side_by_side.shape[1]))]
    if dim != 0:
        return [(as_columns(each, axis - 1), _split(dim, axis, start, stop, each.shape[2 - axis])) for each in held]
    none = held.new_zeros(held.shape[axis], 0)
    found = dict(zip(range(start, stop), (as_columns(each, axis - 1) for each in held), strict=True))
    every = [found.get(expert, none) for expert in range(len(like))]
    return [(columns, Part("columns", 0, columns.shape[1])) for columns in every]


def _split(dim: int | None, axis: int, start: int, stop: int, columns: int) -> Part:
    if dim is None:
        return WHOLE
    return Part("rows", start, stop) if dim == axis else Part("columns", 0, columns)


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, in every process; a view of itself where it is not sharded."""
    return wholes([(local(tensor), tensor)])[0]


def wholes(pieces: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Whole tensors, in every process and bit for bit, by one collective for all of them.

    With `S` bytes in all of them and `c >= S / N` in the first of `N` processes' pieces, a ring moves

        all-gather of the pieces, each padded to the first    (N - 1) / N * N c
        all-reduce of all, each zero but for its piece        (N - 1) / N * 2 S

    The first is made, unless more than half of what it moves would be padding: as with LoRA pairs whose inner factors
    of `r` rows lie in the first `r` of many more processes.

    Args:
        pieces: what this process holds of each, and a tensor that is sharded alike; where that is not sharded, what is
            held is the whole, and is given back.

    Example:
        >>> weight = torch.ones(2)
        >>> wholes([(weight, weight)])[0] is weight
        True
    """
    sharded = [(held, like) for held, like in pieces if is_sharded(like)]
    gathered = count() * sum(_chunk(like).numel() * held.itemsize for held, like in sharded)
    summed = 2 * sum(like.numel() * held.itemsize for held, like in sharded)
    found = iter((_gathered if gathered <= summed else _merged)(sharded))
    return [next(found) if is_sharded(like) else held for held, like in pieces]


def overwrite_(tensor: Tensor, value: Tensor) -> None:
    """Overwrite what this process holds of a sharded tensor by its part of a whole one."""
    local(tensor).copy_(_piece(value, tensor))


def refuse(model: nn.Module) -> None:
    """Raise for a model whose parameters are spread in a way that is not understood.

    Raises:
        TypeError: FSDP1, DeepSpeed's ZeRO-3, tensor parallelism, HSDP, or FSDP2 over some of the processes.
    """
    covered: set[nn.Module] = set()
    for module in model.modules():
        if _by_fsdp1(module):
            raise TypeError(
                f"{type(module).__name__} (FSDP1) keeps flat parameters, in which no residual axis is left; {INSTEAD}"
            )
        if module not in covered and _by_fsdp2(module) is not None:
            covered |= set(module.modules())
    for owner, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            reason = _unlike_fsdp2(parameter, module in covered)
            if reason is not None:
                name = f"{owner}.{attribute}".lstrip(".")
                raise TypeError(f"'{name}' {reason}; {INSTEAD}")


def reshard(model: nn.Module) -> None:
    """Give back the whole parameters that a forward pass without a backward pass leaves in FSDP2's root module."""
    for module in model.modules():
        sharded = _by_fsdp2(module)
        if sharded is not None:
            sharded.reshard()


def _unlike_fsdp2(parameter: nn.Parameter, covered: bool) -> str | None:
    """What keeps a parameter from being read; None where nothing does."""
    if "ds_id" in vars(parameter):
        return "is a parameter of DeepSpeed ZeRO-3, which holds it flat and in its own optimizer"
    if not is_sharded(parameter):
        return None
    from torch.distributed.tensor import Shard

    mesh, placements = parameter.device_mesh, parameter.placements
    if mesh.ndim > 1:
        return f"lies on a mesh of {mesh.ndim} dimensions (HSDP, or FSDP with tensor parallelism): {placements}"
    if not covered:
        return "is a DTensor outside of every FSDP2 module (tensor parallelism, or a part of the model was given)"
    if type(placements[0]) is not Shard:
        return f"is placed as {placements[0]}, expected a Shard"
    if mesh.size() != count():
        return f"is spread over {mesh.size()} of {count()} processes"
    return None


def _by_fsdp1(module: nn.Module) -> bool:
    if "torch.distributed.fsdp" not in sys.modules:
        return False
    from torch.distributed.fsdp import FullyShardedDataParallel

    return isinstance(module, FullyShardedDataParallel)


def _by_fsdp2(module: nn.Module) -> FSDPModule | None:
    if "torch.distributed.fsdp" not in sys.modules:
        return None
    from torch.distributed.fsdp import FSDPModule

    return module if isinstance(module, FSDPModule) else None


def _gathered(pieces: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Whole tensors, of pieces that are each padded to the first process's."""
    every = gather_over_processes([_padded(held, like) for held, like in pieces])
    return [_in_a_row(each, like) for each, (_, like) in zip(every, pieces, strict=True)]


def _padded(held: Tensor, like: Tensor) -> Tensor:
    dim, _, _ = _division(like)
    padded = held.new_zeros(_chunk(like))
    padded.narrow(dim, 0, held.shape[dim]).copy_(held)
    return padded


def _in_a_row(every: Tensor, like: Tensor) -> Tensor:
    dim, _, _ = _division(like)
    return every.movedim(0, dim).flatten(dim, dim + 1).narrow(dim, 0, like.shape[dim])


def _merged(pieces: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Whole tensors, of zeros and what this process holds."""
    found = [held.new_zeros(like.shape) for held, like in pieces]
    for one, (held, like) in zip(found, pieces, strict=True):
        _piece(one, like).copy_(held)
    merge_over_processes_(found)
    return found


def _piece(value: Tensor, like: Tensor) -> Tensor:
    """What of a whole tensor this process holds of one that is sharded."""
    dim, start, stop = _held(like)
    return value.narrow(dim, start, stop - start)


def _held(tensor: Tensor) -> tuple[int, int, int]:
    """The dimension that is sharded, and from where to where this process has it."""
    dim, rows, number = _division(tensor)
    size = tensor.shape[dim]
    start = min(number * rows, size)
    return dim, start, min(start + rows, size)


def _chunk(tensor: Tensor) -> torch.Size:
    """The shape of the first process's piece, which is the largest."""
    dim, rows, _ = _division(tensor)
    return torch.Size((*tensor.shape[:dim], rows, *tensor.shape[dim + 1 :]))


def _division(tensor: Tensor) -> tuple[int, int, int]:
    """The dimension that `torch.chunk` has divided, how much of it a piece has, and the number of this process."""
    from torch.distributed.tensor import Shard

    if not (is_sharded(tensor) and isinstance(tensor.placements[0], Shard)):
        raise TypeError(f"expected a DTensor that is sharded, found {tensor}")
    dim, mesh = tensor.placements[0].dim, tensor.device_mesh
    return dim, -(-tensor.shape[dim] // mesh.size()), mesh.get_local_rank()
