"""Which path a device's matrices take: the kernels or torch."""

from __future__ import annotations

import torch

from interptrain.projection.cuda import CudaRunner, obstacles
from interptrain.projection.grouped import TorchProjector
from interptrain.projection.kernels import KernelProjector
from interptrain.projection.matrix import Projector
from interptrain.projection.sharded import Add, ShardedProjector

BACKENDS = ("auto", "torch", "cuda")


class Backend:
    """The projector of each device, chosen once.

    Args:
        name: `"torch"`; `"cuda"`, this package's kernels, or an error where they cannot run; `"auto"`, the kernels
            where they can run and torch elsewhere.
        add: sums tensors over the processes, in place and by one collective; for one process it does nothing.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> import torch
        >>> print(Backend("auto").explained(torch.device("cpu")))
        torch, as cpu is no CUDA device
    """

    def __init__(self, name: str = "auto", add: Add = lambda tensors: None) -> None:
        if name not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, found {name!r}")
        self.name = name
        self._add = add
        self._chosen: dict[torch.device, tuple[Projector, str]] = {}
        self._over_processes: dict[torch.device, ShardedProjector] = {}

    def on(self, device: torch.device) -> Projector:
        """The projector for matrices on a device.

        Raises:
            RuntimeError: the kernels were asked for by name and cannot run there; says what is missing.
        """
        return self._choice(device)[0]

    def over_processes(self, device: torch.device) -> ShardedProjector:
        """The same for matrices that may be split over processes.

        Raises:
            RuntimeError: as `on` does.
        """
        if device not in self._over_processes:
            self._over_processes[device] = ShardedProjector(self.on(device), self._add)
        return self._over_processes[device]

    def explained(self, device: torch.device) -> str:
        """What is used on a device, and why."""
        return self._choice(device)[1]

    def _choice(self, device: torch.device) -> tuple[Projector, str]:
        if device not in self._chosen:
            self._chosen[device] = self._choose(device)
        return self._chosen[device]

    def _choose(self, device: torch.device) -> tuple[Projector, str]:
        if self.name == "torch":
            return TorchProjector(), "torch, as asked for"
        reasons = obstacles(device)
        first = next(reasons, None)
        if first is None:
            return KernelProjector(CudaRunner(device), strict=self.name == "cuda"), "the CUDA kernels"
        if self.name == "cuda":
            raise RuntimeError(f'backend="cuda" cannot run: {"; ".join([first, *reasons])}')
        return TorchProjector(), f"torch, as {first}"
