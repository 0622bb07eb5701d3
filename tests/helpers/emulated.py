"""The kernels' own source, run on the CPU in place of a device."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from interptrain.projection.nvrtc import kernel_source
from interptrain.projection.tables import Program
from tests.helpers.emulator import Emulated

THREADS = 256
PROGRAMS: dict[tuple[Program, str], Emulated] = {}


class EmulatedRunner:
    """Runs kernels on CPU tensors, thread by thread.

    Args:
        order: of the threads and blocks.
        edit: what to do to the source first, to see whether the tests notice.
    """

    stream = 0

    def __init__(self, order: str = "ascending", edit: Callable[[str], str] = str) -> None:
        self.order, self.edit = order, edit
        self.launched: list[str] = []
        self.uploads = 0

    def launch(self, program: Program, kernel: str, blocks: int, shared_bytes: int, *arguments: int | np.int32) -> None:
        self.launched.append(kernel)
        sized = [each if isinstance(each, np.int32) else np.uint64(each) for each in arguments]
        self._emulated(program).launch(kernel, blocks, THREADS, shared_bytes, *sized, order=self.order)

    def upload(self, table: np.ndarray) -> torch.Tensor:
        self.uploads += 1
        return torch.from_numpy(table.reshape(-1).view(np.uint8).copy())

    def hold(self, *tensors: torch.Tensor) -> None:
        pass  # nothing is captured here

    def prepare(self, what: str) -> None:
        pass

    def _emulated(self, program: Program) -> Emulated:
        source = self.edit(kernel_source(*program.sources))
        if (program, source) not in PROGRAMS:
            PROGRAMS[program, source] = Emulated(source, program.macros(), program.kernels)
        return PROGRAMS[program, source]
