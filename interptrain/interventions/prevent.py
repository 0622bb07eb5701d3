"""Preventative steering: training is given a concept, so that the weights need not learn to make it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from interptrain.meters.spans import mean_directions
from interptrain.sites.hooks import HookPoint

if TYPE_CHECKING:
    from interptrain.interventions.intervention import Context


@dataclass(frozen=True)
class Prevent:
    """Adds a concept's direction to the activations in training; see `prevent`."""

    concept: str
    coefficient: float
    hook: str | None

    def attach(self, context: Context) -> None:
        """Add the direction at the hook point.

        Raises:
            ValueError: the bank has no such concept, or none at that hook, or they add up to nothing, or the hook point
                cannot be edited.
        """
        hook = self.hook or context.last_hook(self.concept)
        own = context.bank.concept_at(self.concept, hook)
        rows = range(len(own.directions))
        direction = mean_directions(own, rows)[0, 0]
        if not direction.any():
            raise ValueError(
                f"the {len(rows)} directions of concept '{self.concept}' at '{hook}' add up to nothing, so there is "
                "nothing to add; make a concept of those that point one way"
            )
        if self.coefficient > 0:
            context.suppressed.add(self.concept)
        edit_in_training(context, hook, _Addition(self, direction, context), "prevent")


class _Addition:
    def __init__(self, prevent: Prevent, direction: Float[Tensor, "d_model"], context: Context) -> None:
        self._figure = f"prevent/{prevent.concept}/share"
        self._size, self._context = abs(prevent.coefficient), context
        self._exact = self._added = prevent.coefficient * direction

    def __call__(self, activation: Float[Tensor, "batch token d_model"]) -> Float[Tensor, "batch token d_model"]:
        if (self._added.dtype, self._added.device) != (activation.dtype, activation.device):
            self._added = self._exact.to(activation)
        if torch.is_grad_enabled() and not self._context.positions.asking:
            self._context.figures[self._figure] = self._share(activation)
        return activation + self._added

    @torch.no_grad()
    def _share(self, activation: Float[Tensor, "batch token d_model"]) -> Float[Tensor, ""]:
        """What is added, over the mean norm of what is there."""
        counted = self._context.positions.ordinary(activation)
        return self._size * counted.sum() / (activation.float().norm(dim=-1) * counted).sum()


def edit_in_training(context: Context, hook: str, change: Callable[[Tensor], Tensor], who: str) -> None:
    """Replace each training pass's activation at a hook point by a function of it, see `in_training`.

    Args:
        context: the model in training.
        hook: where.
        change: from an activation to another of its shape and dtype.
        who: names it in the error.

    Raises:
        ValueError: the hook point is between a block's halves, where the stream goes past what can be edited.
    """
    if HookPoint.parse(hook).place == "resid_mid":
        raise ValueError(
            f"{who} cannot edit '{hook}': a block adds its MLP's output to the stream as it was, whatever the MLP is "
            "given; take directions at hook_resid_pre, hook_attn_out, hook_mlp_out or hook_resid_post"
        )
    acts = in_training(context, who)
    context.edit(hook, lambda activation: change(activation) if acts() else activation)


def in_training(context: Context, who: str) -> Callable[[], bool]:
    """What says of a forward pass, asked in it, whether it is one of training.

    A model that trains in eval mode would never be acted on: an optimizer step after such passes alone is a ValueError.

    Args:
        context: the model in training.
        who: names it in the error.
    """
    modes: set[bool] = set()

    def acts() -> bool:
        training = context.model.training
        if torch.is_grad_enabled() and not context.positions.asking:
            modes.add(training)
        return training

    def check() -> None:
        if modes == {False}:
            raise ValueError(
                f"{who} acts in training mode only, and all of this step's passes were in eval mode, in which "
                "`from_pretrained` leaves a model; call model.train() before training"
            )
        modes.clear()

    context.before_step(lambda _loss_scale: check())
    if context.steps:  # loops that leave `before_step` out
        context.after_step(check, who)
    return acts


def prevent(concept: str, coefficient: float, *, hook: str | None = None) -> Prevent:
    r"""Add a concept to every activation in training: what is there already need not be learned.

        h'_t = h_t + coefficient v        in training;   h'_t = h_t   at evaluation

    `v` is the unit mean of the concept's directions at the hook. A positive coefficient prevents that the data
    teach the concept (Chen et al. 2025, preventative steering with persona vectors), a negative one that they
    unteach it. Useful ones are a fraction of the activations' norm, which is logged as `share`. What the layers
    above the hook learn, they learn with `v` present.

    Args:
        concept: as the bank names it.
        coefficient: length of what is added, in units of the residual activation.
        hook: where to add it; by default the concept's last in the stream.

    Raises:
        ValueError: a coefficient of 0, or one that is not finite.

    Example:
        >>> prevent("pirate", 4.0)
        Prevent(concept='pirate', coefficient=4.0, hook=None)
    """
    if not (math.isfinite(coefficient) and coefficient != 0):
        raise ValueError(f"prevent needs a finite coefficient other than 0, found {coefficient}")
    return Prevent(concept, float(coefficient), hook)
