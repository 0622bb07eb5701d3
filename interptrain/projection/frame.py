"""A set of directions as an orthonormal basis and the matrix that relates the two."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MINIMUM_EIGENVALUE = 1e-4  # of the Gram matrix of unit rows: two rows at cosine .9999


@dataclass(frozen=True, eq=False)
class Frame:
    r"""Directions `D` written as `D = L Q` with orthonormal `Q` and lower-triangular `L`.

    With `D D^T = L L^T` the steering operator needs no inverse of an ill-conditioned Gram matrix:

        D^T (D D^T + ridge I)^-1 diag(gain - 1) D  =  Q^T  T  Q,
        T = L^T (L L^T + ridge I)^-1 diag(gain - 1) L      (ridge 0:  T = L^-1 diag(gain - 1) L)

    and one gain for all directions gives `T = (gain - 1) I` whatever their angles.

    Args:
        basis: `Q`, orthonormal rows that span the directions.
        factor: `L`.
        solver: `L^T (L L^T + ridge I)^-1`.
    """

    basis: Float[Tensor, "direction d_model"]
    factor: Float[Tensor, "direction direction"]
    solver: Float[Tensor, "direction direction"]

    @classmethod
    def of(cls, directions: Float[Tensor, "direction d_model"], *, ridge: float = 0.0, ask: bool = True) -> Frame:
        """Factorise unit rows, in float64, onto the device and into the precision of float32.

        Args:
            directions: `D`.
            ridge: added to the Gram matrix's diagonal.
            ask: raise for rows that cannot be steered apart, which waits for the device. Else such rows, and any that
                are not finite, make a frame that steers nothing: `Q = 0`.

        Raises:
            ValueError: rows are so nearly parallel that a gain for each has no meaning, and no ridge was asked for.
        """
        rows, width = directions.shape
        exact = directions.double()
        if ask and ridge == 0:
            _refuse_parallel_rows(exact)
        elif rows > width:
            raise ValueError(f"{rows} directions cannot be steered apart in a stream of width {width}")
        q, r = torch.linalg.qr(exact.T)
        factor = r.T
        regularised = factor @ factor.T + ridge * torch.eye(rows, dtype=torch.float64, device=factor.device)
        solver = torch.linalg.solve_ex(regularised, factor)[0].T
        if not ask:
            apart = _apart(exact, ridge)
            q, factor, solver = (torch.where(apart, each, 0.0) for each in (q, factor, solver))
        return cls(q.T.float().contiguous(), factor.float(), solver.float())

    def mixing(self, gains: Float[Tensor, "direction"]) -> Float[Tensor, "direction direction"]:
        """`T` for these gains: what the correction does in the coordinates of the basis."""
        return self.solver @ ((gains - 1)[:, None] * self.factor)


def _apart(directions: Float[Tensor, "direction d_model"], ridge: float) -> Bool[Tensor, ""]:
    """Whether no eigenvalue of the Gram matrix is too small to steer by; nothing waits for the device."""
    gram = directions @ directions.T
    room = ridge if ridge > 0 else -MINIMUM_EIGENVALUE
    shifted = gram + room * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.isfinite(gram).all() & (torch.linalg.cholesky_ex(shifted)[1] == 0)


def _refuse_parallel_rows(directions: Float[Tensor, "direction d_model"]) -> None:
    gram = directions @ directions.T
    if not torch.isfinite(gram).all():
        raise ValueError("directions hold NaN or infinity; does the norm in front of the parameter?")
    smallest = float(torch.linalg.eigvalsh(gram)[0])
    if smallest > MINIMUM_EIGENVALUE:
        return
    cosines = (gram - torch.diag(gram.diagonal())).abs()
    first, second = divmod(int(cosines.argmax()), len(gram))
    raise ValueError(
        f"directions are linearly dependent or nearly so (smallest Gram eigenvalue {smallest:.1e}, expected more "
        f"than {MINIMUM_EIGENVALUE:.0e}; rows {first} and {second} have cosine {float(gram[first, second]):.5f}): "
        "a gain for each has no unique meaning. Drop the redundant rows or pass a ridge such as 1e-3"
    )
