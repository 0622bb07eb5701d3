"""`interptrain compare`'s page: both runs in each panel, each with its own null."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import mean, stdev
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from interptrain.recorders import curves
from interptrain.recorders.comparison import (
    Pair,
    Score,
    Side,
    alarms_of,
    changed,
    first_difference,
    last_of,
    mean_of,
    other_concepts,
    paired,
    parted,
    scores,
)
from interptrain.recorders.document import Arm, said
from interptrain.recorders.html import WRITTEN, Panel
from interptrain.recorders.live import figure
from interptrain.recorders.pages import page

SIDES = (curves.STROKES[0], curves.STROKES[1])


def compared(a: Side, b: Side) -> dict[str, Any]:
    """All that the terminal and the page show of two runs, but the drawings."""
    pairs, only_a, only_b = paired(a, b)
    concepts_a, concepts_b = other_concepts(pairs)
    left_out = [
        f"Only in {side}: {what} {', '.join(names)}."
        for side, what, names in (
            ("A", "the arm", only_a), ("B", "the arm", only_b),
            ("A", "the concept", concepts_a), ("B", "the concept", concepts_b),
        )
        if names
    ]  # fmt: skip
    reports = a.report is not None and b.report is not None
    return {
        "places": (str(a.place), str(b.place)),
        "summaries": [side.report["summary"] if side.report else "" for side in (a, b)],
        "notes": [*left_out, *a.notes, *b.notes],
        "reports": reports,
        "config": changed(a.report["config"], b.report["config"]) if a.report and b.report else [],
        "versions": changed(a.report["versions"], b.report["versions"]) if a.report and b.report else [],
        "scores": scores(a.report, b.report, pairs) if a.report and b.report else [],
        "starts": [_start(pair) for pair in pairs],
        "rows": [_row(pair, concept) for pair in pairs for concept in pair.concepts],
        "alarms": [
            (f"{side}: {arm['name']}, seed {seed}", said(rung))
            for side, arms in (("A", a.arms), ("B", b.arms))
            for arm in arms
            for seed, rung in alarms_of(arm)
        ],
    }


def render_comparison(a: Side, b: Side) -> str:
    """The page; every text of the runs is escaped."""
    pairs, _, _ = paired(a, b)
    return page(
        "compare.html",
        {"figure": figure, "over_seeds": over_seeds, "difference": difference},
        title=f"{a.place.name} and {b.place.name}",
        sides=list(zip(("A", "B"), SIDES, strict=True)),
        panels=[(pair.name, *_panels(pair, number)) for number, pair in enumerate(pairs)],
        **compared(a, b),
    )


def over_seeds(values: Sequence[float]) -> str:
    """`mean ± sd`, or the bare number of one seed.

    Example:
        >>> over_seeds([0.5, 0.7]), over_seeds([0.5])
        ('0.60 ± 0.14', '0.50')
    """
    return f"{mean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def difference(score: Score) -> str:
    """`B - A` with its spread where there is one.

    Example:
        >>> difference(Score("gate", "skill", [0.5], [0.7], 0.2, None))
        '+0.20'
        >>> difference(Score("gate", "skill", [0.501], [0.5], -0.001, None))
        '+0.00'
    """
    return f"{round(score.difference, 2) + 0.0:+.2f}" + ("" if score.spread is None else f" ± {score.spread:.2f}")


def draw_both(axes: Axes, pair: Pair, concept: str, quantity: str) -> None:
    """A quantity of a concept in both, each line over its own null in its own colour."""
    key = f"concept/{concept}/{quantity}"
    for arm, stroke in zip((pair.a, pair.b), SIDES, strict=True):
        line = curves.curve(arm, key)
        if line is None:
            continue
        known = np.isfinite(line.null) & np.isfinite(line.spread)
        steps, null, spread = line.steps[known], line.null[known], line.spread[known]
        axes.fill_between(steps, null - 2 * spread, null + 2 * spread, color=stroke.colour, alpha=0.18, linewidth=0)
        axes.plot(steps, null, color=stroke.colour, linewidth=0.7, alpha=0.7)
        axes.plot(line.steps, line.value, **stroke.line)
        curves.draw_alarms(axes, arm, concept, line, stroke)
    if quantity in curves.SHARES:
        axes.set_ylim(bottom=0)


def _panels(pair: Pair, number: int) -> tuple[list[Panel], list[Panel]]:
    """The demand for every concept, and what was written, achieved and realised."""

    def draw(concept: str, quantity: str, name: str, caption: str, ylabel: str) -> Panel:
        drawn = partial(draw_both, pair=pair, concept=concept, quantity=quantity)
        svg = curves.panel(drawn, title=f"{quantity} of {concept} in both", name=name, ylabel=ylabel)
        return Panel(Markup(svg), caption)

    demands = [
        draw(concept, "demand", f"demand-{number}-{place}", concept, "energy share")
        for place, concept in enumerate(pair.concepts)
    ]
    others = [
        draw(concept, quantity, f"other-{number}-{place}-{which}", f"{concept}: {quantity.split('/')[0]}", ylabel)
        for place, concept in enumerate(pair.concepts)
        for which, (quantity, ylabel, _) in enumerate(WRITTEN)
        if any(mean_of(arm, concept, quantity) is not None for arm in (pair.a, pair.b))
    ]
    return demands, others


def _row(pair: Pair, concept: str) -> dict[str, Any]:
    return {
        "arm": pair.name,
        "concept": concept,
        "demand": [mean_of(arm, concept, "demand") for arm in (pair.a, pair.b)],
        "realised": [last_of(arm, concept, "realised/neutral/fraction") for arm in (pair.a, pair.b)],
        "apart": parted(pair, concept),
    }


def _start(pair: Pair) -> str:
    """From where on the two are not the same run."""
    lengths = [max((len(run["curves"]["step"]) for run in arm["runs"]), default=0) for arm in (pair.a, pair.b)]
    count = f"{pair.name}: {lengths[0]} measured steps in A, {lengths[1]} in B"
    if not _common_seeds(pair.a, pair.b):
        return f"{count}; no seed in common."
    if not pair.concepts:
        return f"{count}; no concept in common."
    found = first_difference(pair)
    if found is None:
        return f"{count}; the same, figure by figure, on every step that both measured."
    return f"{count}; not the same from step {found.step} on: {found.metric} is {found.a:.4g} and {found.b:.4g}."


def _common_seeds(a: Arm, b: Arm) -> bool:
    one, other = ({run["seed"] for run in arm["runs"]} for arm in (a, b))
    return bool(one & other) or len(one) == len(other) == 1
