"""Starting the kernels on a CUDA device, beside torch: its context, its current stream, its allocator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interptrain.projection import nvrtc
from interptrain.projection.tables import Program

THREADS = 256  # a block, in every kernel
OLDEST = (8, 0)  # compute capability: the first with bfloat16 tensor cores


def obstacles(device: torch.device) -> Iterator[str]:
    """What keeps the kernels from running on a device, one after the other, the dearest to find out last."""
    if device.type != "cuda":
        yield f"{device} is no CUDA device"
    elif (capability := torch.cuda.get_device_capability(device)) < OLDEST:
        yield f"{torch.cuda.get_device_name(device)} has compute capability {capability}, the kernels need {OLDEST}"
    missing = nvrtc.missing()
    if missing is not None:
        yield missing


class CudaRunner:
    """Compiles each program when it is first needed, or takes it from the disk, and launches on torch's stream.

    Args:
        device: a CUDA device without `obstacles`.
    """

    def __init__(self, device: torch.device) -> None:
        torch.cuda.current_stream(device)  # torch first: it makes the device's primary context, which is used here too
        from cuda.core import Device

        self._device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        with torch.cuda.device(self._device):
            Device(self._device.index).set_current()
        major, minor = torch.cuda.get_device_capability(self._device)
        self._arch = f"sm_{major}{minor}"
        self._kernels: dict[tuple[Program, str], Any] = {}
        self._captured: list[Tensor] = []

    def __repr__(self) -> str:
        return f"CudaRunner({str(self._device)!r})"

    @property
    def stream(self) -> int:
        """torch's current stream."""
        return torch.cuda.current_stream(self._device).cuda_stream

    def launch(self, program: Program, kernel: str, blocks: int, shared_bytes: int, *arguments: int | np.int32) -> None:
        """Start a kernel on torch's current stream."""
        from cuda.core import LaunchConfig, launch

        if (program, kernel) not in self._kernels:
            self._load(program)
        config = LaunchConfig(grid=blocks, block=THREADS, shmem_size=shared_bytes)
        with torch.cuda.device(self._device):
            launch(_Stream(self.stream), config, self._kernels[program, kernel], *arguments)

    def upload(self, table: np.ndarray) -> Tensor:
        """A copy on the device, from pinned memory that torch keeps until the copy is done."""
        self._refuse_in_capture("the tables of addresses would have to be uploaded")
        raw = torch.from_numpy(table.reshape(-1).view(np.uint8).copy())
        return raw.pin_memory().to(self._device, non_blocking=True)

    def hold(self, *tensors: Tensor) -> None:
        """Keep what a captured graph will use at every replay; nothing outside a capture, where torch sees to it."""
        if torch.cuda.is_current_stream_capturing():
            self._captured += tensors

    def _load(self, program: Program) -> None:
        self._refuse_in_capture("a kernel would have to be loaded")
        from cuda.core import ObjectCode

        source = nvrtc.kernel_source(*program.sources)
        compiled = nvrtc.compile_cubin(source, arch=self._arch, macros=program.macros(), cache=nvrtc.cache_folder())
        module = ObjectCode.from_cubin(compiled.cubin)
        self._kernels |= {(program, name): module.get_kernel(name) for name in program.kernels}

    def _refuse_in_capture(self, why: str) -> None:
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"{why} while a CUDA graph is being captured. Run the same step once before the capture, on the same "
                "stream and with gradients that keep their memory (zero_grad(set_to_none=False))"
            )


class _Stream:
    """A stream as cuda.core takes it from another library."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return (0, self._handle)
