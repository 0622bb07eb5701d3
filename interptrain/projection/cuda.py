"""Starting the kernels on a CUDA device, beside torch: its context, its current stream, its allocator."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interptrain.projection import nvrtc
from interptrain.projection.tables import Program

THREADS = 256  # a block, in every kernel
OLDEST = (8, 0)  # compute capability: the first with bfloat16 tensor cores
DRIVER = 13000  # CUDA version: of the bindings in the extra
LEGACY_STREAM = 1  # the default stream by its own handle, which no environment variable gives another meaning


def obstacles(device: torch.device) -> Iterator[str]:
    """What keeps the kernels from running on a device, one after the other, the dearest to find out last."""
    if device.type != "cuda":
        yield f"{device} is no CUDA device"
    elif (capability := torch.cuda.get_device_capability(device)) < OLDEST:
        yield f"{torch.cuda.get_device_name(device)} has compute capability {capability}, the kernels need {OLDEST}"
    missing = nvrtc.missing()
    if missing is not None:
        yield missing
    elif device.type == "cuda":
        from cuda.bindings import driver

        _, version = driver.cuDriverGetVersion()
        if version < DRIVER:
            yield f"the driver speaks CUDA {version // 1000}.{version % 1000 // 10}, the kernels need {DRIVER // 1000}"


class CudaRunner:
    """Compiles each program when it is first needed, or takes it from the disk, and launches on torch's stream.

    Args:
        device: a CUDA device without `obstacles`.
    """

    def __init__(self, device: torch.device) -> None:
        torch.cuda.current_stream(device)  # torch first: it makes the device's primary context, which is used here too
        index = torch.cuda.current_device() if device.index is None else device.index
        self._device = torch.device("cuda", index)
        self._thread = threading.local()
        self._streams: dict[int, Any] = {}
        self._kernels: dict[tuple[Program, str], Any] = {}
        self._captured: list[Tensor] = []
        major, minor = torch.cuda.get_device_capability(self._device)
        self._arch = f"sm_{major}{minor}"

    def __repr__(self) -> str:
        return f"CudaRunner({str(self._device)!r})"

    @property
    def stream(self) -> int:
        """torch's current stream on the device."""
        return torch.cuda.current_stream(self._device).cuda_stream or LEGACY_STREAM

    def launch(self, program: Program, kernel: str, blocks: int, shared_bytes: int, *arguments: int | np.int32) -> None:
        """Start a kernel on torch's current stream."""
        from cuda.core import LaunchConfig, Stream, launch

        handle = self.stream
        if handle not in self._streams:
            self._streams[handle] = Stream.from_handle(handle)
        config = LaunchConfig(grid=blocks, block=THREADS, shmem_size=shared_bytes)
        with torch.cuda.device(self._device):
            self._bind()
            if (program, kernel) not in self._kernels:
                self._load(program)
            launch(self._streams[handle], config, self._kernels[program, kernel], *arguments)

    def upload(self, table: np.ndarray) -> Tensor:
        """A copy on the device, from pinned memory that torch keeps until the copy is done."""
        self.prepare("tables of addresses would have to be uploaded")
        raw = torch.from_numpy(table.reshape(-1).view(np.uint8).copy())
        return raw.pin_memory().to(self._device, non_blocking=True)

    def hold(self, *tensors: Tensor) -> None:
        """Keep what a captured graph will use at every replay; nothing outside a capture, where torch sees to it."""
        if self._capturing():
            self._captured += tensors

    def prepare(self, what: str) -> None:
        """Refuse what cannot be done while a CUDA graph is being captured.

        Raises:
            RuntimeError: one is.
        """
        if self._capturing():
            raise RuntimeError(
                f"{what} while a CUDA graph is being captured. Run the same step once before the capture, on the same "
                "stream and with gradients that keep their memory (zero_grad(set_to_none=False))"
            )

    def _bind(self) -> None:
        """Make the device's context this thread's own, once a thread: torch does so no earlier than it must."""
        if not hasattr(self._thread, "bound"):
            from cuda.core import Device

            Device(self._device.index).set_current()
            self._thread.bound = True

    def _load(self, program: Program) -> None:
        self.prepare("a kernel would have to be loaded")
        from cuda.core import ObjectCode

        source = nvrtc.kernel_source(*program.sources)
        compiled = nvrtc.compile_cubin(source, arch=self._arch, macros=program.macros(), cache=nvrtc.cache_folder())
        module = ObjectCode.from_cubin(compiled.cubin)
        self._kernels |= {(program, name): module.get_kernel(name) for name in program.kernels}

    def _capturing(self) -> bool:
        with torch.cuda.device(self._device):
            return torch.cuda.is_current_stream_capturing()
