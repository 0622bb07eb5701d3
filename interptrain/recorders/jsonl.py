"""A recorder that appends one JSON object a report to a file, and what reads such a file back."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from interptrain.recorders.document import Rung
from interptrain.report import METRICS_SCHEMA, StepReport

_START = b'{"schema": '  # of every line that is written here


class JSONLRecorder:
    """Appends `{"schema": 1, "step": n, metric: value, ...}` lines; a resumed run goes on in the same file.

    Where the whole dictionary was read, the line also has `"discovery": {hook: rows}`, and where an alarm rings
    `"alarms": {concept: {"step", "what", "figure", "on"}}`. Half a line at the end, which a
    run leaves that is killed while it writes, is cut off when the file is opened. `read_curves` reads the file back.

    Each line is one synchronisation with the device; measure less often (`every`) to pay less.

    Args:
        path: the file; its folder is made.

    Raises:
        ValueError: the file cannot be written, or it ends in half a line that no recorder began.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from interptrain.report import Plain
        >>> none, gain = torch.zeros(()), Plain(torch.tensor([0.5]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     recorder = JSONLRecorder(f"{folder}/curves.jsonl")
        ...     recorder.record(StepReport(0, ("pirate",), {"gain": gain}, {}, nonfinite=none, capped=none + 1))
        ...     read_curves(recorder.path)
        {'step': [0.0], 'concept/pirate/gain': [0.5]}
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.open("ab").close()
            _mend_end(self.path)
        except OSError as error:
            raise ValueError(f"cannot write '{self.path}': {error}") from error

    def record(self, report: StepReport) -> None:
        """Append a report."""
        found = {hook: table.rows() for hook, table in report.discoveries.items()}
        more = {"discovery": found, "alarms": report.ringing}
        figures = report.scalars() | {key: value for key, value in more.items() if value}
        line = json.dumps({"schema": METRICS_SCHEMA, "step": report.step, **figures}, allow_nan=False)
        with self.path.open("a") as file:
            file.write(line + "\n")


def read_curves(path: str | Path) -> dict[str, list[float | None]]:
    """`{"step": [...], metric: [...]}` of a `JSONLRecorder`'s file, in the form of `MemoryRecorder.curves()`.

    Steps are sorted and stand once. Of repeated ones, as a run writes that was resumed from an earlier checkpoint, the
    last line counts; so it does where several optimizers report the same step. None where a metric was not measured.
    Half a line at the end is passed over.

    Args:
        path: the file.

    Raises:
        ValueError: the file is missing, or a line of it is none of a `JSONLRecorder` of this schema.
    """
    rows = {line.step: line.figures for line in _lines(path)}
    return columns(rows)


def read_alarms(path: str | Path) -> list[Rung]:
    """The alarms that a `JSONLRecorder`'s file holds; see `begun`.

    Args:
        path: the file.

    Raises:
        ValueError: as `read_curves` does.
    """
    return begun({line.step: line.alarms for line in _lines(path)})


class Line(NamedTuple):
    """A line of a `JSONLRecorder`: its step, its finite numbers, and for each suppressed concept its alarm or None."""

    step: float
    figures: dict[str, float]
    alarms: dict[str, dict[str, Any] | None]


def columns(rows: Mapping[float, Mapping[str, float]]) -> dict[str, list[float | None]]:
    """`{"step": [...], metric: [...]}` of `{step: {metric: value}}`, the steps sorted.

    Example:
        >>> columns({5.0: {"step": 5.0, "loss": 1.0}, 0.0: {"step": 0.0}})
        {'step': [0.0, 5.0], 'loss': [None, 1.0]}
    """
    keys = dict.fromkeys(("step", *(key for row in rows.values() for key in row)))
    return {key: [rows[step].get(key) for step in sorted(rows)] for key in keys}


def begun(alarms: Mapping[float, Mapping[str, Mapping[str, Any] | None]]) -> list[Rung]:
    """The looks at which an alarm began to ring: it did not at the look before. Sorted by step.

    Args:
        alarms: by step, for each concept that was looked at, the alarm or None.

    Example:
        >>> rung = {"step": 10, "what": "its sibling 'royal'", "figure": 0.6, "on": "neutral"}
        >>> begun({9.0: {"pirate": rung}, 19.0: {"pirate": {**rung, "step": 20}}, 29.0: {"pirate": None}})
        [{'concept': 'pirate', 'step': 10, 'what': "its sibling 'royal'", 'figure': 0.6, 'on': 'neutral'}]
    """
    found, before = [], set()
    for step in sorted(alarms):
        for concept, alarm in alarms[step].items():
            if alarm is None:
                before.discard(concept)
            elif concept not in before:
                before.add(concept)
                found.append(Rung(concept=concept, **alarm))  # type: ignore[typeddict-item]
    return found


def read_line(line: bytes, where: str) -> Line:
    """One line.

    Args:
        line: without its break.
        where: of the file, for the message.

    Raises:
        ValueError: it is none of a `JSONLRecorder` of this schema.
    """
    try:
        found: dict[str, Any] = json.loads(line)
        schema, step = found.pop("schema"), float(found["step"])
        if not math.isfinite(step):
            raise ValueError("no step")  # said below
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        shown = line[:40].decode(errors="replace")
        raise ValueError(f"{where}: expected a line of a JSONLRecorder with schema and step, found {shown!r}") from None
    if schema != METRICS_SCHEMA:
        raise ValueError(f"{where}: schema {schema!r}, this version reads {METRICS_SCHEMA}")
    numbers = {key: float(value) for key, value in found.items() if isinstance(value, (int, float))}
    figures = {key: value for key, value in numbers.items() if math.isfinite(value)} | {"step": step}
    return Line(step, figures, _alarms(figures, found.get("alarms")))


def _alarms(figures: Mapping[str, float], ringing: Any) -> dict[str, dict[str, Any] | None]:
    """What was looked at, by the figures; of those that ring, what the line says of it."""
    said: Mapping[str, Any] = ringing if isinstance(ringing, Mapping) else {}
    found: dict[str, dict[str, Any] | None] = {}
    for key, value in figures.items():
        if key.startswith("concept/") and key.endswith("/alarm"):
            concept = key.removeprefix("concept/").removesuffix("/alarm")
            told = said.get(concept)
            given: Mapping[str, Any] = told if isinstance(told, Mapping) else {}
            unsaid = {"step": int(figures["step"]) + 1, "what": "", "figure": value, "on": ""}
            found[concept] = {name: given.get(name, other) for name, other in unsaid.items()} if value else None
    return found


def _lines(path: str | Path) -> Iterator[Line]:
    try:
        *lines, last = Path(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        raise ValueError(f"'{path}' does not exist; a JSONLRecorder writes it while a model trains") from None
    if _is_json(last):
        lines.append(last)
    return (read_line(line, f"'{path}', line {number}") for number, line in enumerate(lines, start=1) if line.strip())


def _mend_end(path: Path) -> None:
    """Cut half a line off the end of a file; a whole one that only lacks its line break gets it."""
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return
        file.seek(size - 1)
        if file.read() == b"\n":
            return
        file.seek(0)
        last = file.read().rpartition(b"\n")[2]
        if not (last.startswith(_START) or _START.startswith(last)):
            raise ValueError(
                f"'{path}' ends in half a line that no JSONLRecorder began, {last[:20].decode(errors='replace')!r}; "
                "name another file, or end its last line"
            )
        if _is_json(last):
            file.write(b"\n")
        else:
            file.truncate(size - len(last))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
