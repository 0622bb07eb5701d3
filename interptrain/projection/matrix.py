"""What is projected: one step's matrices, each with the directions that it is read and steered along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """What one process holds of a matrix whose residual axis is first: everything, some rows or some columns.

    Args:
        split: which of the two is divided among the processes; None where nothing is.
        start: the first row or column that is held.
        stop: behind the last; None for the end.
    """

    split: Literal["rows", "columns"] | None = None
    start: int = 0
    stop: int | None = None

    def along_rows(self, directions: Float[Tensor, "*group d_model"]) -> Float[Tensor, "*group _"]:
        """Directions as far as they meet the rows that are held.

        Example:
            >>> import torch
            >>> Part("rows", 1, 3).along_rows(torch.eye(3)).shape
            torch.Size([3, 2])
        """
        return directions[..., self.start : self.stop] if self.split == "rows" else directions

    def along_columns(self, received: Float[Tensor, "other"]) -> Float[Tensor, "_"]:
        """An input as far as it meets the columns that are held."""
        return received[self.start : self.stop] if self.split == "columns" else received

    def among_rows(self, held: Float[Tensor, "*group _"], size: int) -> Float[Tensor, "*group {size}"]:
        """Figures of the rows that are held, with zeros for the others.

        Example:
            >>> import torch
            >>> Part("rows", 1, 3).among_rows(torch.ones(2), 4)
            tensor([0., 1., 1., 0.])
        """
        return self._among(held, size) if self.split == "rows" else held

    def among_columns(self, held: Float[Tensor, "*group _"], size: int) -> Float[Tensor, "*group {size}"]:
        """Figures of the columns that are held, with zeros for the others."""
        return self._among(held, size) if self.split == "columns" else held

    def _among(self, held: Tensor, size: int) -> Tensor:
        every = held.new_zeros(*held.shape[:-1], size)
        every[..., self.start : self.stop] = held
        return every


WHOLE = Part()


@dataclass(frozen=True, eq=False)
class Matrix:
    """A gradient, or what an optimizer made of a parameter, and the directions it is read along.

    Args:
        columns: a view with the residual axis first; writing to it writes to the parameter or its gradient.
        basis: `Q`, orthonormal rows where it is steered; as far as they meet the matrix's rows.
        mixing: `T`, from `Frame.mixing`; None where it is only read.
        before: the parameter before the step. The matrix `M` is then `columns - before`, else it is `columns`.
        part: what this is of the whole matrix, where other processes hold the rest.
    """

    columns: Float[Tensor, "d_model other"]
    basis: Float[Tensor, "direction d_model"]
    mixing: Float[Tensor, "direction direction"] | None = None
    before: Float[Tensor, "d_model other"] | None = None
    part: Part = WHOLE

    def value(self) -> Float[Tensor, "d_model other"]:
        """`M` in float32: the difference is taken first, so that no digits of a small step are lost."""
        return (self.columns if self.before is None else self.columns - self.before).float()


class Sums(NamedTuple):
    """What one reading of several matrices gives; rows of zeros where a matrix has fewer directions than another.

    Args:
        energy: `||q^T M||^2` of each direction; not finite where an element of `M` is not.
        signed: `sum_j (q^T M)_j`.
        total: `||M||_F^2`.
    """

    energy: Float[Tensor, "matrix direction"]
    signed: Float[Tensor, "matrix direction"]
    total: Float[Tensor, "matrix"]


@runtime_checkable
class Projector(Protocol):
    """Reads and steers the matrices of a step together."""

    def read(self, matrices: Sequence[Matrix]) -> Sums:
        """Energies, signed sums and totals; nothing is changed."""
        ...

    def steer_(self, matrices: Sequence[Matrix]) -> None:
        """Add `Q^T T Q M` to every matrix's `columns`; a column with a coefficient that is not finite stays as it is.

        So gain 1 (`T = 0`) changes no value, and one NaN costs one column its edit and no other anything.
        """
        ...
