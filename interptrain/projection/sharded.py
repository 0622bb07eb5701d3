"""Matrices of which every process holds a part: what each can say, summed, is what one would say of the whole.

rows split:       Q M        = sum_processes Q[:, rows] M[rows]            energies follow from the summed coefficients
columns split:    ||q^T M||^2 = sum_processes ||q^T M[:, columns]||^2      each column has its coefficients to itself
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from interptrain.projection.cap import capped
from interptrain.projection.grouped import Merge, add_along_
from interptrain.projection.matrix import Matrix, Projector, Sums
from interptrain.projection.reference import mixed_coefficients, mixed_where_finite

Add: TypeAlias = Callable[[Sequence[Tensor]], None]  # overwrites tensors with their sums over the processes


class ShardedProjector:
    """Reads and steers what is split over processes; what is whole goes to another projector as it is.

    Args:
        inner: the projector of whole columns.
        add: overwrites tensors with their sums over the processes, by one collective.

    Example:
        >>> import torch
        >>> from interptrain.projection import Backend, Matrix, Part
        >>> def add(tensors):  # of another process, whose row is 3, 3
        ...     for tensor in tensors:
        ...         tensor += 3
        >>> one_row = Matrix(torch.ones(1, 2), torch.ones(1, 1), -torch.eye(1), part=Part("rows", 0, 1))
        >>> ShardedProjector(Backend("torch").on(torch.device("cpu")), add).steer_([one_row])
        tensor(1.)
        >>> one_row.columns
        tensor([[-3., -3.]])
    """

    def __init__(self, inner: Projector, add: Add) -> None:
        self._inner, self._add = inner, add
        self._merge, self._merge_columns = Merge(), Merge()

    def read(self, matrices: Sequence[Matrix]) -> PartialSums:
        """What this process can say of each matrix; nothing is changed, and nothing is summed yet."""
        whole, columns, rows = (
            [number for number, matrix in enumerate(matrices) if matrix.part.split == split]
            for split in (None, "columns", "rows")
        )
        parts = [(whole, self._inner.read([matrices[number] for number in whole]))] if whole else []
        partial: list[Tensor] = []
        if columns:
            summed = self._read_columns([matrices[number] for number in columns])
            parts.append((columns, summed))
            partial += summed
        values = [matrices[number].value() for number in rows]
        coefficients = [matrices[number].basis @ value for number, value in zip(rows, values, strict=True)]
        totals = [torch.linalg.vector_norm(value).square() for value in values]
        return PartialSums(self._merge, parts, rows, coefficients, totals, [*partial, *coefficients, *totals])

    def steer_(self, matrices: Sequence[Matrix], norm_cap: float | None = None) -> Float[Tensor, ""]:
        """Add `Q^T T Q M` to every matrix that has a mixing, scaled down where it exceeds the cap.

        One collective, and none where nothing is split by rows and there is no cap.

        Returns:
            The smallest factor of the cap; 1 where it did not bind.
        """
        steered = [(matrix, matrix.mixing) for matrix in matrices if matrix.mixing is not None]
        whole, factor = capped([matrix for matrix, _ in steered if matrix.part.split is None], norm_cap)
        columns = [_ColumnsEdit(*each, norm_cap) for each in steered if each[0].part.split == "columns"]
        rows = [_RowsEdit(*each, norm_cap) for each in steered if each[0].part.split == "rows"]
        self._add([tensor for edit in columns for tensor in edit.partial] + [t for edit in rows for t in edit.partial])
        limited = [edit.limited() for edit in columns]
        self._inner.steer_([*whole, *(matrix for matrix, _ in limited if matrix.columns.numel())])
        factors = [*(each for _, each in limited), *(edit.make_() for edit in rows)]
        return torch.stack([factor.to(factors[0].device), *factors]).amin() if factors else factor

    def _read_columns(self, matrices: Sequence[Matrix]) -> Sums:
        """Sums of the columns that are held; of the same shape in every process, which may hold none."""
        held = [number for number, matrix in enumerate(matrices) if matrix.columns.numel()]
        none = [number for number, matrix in enumerate(matrices) if not matrix.columns.numel()]
        parts = [(held, self._inner.read([matrices[number] for number in held]))] if held else []
        if none:
            longest, device = max(len(matrices[number].basis) for number in none), matrices[0].basis.device
            zeros = (torch.zeros(len(none), *size, device=device) for size in ((longest,), (longest,), ()))
            parts.append((none, Sums(*zeros)))
        return self._merge_columns(parts)


@dataclass(frozen=True, eq=False)
class PartialSums:
    """A reading of several matrices that is complete once `partial` has been summed over the processes.

    Args:
        merge: puts the parts in the order of their numbers.
        parts: numbers of matrices that are whole or split by columns, and their sums.
        rows: numbers of those that are split by rows.
        coefficients: of these, `Q M`.
        totals: of these, `||M||_F^2`.
        partial: what of all this is to be summed.
    """

    merge: Merge
    parts: list[tuple[list[int], Sums]]
    rows: list[int]
    coefficients: list[Float[Tensor, "_ _"]]
    totals: list[Float[Tensor, ""]]
    partial: list[Tensor]

    def sums(self) -> Sums:
        """Energies, signed sums and totals of the whole matrices."""
        if not self.rows:
            return self.merge(self.parts)
        energy = pad_sequence([each.square().sum(-1) for each in self.coefficients], batch_first=True)
        signed = pad_sequence([each.sum(-1) for each in self.coefficients], batch_first=True)
        return self.merge([*self.parts, (self.rows, Sums(energy, signed, torch.stack(self.totals)))])


class _RowsEdit:
    """Of a matrix split by rows: the coefficients `Q M` and, for the cap, every column's energy are sums."""

    def __init__(self, matrix: Matrix, mixing: Tensor, norm_cap: float | None) -> None:
        self._matrix, self._mixing, self._cap = matrix, mixing, norm_cap
        value = matrix.value()
        self.partial = [matrix.basis @ value, *([] if norm_cap is None else [value.square().sum(0)])]

    def make_(self) -> Float[Tensor, ""]:
        """Add to the rows that are here; the factor of the cap."""
        mixed = mixed_where_finite(self.partial[0], self._mixing)
        if self._cap is None:
            add_along_(self._matrix, mixed)
            return torch.ones((), device=mixed.device)
        factor = _factor(_sizes(mixed, self.partial[1]), self._cap)
        add_along_(self._matrix, factor * mixed)
        return factor


class _ColumnsEdit:
    """Of a matrix split by columns: nothing is a sum but, for the cap, the sizes of the edit and of the matrix."""

    def __init__(self, matrix: Matrix, mixing: Tensor, norm_cap: float | None) -> None:
        self._matrix, self._mixing, self._cap = matrix, mixing, norm_cap
        self.partial: list[Tensor] = []
        if norm_cap is not None:
            value = matrix.value()
            self.partial.append(_sizes(mixed_coefficients(value, matrix.basis, mixing), value.square().sum(0)))

    def limited(self) -> tuple[Matrix, Float[Tensor, ""]]:
        """The matrix with its mixing scaled down to the cap, and the factor."""
        if self._cap is None:
            return self._matrix, torch.ones((), device=self._mixing.device)
        factor = _factor(self.partial[0], self._cap)
        return replace(self._matrix, mixing=factor * self._mixing), factor


def _sizes(mixed: Float[Tensor, "direction other"], energy: Float[Tensor, "other"]) -> Float[Tensor, "2"]:
    """`||Q^T T Q M||^2` and `||M||^2`, without columns that are not finite."""
    return torch.stack([mixed.square().sum(), torch.where(torch.isfinite(energy), energy, 0.0).sum()])


def _factor(sizes: Float[Tensor, "2"], norm_cap: float) -> Float[Tensor, ""]:
    changed, whole = sizes.sqrt()
    return (norm_cap * whole / changed.clamp_min(1e-30)).clamp_max(1.0)
