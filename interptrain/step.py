"""One optimizer step between its gradients and its end, and the report that it becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interptrain.discovery import DiscoveryTable
from interptrain.gradients import Gradient
from interptrain.meters import achieved_from_shares
from interptrain.report import Measured, Plain, Reading, StepReport
from interptrain.sites import Site
from interptrain.steering.rules import Gains
from interptrain.updates import Steered


@dataclass(eq=False)
class Step:
    """What is known of a step so far.

    Args:
        number: steps that its optimizer has done before it.
        sites: those that it moves.
        gradients: theirs, as far as they have one.
        device: of the figures.
        measured: whether the meters read it.
        null: whether the parameters' null groups are read too.
        readings: by quantity.
        nonfinite: how many of the gradients hold NaN or infinity.
        gains: what the rule asked for.
        cap: the smallest factor of the norm cap.
        steered: what the edit of an update did.
        overall: figures that belong to no concept.
        discoveries: by hook, the latents that it taught most.
        alarms: by concept, what moves in its place; None where nothing does.
    """

    number: int
    sites: list[Site]
    gradients: list[Gradient]
    device: torch.device
    measured: bool
    null: bool
    readings: dict[str, Measured] = field(default_factory=dict)
    nonfinite: Float[Tensor, ""] | None = None
    gains: Gains = field(default_factory=dict)
    cap: Tensor | None = None
    steered: Steered | None = None
    overall: dict[str, Tensor] = field(default_factory=dict)
    discoveries: dict[str, DiscoveryTable] = field(default_factory=dict)
    alarms: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)

    @property
    def changes_nothing(self) -> bool:
        """Whether every gain is the number 1, which is known without asking the device."""
        return all(isinstance(gain, (int, float)) and gain == 1 for gain in self.gains.values())

    def report(
        self, concepts: tuple[str, ...], cumulative: Mapping[str, Float[Tensor, "concept"]]
    ) -> StepReport | None:
        """The report, or None where nothing was measured."""
        if not (self.measured or self.overall or self.discoveries):
            return None
        gain = [torch.as_tensor(self.gains.get(name, 1.0), device=self.device).float() for name in concepts]
        readings = {**self.readings, "gain": Plain(torch.stack(gain))}
        if self.gains:
            readings["achieved"] = Plain(self._achieved(concepts))
        overall = dict(self.overall)
        if self.steered is not None:
            overall["off_concept"] = self.steered.off_concept
        for hook, table in self.discoveries.items():
            overall |= {f"discovery/{hook}{name}": value for name, value in table.found.metrics().items()}
        return StepReport(
            step=self.number,
            concepts=concepts,
            readings=readings,
            cumulative=dict(cumulative),
            overall=overall,
            nonfinite=torch.zeros((), device=self.device) if self.nonfinite is None else self.nonfinite,
            capped=torch.ones((), device=self.device) if self.cap is None else self.cap,
            discoveries=self.discoveries,
            alarms=self.alarms,
        )

    def _achieved(self, concepts: tuple[str, ...]) -> Float[Tensor, "concept"]:
        """The gain that each named concept got; NaN for the others, and where it is not known."""
        achieved = torch.full((len(concepts),), torch.nan, device=self.device)
        named = [concepts.index(name) for name in self.gains]
        gradient, write = self.readings.get("gradient"), self.readings.get("write")
        if self.steered is not None:
            achieved[named] = self.steered.gain.value()
        elif self.cap is not None and isinstance(gradient, Reading) and isinstance(write, Reading):
            achieved[named] = achieved_from_shares(gradient.share[named], write.share[named])
        return achieved
