"""An optimizer as the steerer sees it: what it owns, when it steps, and whether a step happened at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import LBFGS, Optimizer
from torch.utils.hooks import RemovableHandle

from interptrain.sites import Site


@dataclass(eq=False)
class Turn:
    """One optimizer and how many steps it has done.

    Args:
        optimizer: None for a loop that shows the steerer its gradients only.
        sites: every site; those that the optimizer owns are asked for anew at each step.
        step: steps done.
    """

    optimizer: Optimizer | None
    sites: tuple[Site, ...]
    step: int = 0
    _handles: list[RemovableHandle] = field(default_factory=list)

    def listen(self, before: Callable[[Turn], None], after: Callable[[Turn], None]) -> None:
        """Call back right before and right after every step, if there is an optimizer to make one.

        Raises:
            TypeError: the optimizer cannot be steered.
        """
        if self.optimizer is None:
            return
        refuse(self.optimizer)

        def took_turn(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            after(self)

        def takes_turn(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            before(self)

        self._handles = [
            self.optimizer.register_step_pre_hook(takes_turn),
            self.optimizer.register_step_post_hook(took_turn),
        ]

    def forget(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def parameters(self) -> list[Tensor]:
        """What a step of this optimizer may change; without an optimizer, the sites."""
        if self.optimizer is None:
            return [parameter for site in self.sites for parameter in site.parameters]
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def owned(self) -> list[Site]:
        """The sites that a step of this optimizer may change; of a LoRA pair, one factor is enough."""
        if self.optimizer is None:
            return list(self.sites)
        own = {id(parameter) for parameter in self.parameters()}
        return [site for site in self.sites if any(id(parameter) in own for parameter in site.parameters)]

    def was_skipped(self) -> bool:
        """Whether the step that just ended did nothing, because a GradScaler found an overflow.

        Most optimizers are then not called at all. A fused one is, and told with `found_inf`, which is read here:
        one synchronisation a step, in that case alone.
        """
        found = vars(self.optimizer).get("found_inf")
        return isinstance(found, torch.Tensor) and bool(found)


def refuse(optimizer: Optimizer) -> None:
    """Raise for an optimizer whose step is more than one step.

    Raises:
        TypeError: it is DeepSpeed's, LBFGS, or no torch optimizer.
    """
    if any(each.__module__.partition(".")[0] == "deepspeed" for each in type(optimizer).__mro__):
        raise TypeError(
            f"{type(optimizer).__name__} is DeepSpeed's, whose step is not a torch optimizer's: it works on flat "
            "copies of the parameters. Use a torch optimizer, with DDP or FSDP2 (torch.distributed.fsdp.fully_shard)"
        )
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"expected a torch.optim.Optimizer, found {type(optimizer).__name__}")
    if isinstance(optimizer, LBFGS):
        raise TypeError(
            "LBFGS evaluates the loss several times a step and cannot be steered; use another optimizer, such as AdamW"
        )


def turns(optimizers: Iterable[Optimizer], sites: tuple[Site, ...], *, done: int = 0) -> list[Turn]:
    """A turn for each optimizer; one without an optimizer if there are none."""
    return [Turn(optimizer, sites, done) for optimizer in optimizers] or [Turn(None, sites, done)]


def bare(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside accelerate's wrapper, which takes no hooks; any other as it is."""
    return vars(optimizer).get("optimizer", optimizer)


def loss_scale(scaler: GradScaler | None, optimizer: Optimizer) -> Tensor | float:
    """What a loss is multiplied by that goes through this scaler, on the device: nothing waits for it."""
    if scaler is None or not scaler.is_enabled():
        return 1.0
    device = next(parameter.device for group in optimizer.param_groups for parameter in group["params"])
    return scaler.scale(torch.ones((), device=device))
