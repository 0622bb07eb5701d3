"""Concept ablation fine-tuning: in training the activations have no part in a concept, so nothing can use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from interptrain.interventions.prevent import edit_in_training
from interptrain.meters.spans import Spans
from interptrain.processes import sum_over_processes_
from interptrain.projection import full_precision

if TYPE_CHECKING:
    from interptrain.interventions.intervention import Context


@dataclass(frozen=True)
class Ablate:
    """Takes a concept out of the activations in training; see `ablate`."""

    concept: str
    mean: bool
    hooks: tuple[str, ...] | None

    def attach(self, context: Context) -> None:
        """Take the concept out at its hook points.

        Raises:
            ValueError: the bank has no such concept, or none at a hook, or a hook point cannot be edited.
        """
        energies: dict[str, Float[Tensor, "2"]] = {}
        for hook in context.bank.select(self.concept).hook_points if self.hooks is None else self.hooks:
            own = context.bank.concept_at(self.concept, hook)
            basis = Spans.of(own, range(len(own.directions)), groups=1).bases[0]
            edit_in_training(context, hook, _Ablation(self, hook, basis, context, energies), "ablate")
        context.suppressed.add(self.concept)


class _Ablation:
    """The ablation at one hook point; `energies` has what was removed and what was there, by hook point."""

    def __init__(
        self,
        ablate: Ablate,
        hook: str,
        basis: Float[Tensor, "direction d_model"],
        context: Context,
        energies: dict[str, Float[Tensor, "2"]],
    ) -> None:
        self._ablate, self._hook, self._basis = ablate, hook, basis
        self._context, self._energies = context, energies

    def __call__(self, activation: Float[Tensor, "batch token d_model"]) -> Float[Tensor, "batch token d_model"]:
        mean = self._mean(activation)
        if mean is None:
            return activation
        self._basis = self._basis.to(activation.device)
        ablated: Tensor = _Ablated.apply(activation, self._basis, mean)
        if torch.is_grad_enabled() and not self._context.positions.asking:
            self._measure(activation, ablated)
        return ablated

    def _mean(self, activation: Float[Tensor, "batch token d_model"]) -> Float[Tensor, "d_model"] | None:
        """`mu`; None as long as no batch of the training's own has come by."""
        if not self._ablate.mean:
            return torch.zeros(activation.shape[-1], device=activation.device)
        kept, key = self._context.kept, f"ablate/{self._ablate.concept}/mean/{self._hook}"
        if key not in kept and self._context.positions.asking:
            return None
        if key not in kept:
            kept[key] = self._mean_of(activation)
        kept[key] = kept[key].to(activation.device)
        return kept[key]

    @torch.no_grad()
    def _mean_of(self, activation: Float[Tensor, "batch token d_model"]) -> Float[Tensor, "d_model"]:
        tokens = activation[self._context.positions.ordinary(activation)]
        summed, number = tokens.float().sum(0), torch.tensor(float(len(tokens)), device=tokens.device)
        sum_over_processes_([summed, number])
        mean = summed / number
        if not mean.isfinite().all():
            raise ValueError(
                f"the mean activation at '{self._hook}' over the first batch's {int(number)} counted tokens is not "
                "finite; begin with a batch that has labels, or take ablate(..., mean=False)"
            )
        return mean

    @torch.no_grad()
    def _measure(
        self, activation: Float[Tensor, "batch token d_model"], ablated: Float[Tensor, "batch token d_model"]
    ) -> None:
        counted = self._context.positions.ordinary(activation)[..., None]
        both = torch.stack([((each.float() * counted).square()).sum() for each in (activation - ablated, activation)])
        self._energies[self._hook] = both
        removed, total = torch.stack([each.to(both.device) for each in self._energies.values()]).sum(0)
        self._context.figures[f"ablate/{self._ablate.concept}/removed"] = removed / total


class _Ablated(torch.autograd.Function):
    """`h - Q^T Q (h - mu)`; its gradient is `g - Q^T Q g`, as exact as itself where the loop allows less."""

    @staticmethod
    def forward(ctx: Any, activation: Tensor, basis: Tensor, mean: Tensor) -> Tensor:
        ctx.save_for_backward(basis)
        return _ablated(activation, basis, mean)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (basis,) = ctx.saved_tensors
        return _Ablated.apply(gradient, basis, basis.new_zeros(basis.shape[-1])), None, None


@full_precision()
def _ablated(
    activation: Float[Tensor, "batch token d_model"],
    basis: Float[Tensor, "direction d_model"],
    mean: Float[Tensor, "d_model"],
) -> Float[Tensor, "batch token d_model"]:
    with torch.autocast(activation.device.type, enabled=False):
        h = activation.to(torch.promote_types(activation.dtype, torch.float32))
        Q, mu = basis.to(h.dtype), mean.to(h.dtype)
        return (h - (h - mu) @ Q.T @ Q).to(activation.dtype)


def ablate(concept: str, *, mean: bool = True, hooks: Sequence[str] | None = None) -> Ablate:
    r"""Take a concept out of every activation in training: what is learned has to do without it.

        h'_t = h_t - Q^T Q (h_t - mu)        in training;   h'_t = h_t   at evaluation

    `Q` is an orthonormal basis of the concept's span at the hook (Casademunt et al. 2025, concept ablation
    fine-tuning). The gradient goes through the projection: the layers below are not taught the concept there, and
    the demand meter reads none of it. A stream has no origin of its own, so that a span at 0 can be a push towards
    a concept or away from it; at its mean it is neither.

    Args:
        concept: as the bank names it. Spans that overlap are ablated one after another, and the last one holds
            exactly: make one concept of what must go together.
        mean: `mu` is the mean activation over the counted tokens of the first training batch, of all processes; else 0.
        hooks: at these hook points only; by default at all of the concept's.

    Raises:
        ValueError: an empty choice of hooks.

    Example:
        >>> ablate("pirate")
        Ablate(concept='pirate', mean=True, hooks=None)
    """
    if hooks is not None and not hooks:
        raise ValueError("ablate needs at least one hook point, found none; None is all of the concept's")
    return Ablate(concept, mean, None if hooks is None else tuple(hooks))
