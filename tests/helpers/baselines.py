"""Ways to read and steer a step's matrices that a kernel is measured beside: the naive loop to the best torch known.

Each baseline is made once for a step's matrices, called any number of times, and asked for the energies of its last
call in the matrices' order. Where a matrix has a mixing it is steered, elsewhere read only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from interptrain.projection import Matrix, Projector, correct_, energies

LARGE = 2**18  # elements: a matrix with more is multiplied where it lies, without a copy
COEFFICIENTS = 3  # roundings where they are of the matrices' type: of directions as read, of themselves, as added


class Arm(Protocol):
    """One way to read and steer.

    Attributes:
        reads: whether `energies` gives any.
        roundings: how often an element of the result is rounded to the matrices' type, at most, with `K` directions.
    """

    reads: bool

    def __call__(self) -> None: ...

    def energies(self) -> Tensor: ...

    def roundings(self, directions: int) -> int: ...


class Loop:
    """Per matrix and direction: `c = q^T G`, `e = ||c||^2`, `G -= q c`; gain 0 of an orthonormal basis, in G's type."""

    reads = True

    def __init__(self, matrices: Sequence[Matrix]) -> None:
        cast = _once_each([matrix.basis for matrix in matrices], matrices[0].columns.dtype)
        self._work = [
            (matrix.columns, list(cast[id(matrix.basis)].unbind()), matrix.mixing is not None) for matrix in matrices
        ]
        self._found: list[list[Tensor]] = []

    def __call__(self) -> None:
        self._found = []
        for columns, basis, steered in self._work:
            found = []
            for q in basis:
                c = q @ columns
                found.append(c.square().sum(dtype=_wide(c)))
                if steered:
                    columns -= torch.outer(q, c)
            self._found.append(found)

    def energies(self) -> Tensor:
        return torch.stack([torch.stack(found) for found in self._found])

    def roundings(self, directions: int) -> int:
        return directions + COEFFICIENTS


class PerParameter:
    """One `correct_` a matrix, or one `energies` where it is only read."""

    def __init__(self, matrices: Sequence[Matrix]) -> None:
        self._matrices = list(matrices)
        self.reads = all(matrix.mixing is None for matrix in matrices)
        self._found: list[Tensor] = []

    def __call__(self) -> None:
        self._found = []
        for matrix in self._matrices:
            if matrix.mixing is None:
                self._found.append(energies(matrix.columns, matrix.basis[None])[0])
            else:
                correct_(matrix.columns, matrix.basis, matrix.mixing)

    def energies(self) -> Tensor:
        return torch.stack(self._found)

    def roundings(self, directions: int) -> int:
        return 1


class Block(NamedTuple):
    """Matrices of one shape and orientation, as many as a batched product takes.

    Args:
        batch: `[batch, rows, d_model]` of readers, those of one direction set below each other; `[batch, d_model,
            other]` of writers.
        basis: `Q`, `[batch, direction, d_model]`, in the matrices' type.
        added: `Q^T T`, `[batch, d_model, direction]`; None where they are only read.
        members: how many readers are below each other in an entry of the batch; None of writers.
    """

    batch: Tensor
    basis: Tensor
    added: Tensor | None
    members: int | None


def blocks_(blocks: Sequence[Block]) -> list[Tensor]:
    """`P = Q G`, `G += (Q^T T) P`, and the energies of `P`, by two products and a norm a block."""
    found = []
    for batch, basis, added, members in blocks:
        if members is None:
            mixed = torch.bmm(basis, batch)
            parts = mixed.mT
        else:
            mixed = torch.bmm(batch, basis.mT)
            parts = mixed.reshape(len(mixed) * members, -1, mixed.shape[-1])
        if added is not None and members is None:
            batch.baddbmm_(added, mixed)
        elif added is not None:
            batch.baddbmm_(mixed, added.mT)
        found.append(torch.linalg.vector_norm(parts, dim=1, dtype=_wide(parts)).square())
    return found


class Flat:
    """Small matrices copied side by side, one batched product an orientation and shape, and copied back.

    Everything is in the matrices' own type, directions too, which is fastest in 16 bits and least exact. A column that
    is not finite spoils itself alone, but is not left as it was.

    Args:
        matrices: contiguous in memory, or their transposes are.
        compiled: whether what is between the copies goes through `torch.compile`.
    """

    reads = True

    def __init__(self, matrices: Sequence[Matrix], compiled: bool = False) -> None:
        self._middle: Callable[[Sequence[Block]], list[Tensor]] = blocks_
        if compiled:
            self._middle = torch.compile(blocks_, dynamic=False)
        self._blocks: list[Block] = []
        self._order: list[int] = []
        self._copies: tuple[list[Tensor], list[Tensor]] = ([], [])  # the gradients, and their places in the batches
        self._steered = any(matrix.mixing is not None for matrix in matrices)
        self._found: list[Tensor] = []
        for numbers in _alike(matrices):
            self._add([[matrices[number] for number in of_one_set] for of_one_set in numbers])
            self._order += [number for of_one_set in numbers for number in of_one_set]

    def __call__(self) -> None:
        gradients, places = self._copies
        if gradients:
            torch._foreach_copy_(places, gradients)
        self._found = self._middle(self._blocks)
        if gradients and self._steered:
            torch._foreach_copy_(gradients, places)

    def energies(self) -> Tensor:
        found = torch.cat(self._found)
        return torch.empty_like(found).index_copy_(0, torch.tensor(self._order, device=found.device), found)

    def roundings(self, directions: int) -> int:
        return 1 + COEFFICIENTS

    def _add(self, sets: Sequence[Sequence[Matrix]]) -> None:
        first, members = sets[0][0], len(sets[0])
        lying = [_as_it_lies(matrix) for of_one_set in sets for matrix in of_one_set]
        batch = lying[0][None]
        if len(lying) > 1:
            batch = lying[0].new_empty(len(lying), *lying[0].shape)
            self._copies[0].extend(lying)
            self._copies[1].extend(batch.unbind())
        basis = torch.stack([of_one_set[0].basis for of_one_set in sets])
        added = None
        if first.mixing is not None:
            mixings = [of_one_set[0].mixing for of_one_set in sets]
            added = basis.mT @ torch.stack([mixing for mixing in mixings if mixing is not None])
        basis, added = basis.to(batch.dtype), None if added is None else added.to(batch.dtype)
        if _reader(first):
            self._blocks.append(Block(batch.view(len(sets), -1, batch.shape[-1]), basis, added, members))
        else:
            self._blocks.append(
                Block(batch, _each(basis, members), None if added is None else _each(added, members), None)
            )


class Projected:
    """A projector of the package: `steer_`, or `read`, or both."""

    def __init__(self, projector: Projector, matrices: Sequence[Matrix], *, reads: bool) -> None:
        self._projector, self._matrices = projector, list(matrices)
        self._steers = any(matrix.mixing is not None for matrix in matrices)
        self.reads = reads or not self._steers
        self._found = torch.empty(0)

    def __call__(self) -> None:
        if self.reads:
            self._found = self._projector.read(self._matrices).energy
        if self._steers:
            self._projector.steer_(self._matrices)

    def energies(self) -> Tensor:
        return self._found

    def roundings(self, directions: int) -> int:
        return 2  # one for directions as tensor cores take them


def largest_error(original: Matrix, columns: Tensor) -> Tensor:
    """Of any element of what `original` became, over the largest element of it before and after."""
    value = exact(original)[0]
    return (columns.double() - value).abs().max() / torch.maximum(original.columns.abs().max(), value.abs().max())


def energy_errors(originals: Sequence[Matrix], energies: Tensor) -> Tensor:
    """Of every matrix and direction, over its energy or that of an average direction, the larger."""
    expected = torch.stack([exact(original)[1] for original in originals])
    average = torch.stack([original.columns.double().square().sum(1).mean() for original in originals])
    return (energies.double() - expected).abs() / torch.maximum(expected, average[:, None])


def exact(matrix: Matrix) -> tuple[Tensor, Tensor]:
    """`M + Q^T T Q M` and the energies `||q^T M||^2`, in float64."""
    value, basis = matrix.columns.double(), matrix.basis.double()
    coefficients = basis @ value
    if matrix.mixing is not None:
        value = value + basis.mT @ (matrix.mixing.double() @ coefficients)
    return value, coefficients.square().sum(-1)


def _alike(matrices: Sequence[Matrix]) -> list[list[list[int]]]:
    """Numbers of the matrices that one block takes, by direction set; every set of a block has as many."""
    sets: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for number, matrix in enumerate(matrices):
        alone = number if matrix.columns.numel() > LARGE else None
        sets[(_reader(matrix), matrix.columns.shape, id(matrix.basis), id(matrix.mixing), alone)].append(number)
    blocks: dict[tuple[object, ...], list[list[int]]] = defaultdict(list)
    for (reader, shape, _, _, alone), numbers in sets.items():
        blocks[(reader, shape, len(numbers), matrices[numbers[0]].mixing is None, alone)].append(numbers)
    return list(blocks.values())


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _reader(matrix: Matrix) -> bool:
    """Whether the residual axis is the contiguous one."""
    return matrix.columns.mT.is_contiguous()


def _as_it_lies(matrix: Matrix) -> Tensor:
    return matrix.columns.mT if _reader(matrix) else matrix.columns


def _each(tensor: Tensor, members: int) -> Tensor:
    """Every entry `members` times; a view where there is one entry."""
    return tensor[:, None].expand(-1, members, -1, -1).reshape(-1, *tensor.shape[1:])


def _once_each(tensors: Sequence[Tensor], dtype: torch.dtype) -> dict[int, Tensor]:
    return {key: tensor.to(dtype) for key, tensor in {id(tensor): tensor for tensor in tensors}.items()}
