"""What a kernel launch is driven by: which program, one row a matrix, one entry a tile, and the packed directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from interptrain.projection.matrix import Matrix

LARGEST_CHUNK = 64  # directions that a program holds at once; more go in chunks
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
PADDED = {torch.float32: (4, 8, 16, 32, 64), torch.bfloat16: (16, 32, 64), torch.float16: (16, 32, 64)}
ALIGNMENT = 16  # bytes: of the wide loads

# `struct Matrix` of csrc/common.cuh.
ROW = np.dtype(
    [
        ("columns", "u8"), ("before", "u8"), ("mixing", "u8"), ("stride", "i8"), ("other", "i4"), ("reads", "i4"),
        ("adds", "i4"), ("first_tile", "i4"), ("tiles", "i4"), ("unused", "i4"),
    ]
)  # fmt: skip


class Program(NamedTuple):
    """One specialisation of the sources: `-DDTYPE -DDIRECTIONS -DDIFFERENCE`.

    Example:
        >>> program = Program.of(torch.bfloat16, directions=5, difference=False)
        >>> program.macros(), program.extents("writers")
        ({'DTYPE': 1, 'DIRECTIONS': 16, 'DIFFERENCE': 0}, (16, 32))
    """

    dtype: torch.dtype
    directions: int
    difference: bool

    @classmethod
    def of(cls, dtype: torch.dtype, *, directions: int, difference: bool) -> Program:
        """The smallest program that holds so many directions, or a chunk of them."""
        wanted = min(directions, LARGEST_CHUNK)
        return cls(dtype, next(size for size in PADDED[dtype] if size >= wanted), difference)

    @property
    def sources(self) -> tuple[str, ...]:
        """Files of csrc/, in order."""
        return ("common.cuh", "float32.cu" if self.dtype == torch.float32 else "half.cu", "finish.cu")

    @property
    def kernels(self) -> tuple[str, ...]:
        """Entry points."""
        return (*(f"{axis}_{n}" for axis in ("readers", "writers") for n in self.extents(axis)), "finish")

    @property
    def sums(self) -> int:
        """Figures a matrix: energies, signed sums, the total."""
        return 2 * self.directions + 1

    def macros(self) -> dict[str, int]:
        """What the sources are specialised by."""
        return {"DTYPE": DTYPES[self.dtype], "DIRECTIONS": self.directions, "DIFFERENCE": int(self.difference)}

    def extents(self, axis: str) -> tuple[int, ...]:
        """Sizes of a tile across the residual axis, smallest first."""
        if self.dtype == torch.float32:
            return (8,) if axis == "readers" else (16, 32)
        if self.directions < LARGEST_CHUNK:
            return (16, 32)
        return (16, 48 if axis == "readers" else 64)

    def extent(self, axis: str, other: int) -> int:
        """The smallest tile that takes matrices as wide as `other` in one, or else the largest."""
        return next((each for each in self.extents(axis) if each >= other), self.extents(axis)[-1])

    def shared_bytes(self, extent: int) -> int:
        """Dynamic shared memory of a tile of this extent."""
        return 4 * (32 + extent * (2 * self.directions + 1))


class Layout(NamedTuple):
    """How a matrix lies in memory: `[other, d_model]` (readers) or `[d_model, other]` (writers)."""

    axis: str
    other: int
    stride: int


def layout_of(matrix: Matrix) -> Layout | str:
    """How a matrix lies in memory, or why no kernel takes it."""
    columns, before = matrix.columns, matrix.before
    d_model, other = columns.shape
    by_row, by_column = columns.stride()
    if columns.dtype not in DTYPES:
        return f"{columns.dtype} is none of float32, bfloat16, float16"
    if len(matrix.basis) == 0:
        return "it has no directions"
    if by_row == 1:
        layout, unit = Layout("readers", other, by_column), 4 if columns.dtype == torch.float32 else 32
    elif by_column == 1:
        layout, unit = Layout("writers", other, by_row), 1 if columns.dtype == torch.float32 else 16
    else:
        return f"strides {by_row} and {by_column}: neither axis is contiguous"
    if other <= 1 and layout.axis == "readers":  # a bias: its one row has no next
        layout = layout._replace(stride=d_model)
    if d_model % unit:
        return f"a residual axis of {d_model} is no multiple of {unit}"
    if layout.axis == "writers" and other % (ALIGNMENT // columns.element_size()):
        return f"{other} columns of {columns.element_size()} bytes do not fill {ALIGNMENT}-byte words"
    step = layout.stride * columns.element_size()
    pointers = [columns.data_ptr()] + ([] if before is None else [before.data_ptr()])
    if step % ALIGNMENT or any(pointer % ALIGNMENT for pointer in pointers):
        return f"its rows are not aligned to {ALIGNMENT} bytes (a row is {step} bytes from the next)"
    if before is not None and (before.stride() != columns.stride() or before.dtype != columns.dtype):
        return "the copy from before the step lies otherwise in memory than the parameter"
    return layout


@dataclass(frozen=True, eq=False)
class Directions:
    """Direction sets as the kernels read them, and the inverse Gram matrix of their rounded rows.

    Args:
        by_direction: the residual index contiguous.
        by_residual: the direction contiguous.
        inverse_gram: `(D D^T)^-1` of the rounded rows; identity for float32, whose rows are orthonormal as they are.
    """

    by_direction: Float[Tensor, "set direction d_model"]
    by_residual: Float[Tensor, "set d_model direction"]
    inverse_gram: Float[Tensor, "set direction direction"]

    @classmethod
    def packed(
        cls, rows: Sequence[Float[Tensor, "_ d_model"]], directions: int, dtype: torch.dtype, *, steered: bool
    ) -> Directions:
        """Pad with zero rows, round, and lay out both ways."""
        padded = torch.stack([pad(each, (0, 0, 0, directions - len(each))) for each in rows])
        by_direction = padded.to(dtype).contiguous()
        gram = torch.eye(directions, device=padded.device).expand(len(rows), -1, -1)
        if steered and dtype != torch.float32:
            rounded = by_direction.double()
            empty = (rounded == 0).all(-1).double()
            gram = torch.linalg.inv_ex(rounded @ rounded.mT + torch.diag_embed(empty))[0].float()
        return cls(by_direction, by_direction.mT.contiguous(), gram)


def chunks(directions: int) -> list[slice]:
    """The rows of a basis, as many at a time as a program holds."""
    return [slice(first, first + LARGEST_CHUNK) for first in range(0, directions, LARGEST_CHUNK)]


def stages(mixing: Float[Tensor, "direction direction"]) -> list[tuple[int, int]]:
    """Blocks `(adds, reads)` of a lower triangular `T` in an order in which each can be added in place.

    A block row is worked off before any block that it is read from: last row first, and within it the diagonal
    block first, which alone reads what it changes.

    Raises:
        ValueError: `T` is not lower triangular by blocks, as with a ridge. One synchronisation.
    """
    parts = chunks(len(mixing))
    above = [mixing[row, column].abs().amax() for n, row in enumerate(parts) for column in parts[n + 1 :]]
    if above and bool(torch.stack(above).amax() > 1e-6 * mixing.abs().amax()):
        raise ValueError(f"{len(mixing)} directions under a ridge cannot be steered {LARGEST_CHUNK} at a time")
    last = len(parts) - 1
    return [(adds, reads) for adds in range(last, -1, -1) for reads in (adds, *range(adds))]
