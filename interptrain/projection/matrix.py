"""What is projected: one step's matrices, each with the directions that it is read and steered along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Matrix:
    """A gradient, or what an optimizer made of a parameter, and the directions it is read along.

    Args:
        columns: a view with the residual axis first; writing to it writes to the parameter or its gradient.
        basis: `Q`, orthonormal rows where it is steered.
        mixing: `T`, from `Frame.mixing`; None where it is only read.
        before: the parameter before the step. The matrix `M` is then `columns - before`, else it is `columns`.
    """

    columns: Float[Tensor, "d_model other"]
    basis: Float[Tensor, "direction d_model"]
    mixing: Float[Tensor, "direction direction"] | None = None
    before: Float[Tensor, "d_model other"] | None = None

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
