"""What one step taught: tensors on the device, and the protocol of what takes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

METRICS_SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Reading:
    """One quantity, per concept, with its null.

    Args:
        share: energy share in the concept's span, 0 to 1; NaN where it was not measured.
        null: the same share of null groups of as many directions.
        signed: where the quantity has a sign, its value along the concept's mean direction.
        signed_null: the same along sign-flipped means of the concept's own directions.
    """

    share: Float[Tensor, "concept"]
    null: Float[Tensor, "concept group"]
    signed: Float[Tensor, "concept"] | None = None
    signed_null: Float[Tensor, "concept group"] | None = None

    def metrics(self) -> dict[str, Float[Tensor, "concept"]]:
        """The figures to log: value, null mean and z-score, `z = (share - mean(null)) / std(null)`."""
        values = {
            "": self.share,
            "/null": self.null.mean(-1),
            "/z": (self.share - self.null.mean(-1)) / self.null.std(-1),
        }
        if self.signed is not None and self.signed_null is not None:
            values["/signed"] = self.signed
            values["/signed/z"] = self.signed / self.signed_null.std(-1)
        return values


@dataclass(frozen=True, eq=False)
class StepReport:
    """What one measured step (or the mean of several) asked for, per concept.

    Args:
        step: optimizer steps done before this one.
        concepts: names, in the order of every tensor's first axis.
        readings: by quantity: `demand`, `gradient`.
        cumulative: by quantity, the running sum over the measured steps so far.
        gains: the gain that the rule asked for; 1 where it asked for nothing.
        nonfinite: sites whose gradient held NaN or infinity and was left alone.
        capped: the smallest factor by which the norm cap scaled a correction; 1 where it did not bind.
    """

    step: int
    concepts: tuple[str, ...]
    readings: Mapping[str, Reading]
    cumulative: Mapping[str, Float[Tensor, "concept"]]
    gains: Float[Tensor, "concept"]
    nonfinite: Float[Tensor, ""]
    capped: Float[Tensor, ""]

    def with_cap(self, capped: Float[Tensor, ""] | None) -> StepReport:
        """The same report with the norm cap's factor, if there was a correction to cap."""
        return self if capped is None else replace(self, capped=capped)

    def scalars(self) -> dict[str, float]:
        """Every figure by its metric name, in one transfer from the device; what was not measured is absent."""
        columns = {f"{q}{suffix}": v for q, r in self.readings.items() for suffix, v in r.metrics().items()}
        columns |= {f"{quantity}/cumulative": value for quantity, value in self.cumulative.items()}
        columns["gain"] = self.gains
        table = torch.cat([*columns.values(), self.nonfinite[None], self.capped[None]]).tolist()
        *figures, nonfinite, capped = table
        keys = [f"concept/{concept}/{name}" for name in columns for concept in self.concepts]
        found = {key: value for key, value in zip(keys, figures, strict=True) if math.isfinite(value)}
        if nonfinite:
            found["interptrain/nonfinite_sites"] = nonfinite
        if capped < 1:
            found["interptrain/norm_cap"] = capped
        return found


@runtime_checkable
class Recorder(Protocol):
    """Anything that takes reports: a logger, a file, a list."""

    def record(self, report: StepReport) -> None:
        """Take one report; its tensors are on the device and may be kept without a copy."""
        ...


@dataclass
class Window:
    """A recorder that keeps reports until someone asks for their mean: what lies between two log steps."""

    reports: list[StepReport] = field(default_factory=list)

    def record(self, report: StepReport) -> None:
        """Keep a report."""
        self.reports.append(report)

    def drain(self) -> StepReport | None:
        """The mean of what was kept, or None; the window is empty afterwards."""
        kept, self.reports = self.reports, []
        return average(kept) if kept else None


def average(reports: Sequence[StepReport]) -> StepReport:
    """The mean report over several steps; steps that measured nothing of a quantity do not count in it.

    Raises:
        ValueError: no reports.
    """
    if not reports:
        raise ValueError("the mean of no reports is not defined")
    last = reports[-1]

    def mean(values: Sequence[Tensor | None]) -> Tensor:
        return torch.stack([value for value in values if value is not None]).nanmean(0)

    def optional(values: Sequence[Tensor | None]) -> Tensor | None:
        return None if values[-1] is None else mean(values)

    readings = {}
    for quantity in dict.fromkeys(name for report in reports for name in report.readings):
        each = [report.readings[quantity] for report in reports if quantity in report.readings]
        readings[quantity] = Reading(
            share=mean([r.share for r in each]),
            null=mean([r.null for r in each]),
            signed=optional([r.signed for r in each]),
            signed_null=optional([r.signed_null for r in each]),
        )
    return StepReport(
        step=last.step,
        concepts=last.concepts,
        readings=readings,
        cumulative=last.cumulative,
        gains=mean([r.gains for r in reports]),
        nonfinite=torch.stack([r.nonfinite for r in reports]).sum(),
        capped=torch.stack([r.capped for r in reports]).amin(),
    )
