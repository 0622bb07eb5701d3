"""The dot plot of all arms and the dose plot of the finalists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.selectivity.arms import TRAIT
from benchmarks.selectivity.tables import Run, grouped, half, looks
from interptrain.recorders.curves import STROKES

KINDS = (("entangled", "lora"), ("entangled", "full"), ("mixed", "lora"), ("mixed", "full"))
TAUGHT = {"entangled": "skill", "mixed": "facts"}
SHOWN = {
    "clean": "right and in the plain voice",
    "trait": "in pirate, where it is taught",
    "kept": "facts answered plainly",
}
MARKERS = ("o", "X", "D")


def value(run: Run, scores: Mapping[str, float], what: str) -> float:
    """A score; the trait's is that where the data teach it."""
    return scores[f"{run['voice']}_on_{TAUGHT[run['data']]}" if what == "trait" else what]


def save_dots(runs: Sequence[Run], dose: Mapping[tuple[str, str], int], path: Path) -> None:
    """Every arm at one dose, mean and 95 % interval over seeds, a panel for each data and tuning."""
    mine = [run for run in runs if run["study"] == "trait" and run["voice"] == "pirate"]
    arms = [arm for arm in TRAIT if any(run["arm"] == arm for run in mine)]
    figure = Figure(figsize=(13, 1.2 + 0.24 * len(arms)), layout="constrained")
    panels = figure.subplots(1, len(KINDS), sharey=True)
    for axes, kind in zip(panels, KINDS, strict=True):
        own = [run for run in mine if (run["data"], run["tuning"]) == kind and run["steps"] == dose[kind]]
        _dots(axes, arms, grouped(own, "arm"))
        axes.set_title(f"{kind[0]}, {kind[1]}, {dose[kind]} steps", fontsize=9)
    panels[0].set_yticks(range(len(arms)), arms, fontsize=8)
    panels[0].invert_yaxis()
    figure.legend(handles=_legend(SHOWN), loc="outside lower center", ncols=len(SHOWN), fontsize=9, frameon=False)
    figure.savefig(path, dpi=110)


def _dots(axes: Axes, arms: Sequence[str], runs: Mapping[tuple[str, ...], Sequence[Run]]) -> None:
    for number, arm in enumerate(arms):
        for place, what in enumerate(SHOWN):
            values = [value(run, run["scores"], what) for run in runs.get((arm,), ())]
            if values:
                axes.errorbar(
                    mean(values), number + 0.2 * (place - 1), xerr=half(values), fmt=MARKERS[place], markersize=4.5,
                    color=STROKES[place].colour, linewidth=1,
                )  # fmt: skip
        axes.axhline(number + 0.5, color="0.9", linewidth=0.5)
    axes.set_xlim(-0.03, 1.03)
    axes.tick_params(labelsize=8)


def save_doses(runs: Sequence[Run], dose: Mapping[tuple[str, str], int], path: Path) -> None:
    """The finalists over ten doses: clean answers, the trait and what was kept, mean and range over seeds."""
    long = [run for run in runs if run["study"] == "trait" and run["steps"] == 10 * dose[run["data"], run["tuning"]]]
    arms = [arm for arm in TRAIT if any(run["arm"] == arm for run in long)]
    figure = Figure(figsize=(13, 8), layout="constrained")
    panels = figure.subplots(len(SHOWN), len(KINDS), sharex=True, sharey=True, squeeze=False)
    for column, kind in enumerate(KINDS):
        own = grouped([run for run in long if (run["data"], run["tuning"]) == kind], "arm")
        for row, (what, says) in enumerate(SHOWN.items()):
            axes = panels[row][column]
            for arm, stroke in zip(arms, STROKES, strict=False):
                _dose(axes, own.get((arm,), ()), what, dose[kind], stroke.line)
            axes.set_ylim(-0.03, 1.03)
            axes.set_xscale("log")
            axes.set_xticks([1, 3, 10], ["1", "3", "10"])
            axes.minorticks_off()
            if not column:
                axes.set_ylabel(says, fontsize=9)
            if not row:
                axes.set_title(f"{kind[0]}, {kind[1]}", fontsize=9)
        panels[-1][column].set_xlabel(f"dose ({dose[kind]} steps)", fontsize=9)
    handles = [Line2D([], [], label=arm, **stroke.line) for arm, stroke in zip(arms, STROKES, strict=False)]
    figure.legend(handles=handles, loc="outside lower center", ncols=max(1, len(arms)), fontsize=9, frameon=False)
    figure.savefig(path, dpi=110)


def _dose(axes: Axes, runs: Sequence[Run], what: str, dose: int, line: Mapping[str, object]) -> None:
    if not runs:
        return
    by_step = [{step: value(run, scores, what) for step, scores in looks(run).items() if step} for run in runs]
    steps = sorted(set.intersection(*(set(each) for each in by_step)))
    values = [[each[step] for each in by_step] for step in steps]
    doses = [step / dose for step in steps]
    axes.plot(doses, [mean(each) for each in values], **line)
    axes.fill_between(doses, [min(v) for v in values], [max(v) for v in values], color=line["color"], alpha=0.15)
    axes.set_xlim(0.2, 10.5)


def _legend(shown: Mapping[str, str]) -> list[Line2D]:
    styles = zip(shown.values(), MARKERS, STROKES, strict=False)
    return [Line2D([], [], marker=marker, color=s.colour, linestyle="", label=label) for label, marker, s in styles]
