"""Which panels a board of a run has: a section a concept, every share beside its null."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple


class Plot(NamedTuple):
    """A panel of lines.

    Args:
        title: above it.
        metrics: by their logged names.
        dashed: those of the metrics that are nulls or were only asked for.
        pattern: in place of metrics, a regular expression of their names.
    """

    title: str
    metrics: tuple[str, ...]
    dashed: tuple[str, ...] = ()
    pattern: str = ""


class Section(NamedTuple):
    """Panels under one heading."""

    name: str
    plots: tuple[Plot, ...]
    opened: bool = False


SHARES = (("demand", "what the data ask for"), ("gradient", "raw gradients"), ("write", "what the optimizer wrote"))
USUAL = (
    "demand", "demand/null", "demand/z", "demand/signed", "gradient", "gradient/null", "gradient/z", "write",
    "write/null", "write/z", "write/signed", "gain",
)  # fmt: skip


def usual_metrics(concepts: Sequence[str]) -> list[str]:
    """What every run logs of its concepts.

    Example:
        >>> usual_metrics(["pirate"])[:3]
        ['concept/pirate/demand', 'concept/pirate/demand/null', 'concept/pirate/demand/z']
    """
    return [f"concept/{concept}/{quantity}" for concept in concepts for quantity in USUAL]


def sections(concepts: Sequence[str], logged: Collection[str]) -> list[Section]:
    """An overview, a section a concept, the rest of what interptrain logs, and the machine.

    Every metric of every panel is one that is logged; a panel without any is left out.

    Args:
        concepts: in the order of their sections.
        logged: every name in the log.

    Example:
        >>> [section.name for section in sections(["pirate"], usual_metrics(["pirate"]))]
        ['Overview', 'pirate', 'System']
    """
    found = [_overview(concepts, logged), *(_of_concept(concept, logged) for concept in concepts), _rest(logged)]
    system = Section("System", (Plot("system", (), pattern="^system[./]"),))
    return [section for section in found if section.plots] + [system]


def _overview(concepts: Sequence[str], logged: Collection[str]) -> Section:
    over = (
        ("demand, in sd above its null", "demand/z"), ("demand", "demand"),
        ("realised on neutral texts, share of the way", "realised/neutral/fraction"), ("alarms", "alarm"),
    )  # fmt: skip
    plots = [Plot(title, _keys(concepts, quantity)) for title, quantity in over]
    plots += [Plot(key, (key,)) for key in sorted(logged) if key.rpartition("/")[2] == "loss"]
    plots += [Plot(key, (key,)) for key in sorted(logged) if key.startswith("behaviour/")]
    return Section("Overview", _kept(plots, logged), opened=True)


def _of_concept(concept: str, logged: Collection[str]) -> Section:
    start = f"concept/{concept}/"
    plots = []
    for share, says in SHARES:
        null = f"{start}{share}/null"
        plots.append(Plot(f"{share}: {says}, and its null", (f"{start}{share}", null), (null,)))
        plots.append(Plot(f"{share}, in sd above its null", (f"{start}{share}/z",)))
        if share != "gradient":
            plots.append(Plot(f"{share}, signed", (f"{start}{share}/signed",)))
    realised = sorted(key for key in logged if key.startswith(f"{start}realised/") and key.endswith("/fraction"))
    plots.append(Plot("realised, share of the way", tuple(realised)))
    plots.append(Plot("gain: asked for, and achieved", (f"{start}gain", f"{start}achieved"), (f"{start}gain",)))
    plots.append(Plot("alarm", (f"{start}alarm",)))
    return Section(concept, _kept(plots, logged))


def _rest(logged: Collection[str]) -> Section:
    """What belongs to no concept, its null beside it."""
    own = sorted(key for key in logged if key.startswith("interptrain/") and key != "interptrain/step")
    heads = [key for key in own if not key.endswith(("/null", "/z", "/start"))]
    plots = [Plot(key.removeprefix("interptrain/"), (key, f"{key}/null", f"{key}/start"),
                  (f"{key}/null", f"{key}/start")) for key in heads]  # fmt: skip
    return Section("interptrain", _kept(plots, logged))


def _keys(concepts: Sequence[str], quantity: str) -> tuple[str, ...]:
    return tuple(f"concept/{concept}/{quantity}" for concept in concepts)


def _kept(plots: Sequence[Plot], logged: Collection[str]) -> tuple[Plot, ...]:
    """Panels with those of their metrics that are logged."""
    kept = []
    for plot in plots:
        metrics = tuple(metric for metric in plot.metrics if metric in logged)
        if metrics:
            dashed = tuple(metric for metric in plot.dashed if metric in metrics and len(metrics) > 1)
            kept.append(plot._replace(metrics=metrics, dashed=dashed))
    return tuple(kept)
