"""`report.html`: one file that opens offline, with no script and no request to anywhere."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from markupsafe import Markup

from interptrain.recorders import curves
from interptrain.recorders.document import Arm, Checkpoint, Relearning, Report, checked, said
from interptrain.recorders.pages import page


class Panel(NamedTuple):
    """A drawing and the words under it."""

    svg: Markup
    caption: str


def write_html(report: Report, path: Path) -> Path:
    """Write `report.html`.

    Raises:
        ValueError: the document has another schema.
    """
    path.write_text(render(report), encoding="utf-8")
    return path


def render(report: Report) -> str:
    """The page of a report; every text of the report is escaped.

    Raises:
        ValueError: the document has another schema.
    """
    report = checked(report)
    return page(
        "report.html",
        {"spread": spread, "dropped": dropped, "rates": rates, "back": back},
        report=report,
        strokes=curves.STROKES,
        labels={measure["key"]: measure["label"] for measure in report["measures"]},
        behaviour=_behaviour_panels(report),
        concepts=_concept_panels(report),
        arms=_arm_panels(report),
        written=_written_panels(report),
        pairs=_pair_panels(report),
        samples=_samples(report),
        alarms=_alarms(report),
    )


def spread(arm: Arm, measure: str) -> str:
    """A score over an arm's seeds: `mean ± sd`, or the bare number of one seed.

    Example:
        >>> spread({"name": "a", "says": "", "runs": [{"scores": {"skill": 0.5}}, {"scores": {"skill": 0.7}}]},
        ...        "skill")
        '0.60 ± 0.14'
    """
    return _spread([run["scores"][measure] for run in arm["runs"]])


def dropped(arm: Arm) -> str:
    """The share of loss tokens above a gate's threshold, each seed's the mean of its run; empty without a gate."""
    shares = [
        mean(value for value in values if value is not None)
        for run in arm["runs"]
        for key, values in run["curves"].items()
        if key.startswith("interptrain/") and key.endswith("/tokens")
    ]
    return _spread(shares) if shares else ""


def rates(each: Relearning) -> list[float]:
    """The rate at each look of a relearning check, a mean over seeds."""
    looks = zip(*(run["checkpoints"] for run in each["runs"]), strict=True)
    return [mean(_rate(look) for look in at_once) for at_once in looks]


def back(each: Relearning) -> str:
    """For each seed the first step looked at with a rate of a half or more.

    Example:
        >>> looks = [{"step": step, "scores": {"topic": rate}} for step, rate in ((0, 0.0), (2, 0.4), (4, 0.6))]
        >>> back({"name": "a", "says": "", "runs": [{"seed": 0, "checkpoints": looks},
        ...                                         {"seed": 1, "checkpoints": looks[:2]}]})
        '4, more than 2'
    """
    found = []
    for run in each["runs"]:
        steps = [look["step"] for look in run["checkpoints"] if _rate(look) >= 0.5]
        found.append(str(steps[0]) if steps else f"more than {run['checkpoints'][-1]['step']}")
    return ", ".join(found)


def _rate(look: Checkpoint) -> float:
    (rate,) = look["scores"].values()
    return rate


def _spread(values: list[float]) -> str:
    return f"{mean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def _behaviour_panels(report: Report) -> list[Panel]:
    described = {measure["key"]: measure for measure in report["measures"]}
    return [
        _panel(partial(curves.draw_behaviour, report=report, measure=key), f"behaviour-{number}",
               described[key]["label"], described[key]["says"])
        for number, key in enumerate(report["headline"])
    ]  # fmt: skip


def _concept_panels(report: Report) -> list[Panel]:
    return [
        _panel(partial(curves.draw_concept, report=report, concept=concept["name"]), f"concept-{number}",
               f"demand for {concept['name']}", concept["says"], ylabel="energy share")
        for number, concept in enumerate(report["concepts"])
    ]  # fmt: skip


WRITTEN = (
    ("write", "energy share", "write: the share of what the optimizer changed that lies in the concept"),
    ("achieved", "gain", "achieved: the gain that a steered step really had; estimated where the gradient was edited"),
    ("realised/neutral/fraction", "share of the way",
     "realised: how far neutral texts moved toward the concept; 1: as far as texts that show it"),
)  # fmt: skip


def _written_panels(report: Report) -> list[tuple[str, list[Panel]]]:
    """For every concept, what the optimizer wrote, the gain that was achieved, and what came of it."""
    return [
        (concept["name"], [
            _panel(partial(curves.draw_quantity, report=report, concept=concept["name"], quantity=quantity),
                   f"written-{number}-{place}", f"{says} ({concept['name']})", says, ylabel=ylabel)
            for place, (quantity, ylabel, says) in enumerate(WRITTEN)
            if curves.has_quantity(report, concept["name"], quantity)
        ])
        for number, concept in enumerate(report["concepts"])
    ]  # fmt: skip


def _arm_panels(report: Report) -> list[tuple[str, list[Panel]]]:
    """For every concept, each arm beside its own null."""
    return [
        (concept["name"], [
            _panel(partial(curves.draw_arm, report=report, concept=concept["name"], number=a), f"arm-{c}-{a}",
                   f"demand for {concept['name']} in {arm['name']}", arm["name"], ylabel="energy share")
            for a, arm in enumerate(report["arms"])
        ])
        for c, concept in enumerate(report["concepts"])
    ]  # fmt: skip


def _pair_panels(report: Report) -> list[tuple[Panel, Panel]]:
    labels = {measure["key"]: measure["label"] for measure in report["measures"]}
    return [
        (
            _panel(partial(curves.draw_concept, report=report, concept=pair["concept"]), f"pair-{number}-concept",
                   f"demand for {pair['concept']}", f"demand for {pair['concept']}", ylabel="energy share"),
            _panel(partial(curves.draw_behaviour, report=report, measure=pair["measure"]), f"pair-{number}-measure",
                   labels[pair["measure"]], f"measured: {labels[pair['measure']]}"),
        )
        for number, pair in enumerate(report["pairs"])
    ]  # fmt: skip


def _alarms(report: Report) -> list[tuple[str, str]]:
    """Whose alarm rang, and what it says."""
    runs = [(arm, run) for arm in report["arms"] for run in arm["runs"]]
    return [(f"{arm['name']}, seed {run['seed']}", said(rung)) for arm, run in runs for rung in run.get("alarms", ())]


def _panel(draw: curves.Draw, name: str, title: str, caption: str, *, ylabel: str = "") -> Panel:
    return Panel(Markup(curves.panel(draw, title=title, name=name, ylabel=ylabel)), caption)


def _samples(report: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each prompt with what every arm's first seed answered, the untrained model first."""
    answers: dict[str, list[tuple[str, str]]] = {}
    spoken = [("before training", report["before"]["samples"])]
    spoken += [(arm["name"], arm["runs"][0]["samples"]) for arm in report["arms"]]
    for who, samples in spoken:
        for sample in samples:
            answers.setdefault(sample["prompt"], []).append((who, sample["answer"]))
    return list(answers.items())
