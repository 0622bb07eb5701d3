"""A bound on how much of a matrix its steering may change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from interptrain.projection.matrix import Matrix
from interptrain.projection.reference import mixed_coefficients


def cap_factor(
    value: Float[Tensor, "d_model other"],
    basis: Float[Tensor, "direction d_model"],
    mixing: Float[Tensor, "direction direction"],
    norm_cap: float,
) -> Float[Tensor, ""]:
    """By what `T` must be multiplied so that `||Q^T T Q M|| <= norm_cap ||M||`; 1 where it holds already.

    Columns with NaN or infinity, which are not steered, count on neither side.
    """
    changed = mixed_coefficients(value, basis, mixing).norm()  # that of Q^T T Q M, as Q has orthonormal rows
    energy = value.square().sum(0)
    whole = torch.where(torch.isfinite(energy), energy, 0.0).sum().sqrt()
    return (norm_cap * whole / changed.clamp_min(1e-30)).clamp_max(1.0)


def capped(matrices: Sequence[Matrix], norm_cap: float | None) -> tuple[Sequence[Matrix], Float[Tensor, ""]]:
    """The matrices with their mixings scaled down to the cap, and the smallest factor; at the price of a reading.

    Example:
        >>> import torch
        >>> remove = Matrix(torch.tensor([[3.0], [4.0]]), torch.tensor([[1.0, 0.0]]), -torch.eye(1))
        >>> matrices, factor = capped([remove], 0.3)
        >>> matrices[0].mixing, factor
        (tensor([[-0.5000]]), tensor(0.5000))
    """
    steered = [(matrix, matrix.mixing) for matrix in matrices if matrix.mixing is not None]
    if norm_cap is None or not steered:
        return matrices, torch.ones((), device=matrices[0].columns.device if matrices else None)
    factors = [cap_factor(matrix.value(), matrix.basis, mixing, norm_cap) for matrix, mixing in steered]
    scaled = [
        replace(matrix, mixing=factor * mixing) for (matrix, mixing), factor in zip(steered, factors, strict=True)
    ]
    return scaled, torch.stack(factors).amin()
