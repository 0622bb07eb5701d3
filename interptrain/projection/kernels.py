"""The kernel path: all matrices of a step of one type in one launch an axis, and one more for the sums."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from interptrain.projection.grouped import Merge, TorchProjector
from interptrain.projection.matrix import Matrix, Sums
from interptrain.projection.tables import (
    ALIGNMENT,
    LARGEST_CHUNK,
    ROW,
    Directions,
    Layout,
    Program,
    chunks,
    layout_of,
    stages,
)

SUMS_A_BLOCK = 32  # of the finish kernel
FINISH_BYTES = 8 * 256  # its shared memory
PLANS = 16  # kept: for the gradients, what was written, the edits, and a few numbers of tokens


@runtime_checkable
class Runner(Protocol):
    """Starts kernels: on a device, or on what stands in for one."""

    @property
    def stream(self) -> int:
        """What the next launch is ordered on."""
        ...

    def launch(self, program: Program, kernel: str, blocks: int, shared_bytes: int, *arguments: int | np.int32) -> None:
        """Start a kernel; addresses are ints, integers `np.int32`."""
        ...

    def upload(self, table: np.ndarray) -> Tensor:
        """A copy of the table's bytes on the device, ordered on the stream."""
        ...

    def hold(self, *tensors: Tensor) -> None:
        """Keep what a launch uses for as long as a graph that is being captured may use it."""
        ...

    def prepare(self, what: str) -> None:
        """Say that something is about to be done which no graph can capture."""
        ...


class KernelProjector:
    """Reads and steers by the kernels of csrc/.

    What depends on shapes and directions alone is kept from step to step: tables, tiles, packed directions. A table
    is uploaded again only when an address in it has changed.

    Args:
        runner: what starts the kernels.
        strict: raise for a matrix that no kernel takes; else torch takes it.
    """

    def __init__(self, runner: Runner, *, strict: bool = False) -> None:
        self._runner, self._strict = runner, strict
        self._torch, self._merge = TorchProjector(), Merge()
        self._plans: dict[object, _Plan] = {}

    def __repr__(self) -> str:
        return f"KernelProjector({self._runner!r}, strict={self._strict})"

    def read(self, matrices: Sequence[Matrix]) -> Sums:
        """Energies, signed sums and totals; nothing is changed.

        Raises:
            ValueError: strict, and no kernel takes one of the matrices.
        """
        plan = self._plan(matrices, steer=False)
        parts = [(group.numbers, group.read([matrices[n] for n in group.numbers])) for group in plan.groups]
        if plan.left:
            parts.append((plan.left, self._torch.read([matrices[number] for number in plan.left])))
        return self._merge(parts)

    def steer_(self, matrices: Sequence[Matrix]) -> None:
        """Add `Q^T T Q M` to every matrix that has a mixing.

        Raises:
            ValueError: strict, and no kernel takes one of the matrices.
        """
        steered = [matrix for matrix in matrices if matrix.mixing is not None]
        plan = self._plan(steered, steer=True)
        for group in plan.groups:
            group.steer_([steered[number] for number in group.numbers])
        if plan.left:
            self._torch.steer_([steered[number] for number in plan.left])

    def _plan(self, matrices: Sequence[Matrix], *, steer: bool) -> _Plan:
        """The plan of the last call for such matrices, if nothing but addresses and mixings has changed since.

        Everything of a plan is made on the stream that it is used on.
        """
        slot = (steer, self._runner.stream, tuple(_shape(matrix) for matrix in matrices))
        key = tuple(_key(matrix) for matrix in matrices)
        plan = self._plans.pop(slot, None)
        if plan is None or plan.key != key:
            plan = self._planned(key, matrices, steer=steer)
        self._plans[slot] = plan
        if len(self._plans) > PLANS:
            del self._plans[next(iter(self._plans))]
        return plan

    def _planned(self, key: tuple[object, ...], matrices: Sequence[Matrix], *, steer: bool) -> _Plan:
        self._runner.prepare("matrices would have to be looked at")
        layouts: dict[int, Layout] = {}
        members: dict[tuple[Program, int, int], list[int]] = defaultdict(list)
        for number, matrix in enumerate(matrices):
            layout = layout_of(matrix) if not steer else _steerable(matrix)
            if isinstance(layout, Layout):
                layouts[number] = layout
                d_model, dtype, count = len(matrix.columns), matrix.columns.dtype, len(matrix.basis)
                program = Program.of(dtype, directions=count, difference=matrix.before is not None)
                members[program, len(chunks(count)), d_model].append(number)
            elif self._strict:
                raise ValueError(
                    f'backend="cuda": no kernel takes a matrix of shape {tuple(matrix.columns.shape)}, {layout}. '
                    'backend="auto" leaves such a matrix to torch'
                )
        groups = []
        for (program, _, _), numbers in members.items():
            chosen = [matrices[number] for number in numbers], [layouts[number] for number in numbers]
            groups.append(_Group(self._runner, program, numbers, *chosen, steer=steer))
        left = [number for number in range(len(matrices)) if number not in layouts]
        return _Plan(key, groups, left, [matrix.basis for matrix in matrices])


def _steerable(matrix: Matrix) -> Layout | str:
    """As `layout_of`, and whether more directions than one program holds can be steered a chunk at a time."""
    if matrix.mixing is not None and len(matrix.basis) > LARGEST_CHUNK:
        try:
            stages(matrix.mixing)
        except ValueError as error:
            return str(error)
    return layout_of(matrix)


def _shape(matrix: Matrix) -> tuple[object, ...]:
    columns = matrix.columns
    return columns.shape, columns.stride(), columns.dtype, matrix.before is None


def _key(matrix: Matrix) -> tuple[object, ...]:
    """What else a plan depends on; it keeps the bases, so that no other tensor is given the identity of one."""
    before = 0 if matrix.before is None else matrix.before.data_ptr() % ALIGNMENT
    return id(matrix.basis), matrix.columns.data_ptr() % ALIGNMENT, before


@dataclass(eq=False)
class _Plan:
    """Which kernels a list of matrices goes to, and which of them torch takes."""

    key: tuple[object, ...]
    groups: list[_Group]
    left: list[int]
    bases: list[Tensor]


class _Group:
    """Matrices of one type, one width and one program: they share their launches.

    Args:
        runner: what starts the kernels.
        program: which.
        numbers: of the matrices, among all.
        matrices: these.
        layouts: how they lie in memory.
        steer: whether they will be steered, not only read.
    """

    def __init__(
        self,
        runner: Runner,
        program: Program,
        numbers: list[int],
        matrices: list[Matrix],
        layouts: list[Layout],
        *,
        steer: bool,
    ) -> None:
        self.numbers = numbers
        self._runner, self._program = runner, program
        self._d_model, self._most = len(matrices[0].columns), max(len(matrix.basis) for matrix in matrices)
        bases = list({id(matrix.basis): matrix.basis for matrix in matrices}.values())
        parts = chunks(self._most)
        rows = [basis[part] for basis in bases for part in parts]
        self._directions = Directions.packed(rows, program.directions, program.dtype, steered=steer)
        first = {id(basis): number * len(parts) for number, basis in enumerate(bases)}
        self._sets = np.array([first[id(matrix.basis)] for matrix in matrices])  # of the first chunk; others follow
        self._parts = parts
        self._rows = np.zeros(len(matrices), ROW)
        self._rows["stride"], self._rows["other"] = zip(*((each.stride, each.other) for each in layouts), strict=True)
        self._tiles = self._lay_tiles(layouts)
        self._tables: dict[tuple[int, int], tuple[tuple[object, ...], Tensor]] = {}
        self._mixings: tuple[list[Tensor], dict[tuple[int, int], Tensor], np.ndarray] | None = None

    def read(self, matrices: Sequence[Matrix]) -> Sums:
        """Energies, signed sums and totals of the group's matrices, in their order."""
        figures = []
        for number in range(len(self._parts)):
            table, partial = self._launch(matrices, number, number, 0)
            out = torch.empty(len(matrices), self._program.sums, dtype=torch.float64, device=partial.device)
            blocks = len(matrices) * -(-self._program.sums // SUMS_A_BLOCK)
            arguments = (each.data_ptr() for each in (table, partial, out))
            self._runner.launch(self._program, "finish", blocks, FINISH_BYTES, *arguments)
            figures.append(out.float())
        size = self._program.directions
        energy, signed = (
            torch.cat([each[:, start : start + size] for each in figures], 1)[:, : self._most] for start in (0, size)
        )
        return Sums(energy, signed, figures[0][:, -1])

    def steer_(self, matrices: Sequence[Matrix]) -> None:
        """Add the correction to the group's matrices."""
        blocks, places = self._mixed(matrices)
        for (adds, reads), block in blocks.items():
            self._runner.hold(block)
            self._launch(matrices, adds, reads, block.data_ptr() + places * np.uint64(block[0].nbytes))

    def _lay_tiles(self, layouts: Sequence[Layout]) -> dict[str, tuple[int, int, Tensor]]:
        """For each axis the extent of its tiles, how many, and `(matrix, tile)` of each; also numbers their sums."""
        laid = {}
        for axis in dict.fromkeys(layout.axis for layout in layouts):
            members = [number for number, layout in enumerate(layouts) if layout.axis == axis]
            extent = self._program.extent(axis, max(layouts[number].other for number in members))
            counts = [-(-layouts[number].other // extent) for number in members]
            self._rows["tiles"][members] = counts
            pairs = [(number, tile) for number, count in zip(members, counts, strict=True) for tile in range(count)]
            if pairs:
                laid[axis] = (extent, len(pairs), self._runner.upload(np.array(pairs, np.int32)))
        self._rows["first_tile"] = np.cumsum(self._rows["tiles"]) - self._rows["tiles"]
        return laid

    def _launch(
        self, matrices: Sequence[Matrix], adds: int, reads: int, mixing: int | np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """One pass over every matrix; gives the table and the tiles' sums."""
        table = self._table(matrices, adds, reads, mixing)
        directions = self._directions
        total = int(self._rows["tiles"].sum())
        partial = torch.empty(total, self._program.sums, device=directions.by_direction.device)
        for axis, (extent, count, tiles) in self._tiles.items():
            tensors = (table, tiles, directions.by_direction, directions.by_residual, partial)
            self._runner.hold(*tensors)
            self._runner.launch(
                self._program, f"{axis}_{extent}", count, self._program.shared_bytes(extent),
                *(tensor.data_ptr() for tensor in tensors), np.int32(self._d_model),
            )  # fmt: skip
        return table, partial

    def _table(self, matrices: Sequence[Matrix], adds: int, reads: int, mixing: int | np.ndarray) -> Tensor:
        """The table of a pass, uploaded if an address in it is not what it was."""
        columns = np.array([matrix.columns.data_ptr() for matrix in matrices], np.uint64)
        before = np.array([0 if m.before is None else m.before.data_ptr() for m in matrices], np.uint64)
        mixings = np.broadcast_to(np.asarray(mixing, np.uint64), columns.shape)
        key = (columns.tobytes(), before.tobytes(), mixings.tobytes())
        kept = self._tables.get((adds, reads))
        if kept is None or kept[0] != key:
            rows = self._rows.copy()
            rows["columns"], rows["before"], rows["mixing"] = columns, before, mixings
            rows["reads"], rows["adds"] = self._sets + reads, self._sets + adds
            kept = self._tables[adds, reads] = (key, self._runner.upload(rows))
        return kept[1]

    def _mixed(self, matrices: Sequence[Matrix]) -> tuple[dict[tuple[int, int], Tensor], np.ndarray]:
        """By stage the padded blocks of `(D D^T)^-1 T`, and which of them each matrix takes; anew for new mixings."""
        mixings = [matrix.mixing for matrix in matrices if matrix.mixing is not None]
        kept = self._mixings
        if kept is not None and all(old is new for old, new in zip(kept[0], mixings, strict=True)):
            return kept[1], kept[2]
        self._runner.prepare("new gains would have to be taken up")
        pairs = {(first, id(mixing)): mixing for first, mixing in zip(self._sets.tolist(), mixings, strict=True)}
        place = {pair: number for number, pair in enumerate(pairs)}
        blocks = {}
        for adds, reads in stages(mixings[0]):
            inverse = torch.stack([self._directions.inverse_gram[first + adds] for first, _ in pairs])
            block = [self._padded(mixing[self._parts[adds], self._parts[reads]]) for mixing in pairs.values()]
            blocks[adds, reads] = inverse @ torch.stack(block)
        places = [place[first, id(mixing)] for first, mixing in zip(self._sets.tolist(), mixings, strict=True)]
        self._mixings = (mixings, blocks, np.array(places, np.uint64))
        return blocks, self._mixings[2]

    def _padded(self, block: Float[Tensor, "adds reads"]) -> Float[Tensor, "size size"]:
        size = self._program.directions
        return pad(block.float(), (0, size - block.shape[1], 0, size - block.shape[0]))
