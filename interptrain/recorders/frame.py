"""One frame of a watched run in a terminal, at any width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from interptrain.recorders.document import Curves, Rung, said
from interptrain.recorders.follow import Follower
from interptrain.recorders.sparkline import Sparkline
from interptrain.recorders.standing import Standing, concepts_of, loss_of, standing

CONCEPT, FIGURES, CURVE = 18, 54, 32  # characters: of a name, of the figures beside it, of a curve at most
STALE = 60.0  # seconds without a line, from which on it is said


@dataclass(frozen=True, eq=False)
class Frame:
    """Every run with a table of its concepts; the last written first where the terminal's height leaves some out.

    Args:
        place: what is watched, in words.
        runs: that have a step.
        notes: lines under the tables, such as files that cannot be read.
        height: lines that are to be kept to; None for all of them.
    """

    place: str
    runs: Sequence[Follower]
    notes: Sequence[str] = ()
    height: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        parts = {run.path: RunFrame(run) for run in self.runs}
        shown, rest = self._fitting(parts)
        yield Text(f"interptrain watch {_plain(self.place)}", style="bold", overflow="ellipsis", no_wrap=True)
        yield from (parts[run.path] for run in self.runs if run in shown)
        if rest:
            more = ", ".join(f"{_plain(run.name)} (step {run.step:.0f})" for run in rest)
            yield Text(f"{len(rest)} more: {more}", style="dim", overflow="ellipsis", no_wrap=True)
        if not self.runs:
            yield Text("no curves yet: a JSONLRecorder's file appears when the first step was measured", style="dim")
        yield from (Text(_plain(note), style="yellow") for note in self.notes)

    def _fitting(self, parts: dict[Path, RunFrame]) -> tuple[list[Follower], list[Follower]]:
        if self.height is None:
            return list(self.runs), []
        left, shown = self.height - 2 - 2 * len(self.notes), list[Follower]()
        for run in sorted(self.runs, key=lambda run: run.age()):
            left -= parts[run.path].lines
            if shown and left < 0:
                break
            shown.append(run)
        return shown, [run for run in self.runs if run not in shown]


class RunFrame:
    """One run: its step, speed and loss, its concepts in a table, its alarms.

    Args:
        run: as far as it was read.
    """

    def __init__(self, run: Follower) -> None:
        self._run, self._curves, self._alarms = run, run.curves(), run.alarms()
        self._concepts = concepts_of(self._curves)

    @property
    def lines(self) -> int:
        """How many it takes."""
        return 4 + len(self._concepts) + len(self._alarms)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield Text()
        yield Text(self._title(), overflow="ellipsis", no_wrap=True)
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
        signs = ("!", "~", ">") if options.ascii_only else ("▼", "±", "→")
        name = max([7, *(min(CONCEPT, len(each)) for each in self._concepts)])
        width = min(CURVE, options.max_width - name - FIGURES)  # what is left over; none on a narrow screen
        columns = {"concept": name, "demand": 6, f"null {signs[1]} 2 sd": 12, "z": 5, "curve": width, "realised": 8,
                   "gain": 9, "alarm": 6}  # fmt: skip
        room = options.max_width - name
        needs = {"curve": FIGURES + 6, "realised": 52, f"null {signs[1]} 2 sd": 43}  # in the order they are left out
        left_out = [number for number, head in enumerate(columns) if room < needs.get(head, 0)]
        for number, (head, size) in enumerate(columns.items()):
            if number not in left_out:
                side: Literal["left", "right"] = "left" if head in ("concept", "curve") else "right"
                table.add_column(head, width=size, justify=side, no_wrap=True, overflow="ellipsis")
        for concept in self._concepts:
            cells = _row(concept, self._curves, self._of(concept), max(6, width), signs)
            table.add_row(*(cell for number, cell in enumerate(cells) if number not in left_out))
        yield table
        for rung in self._alarms:
            yield Text(f"{signs[0]} {_plain(said(rung))}", style="bold red")

    def _of(self, concept: str) -> list[Rung]:
        return [rung for rung in self._alarms if rung["concept"] == concept]

    def _title(self) -> str:
        run, speed, loss = self._run, self._run.speed(), loss_of(self._curves)
        parts = [f"{_plain(run.name)}: step {run.step:.0f}"]
        parts += [f"{speed:.2f} steps/s"] if speed is not None else []
        parts += [f"loss {loss:.3f}"] if loss is not None else []
        sets = {standing(self._curves, concept).on for concept in self._concepts} - {"", "neutral"}
        parts += [f"realised on {', '.join(sorted(sets))}"] if sets else []
        parts += [f"last written {_ago(run.age())} ago"] if run.age() > STALE else []
        return _plain(", ".join(parts))


def _row(
    concept: str, curves: Curves, alarms: Sequence[Rung], width: int, signs: tuple[str, str, str]
) -> list[RenderableType]:
    here, steps = standing(curves, concept), curves["step"]
    marked = {sum(step is not None and step < rung["step"] for step in steps) - 1 for rung in alarms}
    z = Text("-" if here.z is None else f"{here.z:.1f}", style="bold" if here.z is not None and here.z >= 2 else "")
    null = "-" if here.null is None else f"{here.null:.3f}"
    if here.null is not None and here.spread is not None:
        null += f"{signs[1]}{2 * here.spread:.3f}"
    return [
        Text(_plain(concept)), _figure(here.demand), null, z,
        Sparkline(curves.get(f"concept/{concept}/demand", []), width=width, marked=marked),
        _figure(here.realised, 2), _gain(here, signs[2]),
        Text(f"{signs[0]} {alarms[0]['step']}" if alarms else "", style="bold red"),
    ]  # fmt: skip


def _gain(here: Standing, arrow: str) -> str:
    if here.gain is None:
        return "-"
    return f"{here.gain:.2g}" + ("" if here.achieved is None else f"{arrow}{round(here.achieved, 2) + 0.0:.2f}")


def _figure(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _plain(text: str) -> str:
    """Without signs that steer a terminal."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)
