"""The mean input of each writer, which gives a gradient's effect on the stream its sign."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from interptrain.meters.tokens import Positions
from interptrain.processes import count


class MeanInputs:
    """Forward hooks that average what each writer's module receives, over loss tokens, from one step's end to the next.

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

    def attach(self, widths: Mapping[nn.Module, int], device: torch.device) -> None:
        """Register one forward pre-hook a module.

        Args:
            widths: of the modules' inputs.
            device: where they are.
        """
        self._widths, self._device = dict(widths), device
        for module in widths:
            self._handles.append(module.register_forward_pre_hook(self._capture))

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

    def _capture(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        received = args[0].detach()
        wanted = self.active and torch.is_grad_enabled() and not self._positions.asking
        if not (wanted and received.is_floating_point() and received.ndim == 3):
            return
        if self._over:
            self._sums.clear()
            self._over = False
        weight = self._positions.of(received).float()
        summed, number = self._sums.get(module, (0.0, 0.0))
        total = (received.float() * weight[..., None]).sum((0, 1))  # no matmul: autocast would round it
        self._sums[module] = (summed + total, number + weight.sum())

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
