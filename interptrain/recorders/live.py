"""`live.html`: the page of a run that trains now, or of one that no recipe made."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, cast

from markupsafe import Markup

from interptrain._version import __version__
from interptrain.recorders import curves
from interptrain.recorders.document import Arm, Report, said
from interptrain.recorders.follow import Follower
from interptrain.recorders.html import WRITTEN, Panel
from interptrain.recorders.pages import page
from interptrain.recorders.standing import concepts_of, loss_of, probe_set, standing
from interptrain.recorders.token_view import FILE, ShownTokens, shown_tokens


def render_live(place: Path, runs: Sequence[Follower], *, notes: Sequence[str] = (), refresh: int | None = None) -> str:
    """The page of runs as far as they are written; every text of theirs is escaped.

    Args:
        place: the folder or file that is watched.
        runs: that have a step.
        notes: what else is to be said, such as of lines that cannot be read.
        refresh: seconds after which a browser is to load the page anew; None for a page that stays.
    """
    views, complaints = _tokens(place, runs)
    arms = [_arm(run) for run in runs]
    return page(
        "live.html",
        {"figure": figure},
        title=place.name or str(place),
        drawn=time.strftime("%Y-%m-%d %H:%M:%S"),
        version=__version__,
        refresh=refresh,
        notes=[*notes, *complaints],
        runs=[_card(run) for run in runs],
        strokes=tuple(islice(cycle(curves.STROKES), len(arms))),
        alarms=[(run.name, said(rung)) for run in runs for rung in run.alarms()],
        panels=_panels(arms),
        tokens=views,
    )


def figure(value: float | None, digits: int = 3) -> str:
    """A figure of a table, or a dash.

    Example:
        >>> figure(0.12345), figure(None), figure(-0.001, 1)
        ('0.123', '–', '0.0')
    """
    return "\N{EN DASH}" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def _card(run: Follower) -> dict[str, Any]:
    found, speed = run.curves(), run.speed()
    loss = loss_of(found)
    return {
        "name": run.name,
        "step": int(run.step or 0),
        "speed": "" if speed is None else f"{speed:.2f}",
        "loss": "" if loss is None else f"{loss:.3f}",
        "concepts": [(concept, standing(found, concept)) for concept in concepts_of(found)],
    }


def _arm(run: Follower) -> Arm:
    return cast("Arm", {"name": run.name, "runs": [{"curves": run.curves(), "alarms": run.alarms()}]})


def _panels(arms: Sequence[Arm]) -> list[tuple[str, Panel, list[Panel]]]:
    """For every concept its demand, and what was written, achieved and realised where it was measured."""
    found = []
    every = [arm["runs"][0]["curves"] for arm in arms]
    report = cast("Report", {"arms": list(arms)})
    for number, concept in enumerate(dict.fromkeys(name for each in every for name in concepts_of(each))):
        on = next((on for each in every if (on := probe_set(each, concept))), "neutral")
        others = [
            (f"realised/{on}/fraction" if quantity.startswith("realised") else quantity, ylabel, says)
            for quantity, ylabel, says in WRITTEN
        ]
        demand = _panel(partial(curves.draw_concept, report=report, concept=concept), f"demand-{number}",
                        f"demand for {concept}", "demand: what the data ask for", "energy share")  # fmt: skip
        found.append((concept, demand, [
            _panel(partial(curves.draw_quantity, report=report, concept=concept, quantity=quantity),
                   f"other-{number}-{place}", f"{says} ({concept})", says, ylabel)
            for place, (quantity, ylabel, says) in enumerate(others)
            if curves.has_quantity(report, concept, quantity)
        ]))  # fmt: skip
    return found


def _panel(draw: curves.Draw, name: str, title: str, caption: str, ylabel: str) -> Panel:
    return Panel(Markup(curves.panel(draw, title=title, name=name, ylabel=ylabel)), caption)


def _tokens(place: Path, runs: Sequence[Follower]) -> tuple[list[tuple[str, ShownTokens]], list[str]]:
    """The token views beside the runs, and what cannot be read."""
    folders = dict.fromkeys([*([place] if place.is_dir() else []), *(run.path.parent for run in runs)])
    views, complaints = [], []
    for file in (folder / FILE for folder in folders):
        if file.is_file():
            try:
                views.append((file.parent.name, shown_tokens(file)))
            except ValueError as error:
                complaints.append(str(error))
    return views, complaints
