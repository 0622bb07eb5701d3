"""What one step taught: tensors on the device, and the protocol of what takes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from interptrain.warn import warn

if TYPE_CHECKING:
    from interptrain.discovery import DiscoveryTable

METRICS_SCHEMA = 1


@runtime_checkable
class Measured(Protocol):
    """One quantity as it was measured: a frozen dataclass of tensors, the first axis of each the concept."""

    def metrics(self) -> dict[str, Float[Tensor, "concept"]]:
        """The figures to log, by the suffix of their name."""
        ...


@dataclass(frozen=True, eq=False)
class Reading:
    """An energy share, per concept, with its null, and its signed counterpart where there is one.

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
class Plain:
    """A quantity of one figure a concept that is no share and has no null of its own.

    Args:
        value: NaN where it was not measured.
    """

    value: Float[Tensor, "concept"]

    def metrics(self) -> dict[str, Float[Tensor, "concept"]]:
        """The figure under the quantity's own name."""
        return {"": self.value}


@dataclass(frozen=True, eq=False)
class StepReport:
    """What one measured step (or the mean of several) asked for and wrote, per concept.

    Args:
        step: optimizer steps done before this one.
        concepts: names, in the order of every tensor's first axis.
        readings: by quantity: `demand`, `gradient`, `write`, `gain`, `achieved`, `realised/SET`, ...
        cumulative: by quantity, the running sum over the measured steps so far.
        overall: figures that belong to no concept, by name.
        nonfinite: sites whose gradient held NaN or infinity and was left alone.
        capped: the smallest factor by which the norm cap scaled a correction; 1 where it did not bind.
        discoveries: by hook, the dictionary's latents that were taught most.
        alarms: of each suppressed concept that the alarm looked at: the `step`, `what` moved in its place, its
            `figure`, and `on` which probe set; None where nothing did.
    """

    step: int
    concepts: tuple[str, ...]
    readings: Mapping[str, Measured]
    cumulative: Mapping[str, Float[Tensor, "concept"]]
    nonfinite: Float[Tensor, ""]
    capped: Float[Tensor, ""]
    overall: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)
    discoveries: Mapping[str, DiscoveryTable] = field(default_factory=dict)
    alarms: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)

    def scalars(self) -> dict[str, float]:
        """Every figure by its metric name, in one transfer from the device; what was not measured is absent."""
        columns = {f"{q}{suffix}": v for q, r in self.readings.items() for suffix, v in r.metrics().items()}
        columns |= {f"{quantity}/cumulative": value for quantity, value in self.cumulative.items()}
        last = torch.stack([*self.overall.values(), self.nonfinite, self.capped])
        table = torch.cat([*columns.values(), last]).tolist()
        keys = [f"concept/{concept}/{name}" for name in columns for concept in self.concepts]
        keys += [f"interptrain/{name}" for name in (*self.overall, "nonfinite_sites", "norm_cap")]
        found = {key: value for key, value in zip(keys, table, strict=True) if math.isfinite(value)}
        for name, nothing in (("nonfinite_sites", 0.0), ("norm_cap", 1.0)):
            if found.get(f"interptrain/{name}") == nothing:
                del found[f"interptrain/{name}"]
        return found | {f"concept/{concept}/alarm": float(each is not None) for concept, each in self.alarms.items()}

    @property
    def ringing(self) -> dict[str, dict[str, Any]]:
        """The alarms that ring, by concept."""
        return {concept: dict(each) for concept, each in self.alarms.items() if each is not None}


@runtime_checkable
class Recorder(Protocol):
    """Anything that takes reports: a logger, a file, a list."""

    def record(self, report: StepReport) -> None:
        """Take one report; its tensors are on the device and may be kept without a copy."""
        ...


class Recorders:
    """Several recorders; one that raises is warned of and left out, the run goes on."""

    def __init__(self, recorders: Sequence[Recorder]) -> None:
        self._recorders = list(recorders)

    def record(self, report: StepReport) -> None:
        """Hand a report to each."""
        for recorder in tuple(self._recorders):
            try:
                recorder.record(report)
            except Exception as error:  # noqa: BLE001  a recorder is the user's code: it must not end the run
                self._recorders.remove(recorder)
                warn(
                    f"{type(recorder).__name__} raised {type(error).__name__}: {error}; it takes no more reports, "
                    "training and steering go on",
                )


@dataclass
class Window:
    """A recorder that keeps reports until someone asks for their mean: what lies between two log steps.

    Args:
        reports: those kept.
        limit: how many at most, where it may be that nobody asks; the oldest go first.
    """

    reports: list[StepReport] = field(default_factory=list)
    limit: int | None = None

    def record(self, report: StepReport) -> None:
        """Keep a report."""
        self.reports.append(report)
        if self.limit is not None and len(self.reports) > self.limit:
            del self.reports[0]

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
    quantities = dict.fromkeys(name for report in reports for name in report.readings)
    overall = dict.fromkeys(name for report in reports for name in report.overall)
    return StepReport(
        step=last.step,
        concepts=last.concepts,
        readings={name: _mean([r.readings[name] for r in reports if name in r.readings]) for name in quantities},
        cumulative=last.cumulative,
        nonfinite=torch.stack([r.nonfinite for r in reports]).sum(),
        capped=torch.stack([r.capped for r in reports]).amin(),
        overall={n: torch.stack([r.overall[n] for r in reports if n in r.overall]).nanmean() for n in overall},
        discoveries={hook: found for report in reports for hook, found in report.discoveries.items()},
        # One that rang at any of the steps rang: a mean of 0 and 1 would say nothing.
        alarms={name: each for report in reports for name, each in report.alarms.items()}
        | {name: each for report in reversed(reports) for name, each in report.ringing.items()},
    )


def _mean(measured: Sequence[Measured]) -> Measured:
    """Field by field; a field that is None in the last one stays None."""
    last: Any = measured[-1]
    means = {}
    for each in fields(last):
        values = [value for one in measured if (value := getattr(one, each.name)) is not None]
        means[each.name] = torch.stack(values).nanmean(0) if getattr(last, each.name) is not None else None
    return replace(last, **means)
