"""Which path a device's matrices take: the kernels or torch."""

from __future__ import annotations

import torch

from interptrain.projection.grouped import TorchProjector
from interptrain.projection.matrix import Projector

BACKENDS = ("auto", "torch", "cuda")


class Backend:
    """The projector of each device, chosen once.

    Args:
        name: `"torch"`; `"cuda"`, the kernels, which raises where they cannot run; `"auto"`, the kernels where they
            can run and torch elsewhere.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> import torch
        >>> Backend("torch").on(torch.device("cpu"))
        TorchProjector()
    """

    def __init__(self, name: str = "auto") -> None:
        if name not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, found {name!r}")
        self.name = name
        self._chosen: dict[torch.device, Projector] = {}

    def on(self, device: torch.device) -> Projector:
        """The projector for matrices on a device.

        Raises:
            RuntimeError: the kernels were asked for and cannot run there.
        """
        if device not in self._chosen:
            self._chosen[device] = TorchProjector()
        return self._chosen[device]
