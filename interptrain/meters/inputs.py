"""The mean input of each writer, which gives a gradient's effect on the stream its sign."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from interptrain.meters.tokens import Positions


class MeanInputs:
    """Forward hooks that average what each writer's module receives, over loss tokens, from one step's end to the next.

    Modules that receive token numbers (embeddings) have no mean input.
    """

    def __init__(self, positions: Positions) -> None:
        self._positions = positions
        self.active = True
        self._over = False
        self._sums: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._handles: list[RemovableHandle] = []

    def attach(self, modules: Iterable[nn.Module]) -> None:
        """Register one forward pre-hook a module."""
        for module in modules:
            self._handles.append(module.register_forward_pre_hook(self._capture))

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._sums.clear()

    def _capture(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        received = args[0].detach()
        wanted = self.active and torch.is_grad_enabled() and not self._positions.asking
        if not (wanted and received.is_floating_point() and received.ndim == 3):
            return
        if self._over:
            self._sums.clear()
            self._over = False
        weight = self._positions.of(received).float()
        summed, count = self._sums.get(module, (0.0, 0.0))
        total = (received.float() * weight[..., None]).sum((0, 1))  # no matmul: autocast would round it
        self._sums[module] = (summed + total, count + weight.sum())

    def mean(self, module: nn.Module) -> Float[Tensor, "input"] | None:
        """The mean input of a module in this step's forward passes, or None if it received none."""
        if module not in self._sums:
            return None
        summed, count = self._sums[module]
        return summed / count

    def end(self) -> None:
        """Begin anew with the next forward pass; until then the means stay, for a second optimizer's turn."""
        self._over = True
