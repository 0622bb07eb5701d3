"""Penalise: a loss on what a concept has gained over the model before training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interptrain.interventions.added import add_gradient_
from interptrain.interventions.directions import Directions
from interptrain.interventions.start import StartModel
from interptrain.meters.probes import evaluating

if TYPE_CHECKING:
    from interptrain.interventions.intervention import Context


@dataclass(frozen=True)
class Penalise:
    """Adds the gradient of a one-sided penalty; see `penalise`."""

    concept: str
    weight: float
    hooks: tuple[str, ...] | None

    def attach(self, context: Context) -> None:
        """Copy the trainable parameters, and add the penalty's gradient before every step.

        Raises:
            ValueError: the bank has no such concept, or none at a hook, or it is penalised already.
        """
        context.needs_whole_parameters("penalise")
        name, last = f"penalise/{self.concept}", dict[str, Any]()
        context.claim(name)
        directions, start = Directions(context.bank, self.concept, self.hooks), StartModel(context)
        context.suppressed.add(self.concept)

        def remember(_module: nn.Module, _args: Any, kwargs: dict[str, Any], _output: Any) -> None:
            if torch.is_grad_enabled() and not context.positions.asking:
                last.clear()
                last.update(_inputs_of(kwargs))

        def add(_loss_scale: Tensor | float) -> None:
            if not last:
                return
            counted = context.positions.of(last["input_ids"][..., None].float())
            with context.asking(), evaluating(context.model), directions.listening(context.model) as read:
                start(**last)
                before = read(counted)
                with torch.enable_grad():
                    context.model(**last)
                    gained = (read(counted) - before).clamp_min(0).square().sum(-1).mean()
                    add_gradient_(self.weight * gained, context.trainable, name, context.gradient_scale)
            last.clear()
            context.figures[f"{name}/gained"] = gained.detach()

        context.keep(context.model.register_forward_hook(remember, with_kwargs=True))
        context.before_step(add, name)


def penalise(concept: str, weight: float, *, hooks: Sequence[str] | None = None) -> Penalise:
    r"""Add a penalty on a concept's gain over the model before training, on the batches trained on.

        L' = L + weight mean_t sum_k relu(d_k . h_t(theta) - d_k . h_t(theta_0))^2

    One-sided: what lies below the start costs nothing. Takes another forward and backward pass and a forward pass
    of the start model on the step's last batch, and a copy of what trains. A penalty weighs the concept against the
    loss, it does not exclude it.

    Args:
        concept: as the bank names it.
        weight: of the penalty beside the user's loss.
        hooks: at these hook points only; by default at all of the concept's.

    Raises:
        ValueError: a weight that is not positive and finite.

    Example:
        >>> penalise("pirate", 0.1)
        Penalise(concept='pirate', weight=0.1, hooks=None)
    """
    if not (math.isfinite(weight) and weight > 0):
        raise ValueError(f"penalise needs a finite weight above 0, found {weight}")
    return Penalise(concept, float(weight), None if hooks is None else tuple(hooks))


def _inputs_of(kwargs: dict[str, Any]) -> dict[str, Tensor]:
    if "input_ids" not in kwargs:
        raise ValueError(
            f"penalise runs the batch again and needs input_ids by name, found {', '.join(kwargs) or 'nothing'}; call "
            "model(input_ids=..., attention_mask=...)"
        )
    return {
        name: kwargs[name] for name in ("input_ids", "attention_mask", "position_ids") if kwargs.get(name) is not None
    }
