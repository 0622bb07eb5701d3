"""The mean input of each writer, which gives a gradient's effect on the stream its sign."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from interptrain.meters.tokens import Positions
from interptrain.processes import count

if TYPE_CHECKING:
    from interptrain.sites import Norm


class MeanInputs:
    """Forward hooks that average what each writer's module receives, over loss tokens, from one step's end to the next.

        x_mean = mean_t x_t        or mean_t x_t / spread(y_t) where a norm takes the writer's output y next

    Modules that receive token numbers (embeddings) have no mean input. Of several processes each adds its own tokens.
    """

    def __init__(self, positions: Positions) -> None:
        self._positions = positions
        self.active = True
        self._over = False
        self._sums: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._summed: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._widths: dict[nn.Module, int] = {}
        self._device = torch.device("cpu")
        self._handles: list[RemovableHandle] = []
        self._waiting: dict[nn.Module, Tensor] = {}

    def attach(
        self, widths: Mapping[nn.Module, int], device: torch.device, *, behind: Mapping[nn.Module, Norm] | None = None
    ) -> None:
        """Register one forward pre-hook a module, and one a norm behind it.

        Args:
            widths: of the modules' inputs.
            device: where they are.
            behind: the norms that stand behind modules.
        """
        self._widths, self._device, normed = dict(widths), device, behind or {}
        for module in widths:
            norm = normed.get(module)
            if norm is None:
                self._handles.append(module.register_forward_pre_hook(self._capture))
            else:
                self._handles.append(module.register_forward_pre_hook(self._wait))
                self._handles.append(norm.module.register_forward_pre_hook(partial(self._capture_scaled, module, norm)))

    def partial(self) -> list[Tensor]:
        """What has to be summed over the processes before `mean`; of zeros for a module that received nothing here."""
        self._summed = {}
        if count() == 1 or not self.active:
            return []
        for module, width in self._widths.items():
            none = torch.zeros(width, device=self._device), torch.zeros((), device=self._device)
            summed, number = self._sums.get(module, none)
            self._summed[module] = summed.clone(), number.clone()
        return [tensor for both in self._summed.values() for tensor in both]

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._sums.clear()
        self._summed.clear()
        self._waiting.clear()

    def _capture(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        received = args[0].detach()
        if self._wanted(received):
            self._add(module, received, torch.ones((), device=received.device))

    def _wait(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        received = args[0].detach()
        if self._wanted(received):
            self._waiting[module] = received

    def _capture_scaled(self, module: nn.Module, norm: Norm, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """The norm's turn: the writer's input was kept back until its output's spread is known."""
        received = self._waiting.pop(module, None)
        if received is not None:
            self._add(module, received, 1 / norm.spread(args[0].detach().float()))

    def _wanted(self, received: Tensor) -> bool:
        wanted = self.active and torch.is_grad_enabled() and not self._positions.asking
        return wanted and received.is_floating_point() and received.ndim in (2, 3)

    def _add(self, module: nn.Module, received: Tensor, scale: Tensor) -> None:
        if self._over:
            self._sums.clear()
            self._over = False
        counted = self._positions.of(received).float()
        weight = counted * scale
        summed, number = self._sums.get(module, (0.0, 0.0))
        total = (received.float() * weight[..., None]).flatten(0, -2).sum(0)  # no matmul: autocast would round it
        self._sums[module] = (summed + total, number + counted.sum())

    def mean(self, module: nn.Module) -> Float[Tensor, "input"] | None:
        """The mean input of a module in this step's forward passes, or None if it received none."""
        if module in self._summed:
            summed, number = self._summed[module]
            return summed / number.clamp_min(1)
        if module not in self._sums:
            return None
        summed, number = self._sums[module]
        return summed / number

    def end(self) -> None:
        """Begin anew with the next forward pass; until then the means stay, for a second optimizer's turn."""
        self._over = True
