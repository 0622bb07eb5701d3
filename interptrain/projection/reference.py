"""Projection and steering in torch: the reference, and the CPU's path.

Everything here is linear algebra on one tensor: no step counter, no logger, no model.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interptrain.projection.frame import Frame


def as_columns(gradient: Tensor, axis: int) -> Float[Tensor, "d_model other"]:
    """View a parameter or its gradient with the residual axis first and all others flattened.

    A writer's weight `[d_model, in]` (axis 0) is its own view, a reader's `[out, d_model]` (axis 1) its
    transpose, a bias `[d_model]` one column. Always a view: writing to it writes to the gradient.
    """
    if gradient.ndim == 1:
        return gradient[:, None]
    return gradient if axis == 0 else gradient.T


def project(
    gradient: Tensor, directions: Float[Tensor, "direction d_model"], *, axis: int
) -> Float[Tensor, "direction other"]:
    """Coefficients of a gradient or update on each direction: `D G` (writers), `D G^T` (readers).

    Args:
        gradient: `G`, of one or two dimensions.
        directions: `D`, unit rows in the parameter's own coordinates.
        axis: the residual axis of `G`.

    Returns:
        One row a direction, in float32.

    Raises:
        ValueError: widths differ.

    Example:
        >>> import torch
        >>> project(torch.tensor([[1., 2.], [3., 4.]]), torch.tensor([[1., 0.]]), axis=1)
        tensor([[1., 3.]])
    """
    columns = as_columns(gradient, axis)
    _check_width(columns, directions, axis)
    return directions.float() @ columns.float()


def steer_(
    gradient: Tensor,
    directions: Float[Tensor, "direction d_model"],
    gains: Float[Tensor, "direction"],
    *,
    axis: int,
    ridge: float = 0.0,
) -> None:
    """Multiply the coefficient on each direction by its gain; overwrites `gradient`.

    The smallest change that does so:

        G' = G + D^T (D D^T)^-1 diag(gain - 1) D G        (readers: the same on the right)

    so that `D G' = diag(gain) D G` exactly, whatever the angles between directions, and `G' - G` lies in
    their span. Gain 1 leaves, 0 removes, 2 doubles, -1 reverses. All gains 1: bit-identical.

    Args:
        gradient: `G`, of one or two dimensions, any float type; the correction is computed in float32.
        directions: `D`, unit rows.
        gains: one a direction.
        axis: the residual axis of `G`.
        ridge: added to the Gram matrix's diagonal when rows are nearly parallel; gains are then not exact.

    Raises:
        ValueError: widths differ, or rows are nearly parallel and no ridge was given.

    Example:
        >>> import torch
        >>> gradient = torch.tensor([[1., 2.], [3., 4.]])
        >>> steer_(gradient, torch.tensor([[1., 0.]]), torch.tensor([0.]), axis=0)
        >>> gradient
        tensor([[0., 0.],
                [3., 4.]])
    """
    columns = as_columns(gradient, axis)
    _check_width(columns, directions, axis)
    frame = Frame.of(directions, ridge=ridge)
    correct_(columns, frame.basis, frame.mixing(gains))


def correct_(
    columns: Float[Tensor, "d_model other"],
    basis: Float[Tensor, "direction d_model"],
    mixing: Float[Tensor, "direction direction"],
) -> None:
    """Add `Q^T T Q G` to `G`, which it overwrites; a column that holds NaN or infinity is left as it was found.

    Args:
        columns: `G`, residual axis first.
        basis: `Q`, orthonormal.
        mixing: `T`.
    """
    columns.add_(basis.T @ mixed_coefficients(columns.float(), basis, mixing))


def mixed_coefficients(
    value: Float[Tensor, "*batch d_model other"],
    basis: Float[Tensor, "*batch direction d_model"],
    mixing: Float[Tensor, "*batch direction direction"],
) -> Float[Tensor, "*batch direction other"]:
    """`T Q M`, what is added along each row of `Q`; zero in columns of `M` that hold NaN or infinity."""
    return mixed_where_finite(basis @ value, mixing)


def mixed_where_finite(
    coefficients: Float[Tensor, "*batch direction other"], mixing: Float[Tensor, "*batch direction direction"]
) -> Float[Tensor, "*batch direction other"]:
    """`T C`, zero in columns of the coefficients `C = Q M` that hold NaN or infinity."""
    finite = torch.isfinite(coefficients).all(-2, keepdim=True)  # every element of a column reaches its coefficients
    return torch.where(finite, mixing @ coefficients, 0.0)


def energies(
    columns: Float[Tensor, "d_model other"], bases: Float[Tensor, "group direction d_model"]
) -> Float[Tensor, "group direction"]:
    """`||q^T G||^2` for each orthonormal row `q` of each group; a group's sum is its energy in `G`.

    Takes the cheaper of two exact ways: `Q G` directly, or `diag(Q S Q^T)` with `S = G G^T` where there are
    more rows than the stream is wide.
    """
    wide, rows = columns.float(), bases.flatten(0, 1)
    if len(rows) > min(rows.shape[1], columns.shape[1]):
        energy = ((rows @ (wide @ wide.T)) * rows).sum(-1)
    else:
        energy = (rows @ wide).square().sum(-1)
    return energy.view(bases.shape[:2])


def _check_width(columns: Tensor, directions: Tensor, axis: int) -> None:
    if columns.shape[0] != directions.shape[1]:
        raise ValueError(
            f"directions have width {directions.shape[1]} but the gradient has {columns.shape[0]} on axis {axis}"
        )
