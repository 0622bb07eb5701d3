"""The model before training, for as much memory as its trainable parameters take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import functional_call

if TYPE_CHECKING:
    from interptrain.interventions.intervention import Context

_PREFIX = "start/"


class StartModel:
    """Runs a model with the values that its trainable parameters had at the start.

    Disabling an adapter is not the same: PiSSA and OLoRA move part of the weights into it.

    Args:
        context: the model in training; the copies are kept there, and come back when a run is resumed.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        for name, parameter in context.model.named_parameters():
            if parameter.requires_grad:
                context.kept.setdefault(_PREFIX + name, parameter.detach().clone())

    @torch.no_grad()
    def __call__(self, **inputs: Any) -> Any:
        """A forward pass of the start model, without gradients."""
        kept: dict[str, Tensor] = {}
        for name in [name for name in self._context.kept if name.startswith(_PREFIX)]:
            self._context.kept[name] = self._context.kept[name].to(self._context.device)
            kept[name.removeprefix(_PREFIX)] = self._context.kept[name]
        return functional_call(self._context.model, kept, (), inputs)
