"""Matrices to project, and the float64 answers, which share no code with the projectors."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from interptrain.projection import Frame, Matrix

AXES = ("readers", "writers")


def matrix(
    seed,
    d_model,
    other,
    directions,
    *,
    axis="writers",
    dtype=torch.float32,
    padding=0,
    difference=False,
    gains=None,
    frame=None,
):
    """A matrix as it lies in a model, with a frame of random unit rows and random gains; `padding` widens its rows."""
    generator = torch.Generator().manual_seed(seed)
    if frame is None:
        rows = torch.randn(directions, d_model, generator=generator)
        frame = Frame.of(rows / rows.norm(dim=-1, keepdim=True))
    gains = torch.randn(directions, generator=generator) if gains is None else gains

    def lying():
        shape = (other, d_model) if axis == "readers" else (d_model, other)
        storage = torch.randn(shape[0], shape[1] + padding, generator=generator).to(dtype)
        view = storage[:, : shape[1]]
        return view.T if axis == "readers" else view

    before = lying() if difference else None
    columns = lying()
    if before is not None:
        columns.copy_(before + 0.1 * columns)
    return Matrix(columns, frame.basis, frame.mixing(gains), before)


@dataclass(frozen=True)
class Expected:
    """What float64 NumPy makes of a matrix."""

    energy: np.ndarray
    signed: np.ndarray
    total: float
    steered: np.ndarray


def expected(found: Matrix, *, rounded: bool = False) -> Expected:
    """`Q M` and `columns + Q^T T Q M`; with `rounded` along the rows as their type rounds them.

    The rounded rows `R` are no longer orthonormal, and `T` is corrected by their Gram matrix: the operator is
    `R^T (R R^T)^-1 T R`, and the difference `M` is rounded too.
    """
    dtype = found.columns.dtype
    columns = found.columns.double().numpy()
    rows = (found.basis.to(dtype) if rounded else found.basis).double().numpy()
    value = columns if found.before is None else columns - found.before.double().numpy()
    if rounded and found.before is not None:
        value = torch.from_numpy(value).to(dtype).double().numpy()
    with np.errstate(invalid="ignore", over="ignore"):
        coefficients = rows @ value
        steered = columns
        if found.mixing is not None:
            mixed = np.linalg.solve(rows @ rows.T, found.mixing.double().numpy()) @ coefficients
            finite = np.isfinite(coefficients).all(0)
            steered = columns + rows.T @ np.where(finite, mixed, 0.0)
        return Expected(np.square(coefficients).sum(1), coefficients.sum(1), float(np.square(value).sum()), steered)


def fresh(found: Matrix) -> Matrix:
    """A copy that can be steered, lying in memory as the original does."""
    own = torch.empty_strided(found.columns.shape, found.columns.stride(), dtype=found.columns.dtype)
    return replace(found, columns=own.copy_(found.columns))
