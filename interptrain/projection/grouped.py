"""The torch path: the small matrices of a step together, one batched product a shape, the large ones by themselves."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
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

    Matrices of one shape, type and memory layout are copied into a batch in a workspace that is kept, so a LoRA
    model's hundreds of factors take a handful of batched products. What is larger than `SMALL` elements, float64, or
    the only one of its kind goes by itself.

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
        self._workspaces: dict[torch.device, Tensor] = {}
        self._merge = Merge()

    def read(self, matrices: Sequence[Matrix]) -> Sums:
        """Energies, signed sums and totals; nothing is changed."""
        alone, groups = _grouped(matrices)
        parts = [([n], _sums(matrices[n].basis[None], matrices[n].value()[None])) for n in alone]
        for shape, numbers in groups.items():
            group = [matrices[number] for number in numbers]
            batch = self._batch(shape, group)
            basis = batch.stacked("basis", [matrix.basis for matrix in group])
            parts.append((numbers, _sums(basis, shape.turned(batch.values(group)))))
        return self._merge(parts)

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
        """The batch of a group; all share one workspace a device, which holds the largest of them."""
        key = (shape, len(group))
        if key not in self._batches:
            needed = shape.copies * len(group) * shape.size.numel()
            workspace = self._workspaces.get(shape.device)
            if workspace is None or workspace.numel() < needed:
                workspace = self._workspaces[shape.device] = torch.empty(needed, device=shape.device)
                self._batches.clear()  # they lie in the old one
            self._batches[key] = _Batch(shape, len(group), workspace)
        return self._batches[key]


class _Shape(NamedTuple):
    """What matrices of one batch have in common."""

    size: torch.Size
    dtype: torch.dtype
    device: torch.device
    directions: int
    lies: bool
    difference: bool

    @property
    def copies(self) -> int:
        """Of each matrix, in a batch: of what it is, and of what it was."""
        return 2 if self.difference else 1

    def turned(self, columns: Tensor) -> Tensor:
        """From the residual axis first to how it lies in memory, contiguous axis last; and back again."""
        return columns.mT if self.lies else columns


class _Batch:
    """A float32 copy of the matrices of one shape, as they lie in memory, and what they are multiplied by."""

    def __init__(self, shape: _Shape, count: int, workspace: Float[Tensor, "element"]) -> None:
        rows, columns = reversed(shape.size) if shape.lies else shape.size
        copies = workspace[: shape.copies * count * rows * columns].view(shape.copies, count, rows, columns)
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


class Merge:
    """Sums of parts of a step's matrices as one, in the order of their numbers; keeps the last permutation."""

    def __init__(self) -> None:
        self._numbers: list[int] = []
        self._order = torch.zeros(0, dtype=torch.long)

    def __call__(self, parts: Sequence[tuple[list[int], Sums]]) -> Sums:
        """Numbers of the matrices and their sums, part by part."""
        if not parts:
            return Sums(torch.zeros(0, 0), torch.zeros(0, 0), torch.zeros(0))
        if len(parts) == 1:
            return parts[0][1]
        numbers = [number for part, _ in parts for number in part]
        device = parts[0][1].total.device
        if numbers != self._numbers or device != self._order.device:
            self._numbers, self._order = numbers, torch.tensor(numbers).argsort().to(device)
        longest = max(sums.energy.shape[1] for _, sums in parts)
        energy, signed = (
            torch.cat([pad(each, (0, longest - each.shape[1])) for each in figures])[self._order]
            for figures in ([sums.energy for _, sums in parts], [sums.signed for _, sums in parts])
        )
        return Sums(energy, signed, torch.cat([sums.total for _, sums in parts])[self._order])


def _grouped(matrices: Sequence[Matrix]) -> tuple[list[int], dict[_Shape, list[int]]]:
    """Numbers of the matrices that go by themselves, and by shape of those that go together."""
    alone: list[int] = []
    groups: dict[_Shape, list[int]] = defaultdict(list)
    for number, matrix in enumerate(matrices):
        columns = matrix.columns
        if columns.numel() > SMALL or columns.dtype == torch.float64:
            alone.append(number)
        else:
            lies, difference = columns.stride(0) == 1, matrix.before is not None
            directions = matrix.basis.shape[0]
            groups[_Shape(columns.shape, columns.dtype, columns.device, directions, lies, difference)].append(number)
    alone += [numbers[0] for numbers in groups.values() if len(numbers) == 1]
    return alone, {shape: numbers for shape, numbers in groups.items() if len(numbers) > 1}


def workspace_bytes(matrices: Iterable[Tensor]) -> int:
    """Bytes that the workspace takes at most: two float32 copies of the largest group of small matrices.

    Example:
        >>> import torch
        >>> workspace_bytes([torch.zeros(4, 8), torch.zeros(4, 8), torch.zeros(4, 16)])
        512
    """
    groups: Counter[torch.Size] = Counter(each.shape for each in matrices if each.numel() <= SMALL)
    return max((2 * 4 * count * shape.numel() for shape, count in groups.items() if count > 1), default=0)


def _sums(basis: Float[Tensor, "matrix direction d_model"], value: Float[Tensor, "matrix d_model other"]) -> Sums:
    coefficients = basis @ value
    total = torch.linalg.vector_norm(value, dim=(-2, -1)).square()
    return Sums(coefficients.square().sum(-1), coefficients.sum(-1), total)


def _steer_alone_(matrix: Matrix) -> None:
    if matrix.mixing is None:
        return
    add_along_(matrix, mixed_coefficients(matrix.value(), matrix.basis, matrix.mixing))


def add_along_(matrix: Matrix, mixed: Float[Tensor, "direction other"]) -> None:
    """Add `Q^T` times mixed coefficients to a matrix's columns."""
    if matrix.columns.dtype == torch.float32:
        matrix.columns.addmm_(matrix.basis.mT, mixed)
    else:
        matrix.columns.add_(matrix.basis.mT @ mixed)
