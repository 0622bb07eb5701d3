"""Drawings of a recipe's report: small panels for `report.html` and the picture `curves.png`.

Every share is drawn with its null: `null +- 2 sd`, where the spread follows from what is logged,

    sd = (value - null) / z
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from interptrain.recorders.document import Arm, Curves, Report, Rung

POINTS = 40  # of a drawn curve; each is the mean over its stretch of steps
SHARES = ("demand", "gradient", "write")  # energy shares, which nothing makes negative but the null's band
Draw: TypeAlias = "Callable[[Axes], None]"


class Stroke(NamedTuple):
    """How an arm is drawn: a colour, and dash and gap lengths in line widths (none: solid)."""

    colour: str
    dashes: tuple[float, ...]

    @property
    def line(self) -> dict[str, Any]:
        """As matplotlib takes it."""
        return {"color": self.colour, "linestyle": (0.0, self.dashes) if self.dashes else "solid"}


# After Okabe and Ito's palette, told apart by colour-blind readers; the dashes tell the arms apart without colour.
STROKES = (
    Stroke("#56879f", ()),
    Stroke("#d55e00", (5.0, 1.5)),
    Stroke("#009e73", (1.5, 1.0)),
    Stroke("#b070a0", (6.0, 1.5, 1.5, 1.5)),
    Stroke("#c98a00", (3.0, 1.0)),
    Stroke("#56b4e9", (1.0, 2.0)),
)
_INK, _FAINT = "#010203", "#010204"  # stand for the page's own text and rule colours in an SVG
_NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


@dataclass(frozen=True)
class Curve:
    """A quantity over the steps: its mean over seeds and, where it has one, its null."""

    steps: Float[np.ndarray, "point"]
    value: Float[np.ndarray, "point"]
    null: Float[np.ndarray, "point"]
    spread: Float[np.ndarray, "point"]


def curve(arm: Arm, key: str) -> Curve | None:
    """An arm's curve of one metric, averaged over seeds; None where no run measured it."""
    runs = [each for run in arm["runs"] if (each := _single(run["curves"], key)) is not None]
    if not runs:
        return None
    length = min(len(run.steps) for run in runs)
    value, null, spread = (
        np.stack([getattr(run, name)[:length] for run in runs]).mean(0) for name in ("value", "null", "spread")
    )
    return Curve(runs[0].steps[:length], value, null, spread)


def _single(curves: Curves, key: str) -> Curve | None:
    if all(value is None for value in curves.get(key, ())):
        return None
    length = len(curves["step"])

    def column(name: str) -> Float[np.ndarray, "point"]:
        return np.array(curves.get(name, [None] * length), dtype=float)

    steps, value, null, z = column("step"), column(key), column(f"{key}/null"), column(f"{key}/z")
    kept = np.isfinite(value)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.abs((value - null) / z)
    columns = (_mean_of_stretches(each[kept]) for each in (steps, value, null, spread))
    return Curve(*columns)


def _mean_of_stretches(values: Float[np.ndarray, "step"]) -> Float[np.ndarray, "point"]:
    stretches = np.array_split(values, min(POINTS, len(values)))
    return np.array([np.mean(s[np.isfinite(s)]) if np.isfinite(s).any() else np.nan for s in stretches])


def draw_concept(axes: Axes, report: Report, concept: str, *, quantity: str = "demand") -> None:
    """One concept in every arm, over the null of the first arm."""
    key = f"concept/{concept}/{quantity}"
    first = curve(report["arms"][0], key)
    if first is not None:
        _draw_null(axes, first)
    _draw_arms(axes, report, concept, key)
    axes.set_ylim(bottom=0)


def draw_quantity(axes: Axes, report: Report, concept: str, quantity: str) -> None:
    """A quantity in every arm that has it, over the first arm's null if it was measured."""
    key = f"concept/{concept}/{quantity}"
    first = curve(report["arms"][0], key)
    if first is not None and np.isfinite(first.null).any():
        _draw_null(axes, first)
    _draw_arms(axes, report, concept, key)
    if quantity == "achieved":  # a gain: rounding about 0 is not to fill the panel
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, -0.05), max(high, 1.05))
    elif quantity in SHARES:
        axes.set_ylim(bottom=0)


def has_quantity(report: Report, concept: str, quantity: str) -> bool:
    """Whether any run measured it."""
    return any(curve(arm, f"concept/{concept}/{quantity}") is not None for arm in report["arms"])


def draw_arm(axes: Axes, report: Report, concept: str, number: int, *, quantity: str = "demand") -> None:
    """One concept in one arm, beside its own null; the same scale in every arm."""
    arm, stroke = report["arms"][number], STROKES[number % len(STROKES)]
    line = curve(arm, f"concept/{concept}/{quantity}")
    if line is not None:
        _draw_null(axes, line)
        axes.plot(line.steps, line.value, **stroke.line, label=arm["name"])
        draw_alarms(axes, arm, concept, line, stroke)
    every = [curve(other, f"concept/{concept}/{quantity}") for other in report["arms"]]
    top = max((np.nanmax([*c.value, *(c.null + 2 * c.spread)]) for c in every if c is not None), default=1.0)
    axes.set_ylim(0, 1.08 * top)


def draw_behaviour(axes: Axes, report: Report, measure: str) -> None:
    """A measured behaviour over the steps, in every arm; thin lines are single seeds."""
    for arm, stroke in zip(report["arms"], cycle(STROKES), strict=False):
        seeds = []
        for run in arm["runs"]:
            steps = [point["step"] for point in run["checkpoints"]]
            seeds.append([point["scores"][measure] for point in run["checkpoints"]])
            axes.plot(steps, seeds[-1], color=stroke.colour, linewidth=0.6, alpha=0.35)
        axes.plot(steps, np.mean(seeds, axis=0), **stroke.line, label=arm["name"])
    axes.set_ylim(-0.04, max(1.04, axes.get_ylim()[1]))  # a share, or a loss


def _draw_arms(axes: Axes, report: Report, concept: str, key: str) -> None:
    for arm, stroke in zip(report["arms"], cycle(STROKES), strict=False):
        line = curve(arm, key)
        if line is not None:
            axes.plot(line.steps, line.value, **stroke.line, label=arm["name"])
            draw_alarms(axes, arm, concept, line, stroke)


def alarms(arm: Arm, concept: str) -> list[Rung]:
    """The alarms of a concept in every run of an arm, by step."""
    found = [rung for run in arm["runs"] for rung in run.get("alarms", ()) if rung["concept"] == concept]
    return sorted(found, key=lambda rung: rung["step"])


def draw_alarms(axes: Axes, arm: Arm, concept: str, line: Curve, stroke: Stroke) -> None:
    """A mark on the curve wherever an alarm began to ring, and at the first of them its step."""
    steps = [float(rung["step"]) for rung in alarms(arm, concept)]
    if not steps:
        return
    heights = np.interp(steps, line.steps, line.value)
    axes.plot(
        steps, heights, linestyle="none", marker="v", markersize=8, color=stroke.colour, markeredgecolor=_INK,
        label="alarm", zorder=3, clip_on=False,
    )  # fmt: skip
    late = steps[0] > np.mean(axes.get_xlim())
    axes.annotate(
        f"alarm, step {steps[0]:.0f}", (steps[0], heights[0]), xytext=(-7 if late else 7, 5),
        textcoords="offset points", ha="right" if late else "left", fontsize="small", annotation_clip=False,
    )  # fmt: skip


def _draw_null(axes: Axes, line: Curve) -> None:
    """The band where it was measured, which may be on some of the steps only."""
    known = np.isfinite(line.null) & np.isfinite(line.spread)
    steps, null, spread = line.steps[known], line.null[known], line.spread[known]
    axes.fill_between(
        steps, null - 2 * spread, null + 2 * spread,
        color=_INK, alpha=0.13, linewidth=0, label="null, mean ± 2 sd",
    )  # fmt: skip
    axes.plot(steps, null, color=_INK, linewidth=0.7, alpha=0.6)


def panel(draw: Draw, *, title: str, name: str, ylabel: str = "") -> str:
    """One small drawing as inline SVG, in the page's own text colour.

    Args:
        draw: draws into the axes.
        title: what a screen reader says of it.
        name: distinct for every panel of a page, since ids are shared by all of them.
        ylabel: of the vertical axis.
    """
    with mpl.rc_context(_style(_INK, _FAINT)):
        figure = Figure(figsize=(3.5, 2.1), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set_xlabel("optimizer steps")
        axes.set_ylabel(ylabel)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), title, name)


def _inline(document: str, title: str, name: str) -> str:
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="([^"]+)"', rf' id="{name}-\1"', svg)
    svg = re.sub(r'(xlink:href="|url\()#', rf"\1#{name}-", svg)
    svg = svg.replace(_INK, "currentColor").replace(_FAINT, "var(--rule)")
    svg = re.sub(r'<svg[^>]*?viewBox="([^"]+)"[^>]*>', rf'<svg viewBox="\1" role="img" {_NAMESPACES}>', svg, count=1)
    opening = svg.index(">") + 1
    return f"{svg[:opening]}<title>{html.escape(title)}</title>{svg[opening:]}"


def save_png(report: Report, path: Path) -> Path:
    """`curves.png`: what each concept's demand was unsteered, and what the arms did to the behaviour."""
    concepts = [concept["name"] for concept in report["concepts"]][:3]
    measures = report["headline"][:2]
    labels = {measure["key"]: measure["label"] for measure in report["measures"]}
    with mpl.rc_context(_style("#1f2328", "#b8bec6") | {"font.size": 10}):
        figure = Figure(figsize=(10.5, 6.2), dpi=160, layout="constrained")
        grid = figure.subplots(2, 3)
        for axes, concept in zip(grid[0], concepts, strict=False):
            draw_arm(axes, report, concept, 0)
            axes.set_title(f"{concept}: demand, {report['arms'][0]['name']}", loc="left")
        draw_concept(grid[1][0], report, concepts[0])
        grid[1][0].set_title(f"{concepts[0]}: demand, all arms", loc="left")
        shares = [*grid[0], grid[1][0]]
        top = max(axes.get_ylim()[1] for axes in shares if axes.has_data())
        for axes in shares:
            axes.set_ylim(0, top)
        for axes in grid[:, 0]:
            axes.set_ylabel("energy share")
        for axes, measure in zip(grid[1][1:], measures, strict=False):
            draw_behaviour(axes, report, measure)
            axes.set_title(f"measured: {labels[measure]}", loc="left")
        _finish(figure, grid.flat, report["title"])
        figure.savefig(path, facecolor="white")
    return path


def _finish(figure: Figure, panels: Iterable[Axes], title: str) -> None:
    legend: dict[str, Artist] = {}
    for axes in panels:
        axes.set_visible(axes.has_data())
        axes.set_xlabel("optimizer steps")
        handles, labels = axes.get_legend_handles_labels()
        legend |= dict(zip(labels, handles, strict=True))
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=len(legend), frameon=False)
    figure.suptitle(title, fontsize=12.5, x=0.01, ha="left")


def _style(ink: str, faint: str) -> dict[str, object]:
    text = {"font.family": "sans-serif", "font.size": 9, "text.parse_math": False, "axes.titlesize": "medium"}
    inks = ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.labelcolor", "ytick.labelcolor")
    faints = ("axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    frame = {"axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1.6}
    grid = {"axes.grid": True, "axes.grid.axis": "y", "grid.linewidth": 0.5, "grid.alpha": 0.6}
    svg = {"svg.fonttype": "none", "svg.hashsalt": "interptrain"}
    return {**text, **frame, **grid, **svg, **dict.fromkeys(inks, ink), **dict.fromkeys(faints, faint)}
