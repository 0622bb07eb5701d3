"""The torch path: the small matrices of a step together, one batched product a shape, the large ones by themselves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from interptrain.projection.matrix import Matrix, Sums
from interptrain.projection.reference import mixed_coefficients

SMALL = 2**18  # elements: up to here starting an operation costs more than copying the matrix into a batch


class TorchProjector:
    """Reads and steers on whatever device the matrices are on, without a loop over concepts.

    Matrices of one shape, type and memory layout are copied into a batch that is kept from step to step, so a LoRA
    model's hundreds of factors take a handful of batched products. What is larger than `SMALL` elements, or float64,
    goes by itself.

    Example:
        >>> import torch
        >>> gradients = [torch.ones(2, 3), torch.full((2, 3), 2.0)]
        >>> east = torch.tensor([[1.0, 0.0]])
        >>> matrices = [Matrix(gradient, east, mixing=-torch.eye(1)) for gradient in gradients]
        >>> TorchProjector().read(matrices).energy
        tensor([[ 3.],
                [12.]])
        >>> TorchProjector().steer_(matrices)
        >>> gradients[1]
        tensor([[0., 0., 0.],
                [2., 2., 2.]])
    """

    def __init__(self) -> None:
        self._batches: dict[tuple[_Shape, int], _Batch] = {}

    def __repr__(self) -> str:
        return "TorchProjector()"

    def read(self, matrices: Sequence[Matrix]) -> Sums:
        """Energies, signed sums and totals; nothing is changed."""
        alone, groups = _grouped(matrices)
        found = {number: _sums(matrices[number].basis, matrices[number].value()) for number in alone}
        for shape, numbers in groups.items():
            group = [matrices[number] for number in numbers]
            batch = self._batch(shape, group)
            sums = _sums(batch.stacked("basis", [matrix.basis for matrix in group]), shape.turned(batch.values(group)))
            found |= dict(zip(numbers, zip(*(each.unbind() for each in sums), strict=True), strict=True))
        return gathered([found[number] for number in range(len(matrices))])

    def steer_(self, matrices: Sequence[Matrix]) -> None:
        """Add `Q^T T Q M` to every matrix that has a mixing."""
        steered = [matrix for matrix in matrices if matrix.mixing is not None]
        alone, groups = _grouped(steered)
        for number in alone:
            _steer_alone_(steered[number])
        for shape, numbers in groups.items():
            group = [steered[number] for number in numbers]
            self._batch(shape, group).steer_(group)

    def _batch(self, shape: _Shape, group: Sequence[Matrix]) -> _Batch:
        key = (shape, len(group))
        if key not in self._batches:
            self._batches[key] = _Batch(shape, len(group))
        return self._batches[key]


class _Shape(NamedTuple):
    """What matrices of one batch have in common."""

    size: torch.Size
    dtype: torch.dtype
    device: torch.device
    directions: int
    lies: bool
    difference: bool

    def turned(self, columns: Tensor) -> Tensor:
        """From the residual axis first to how it lies in memory, contiguous axis last; and back again."""
        return columns.mT if self.lies else columns


class _Batch:
    """A float32 copy of the matrices of one shape, as they lie in memory, and what they are multiplied by."""

    def __init__(self, shape: _Shape, count: int) -> None:
        rows, columns = reversed(shape.size) if shape.lies else shape.size
        copies = torch.empty(2 if shape.difference else 1, count, rows, columns, device=shape.device)
        self._shape = shape
        self._now, self._value = copies[0], copies[-1]
        self._into = [list(copy.unbind()) for copy in copies]
        self._stacks: dict[str, tuple[Sequence[Tensor], Tensor]] = {}

    def values(self, group: Sequence[Matrix]) -> Float[Tensor, "matrix _ _"]:
        """Every `M` of a group."""
        turned = self._shape.turned
        torch._foreach_copy_(self._into[0], [turned(matrix.columns) for matrix in group])
        if self._shape.difference:
            torch._foreach_copy_(
                self._into[1], [turned(matrix.before) for matrix in group if matrix.before is not None]
            )
            torch.sub(self._now, self._value, out=self._value)
        return self._value

    def steer_(self, group: Sequence[Matrix]) -> None:
        """Add `Q^T T Q M` to each, in float32, and round once."""
        basis = self.stacked("basis", [matrix.basis for matrix in group])
        mixing = self.stacked("mixing", [matrix.mixing for matrix in group if matrix.mixing is not None])
        mixed = mixed_coefficients(self._shape.turned(self.values(group)), basis, mixing)
        if self._shape.lies:
            self._now.baddbmm_(mixed.mT, basis)
        else:
            self._now.baddbmm_(basis.mT, mixed)
        torch._foreach_copy_([self._shape.turned(matrix.columns) for matrix in group], self._into[0])

    def stacked(self, part: str, tensors: Sequence[Tensor]) -> Float[Tensor, "matrix _ _"]:
        """Directions or mixings side by side, stacked anew only when one of them is another tensor than last time."""
        if all(tensor is tensors[0] for tensor in tensors):
            return tensors[0].expand(len(tensors), -1, -1)
        kept = self._stacks.get(part)
        if kept is None or any(old is not new for old, new in zip(kept[0], tensors, strict=True)):
            kept = self._stacks[part] = (tensors, torch.stack(list(tensors)))
        return kept[1]


def gathered(sums: Sequence[tuple[Tensor, ...]]) -> Sums:
    """The energies, signed sums and totals of every matrix, as one."""
    if not sums:
        return Sums(torch.zeros(0, 0), torch.zeros(0, 0), torch.zeros(0))
    longest = max(len(energy) for energy, _, _ in sums)
    if any(len(energy) < longest for energy, _, _ in sums):
        missing = [(0, longest - len(energy)) for energy, _, _ in sums]
        sums = [(pad(e, n), pad(s, n), t) for (e, s, t), n in zip(sums, missing, strict=True)]
    return Sums(*(torch.stack(list(each)) for each in zip(*sums, strict=True)))


def _grouped(matrices: Sequence[Matrix]) -> tuple[list[int], dict[_Shape, list[int]]]:
    """Numbers of the matrices that go by themselves, and by shape of those that go together."""
    alone: list[int] = []
    groups: dict[_Shape, list[int]] = defaultdict(list)
    for number, matrix in enumerate(matrices):
        columns = matrix.columns
        if columns.numel() > SMALL or columns.dtype == torch.float64:
            alone.append(number)
        else:
            shape = _Shape(
                columns.shape, columns.dtype, columns.device, len(matrix.basis),
                lies=columns.stride(0) == 1, difference=matrix.before is not None,
            )  # fmt: skip
            groups[shape].append(number)
    return alone, groups


def _sums(
    basis: Float[Tensor, "*batch direction d_model"], value: Float[Tensor, "*batch d_model other"]
) -> tuple[Tensor, Tensor, Tensor]:
    coefficients = basis @ value
    total = torch.linalg.vector_norm(value, dim=(-2, -1)).square()
    return coefficients.square().sum(-1), coefficients.sum(-1), total


def _steer_alone_(matrix: Matrix) -> None:
    if matrix.mixing is None:
        return
    mixed = mixed_coefficients(matrix.value(), matrix.basis, matrix.mixing)
    if matrix.columns.dtype == torch.float32:
        matrix.columns.addmm_(matrix.basis.mT, mixed)
    else:
        matrix.columns.add_(matrix.basis.mT @ mixed)
