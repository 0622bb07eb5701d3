"""A recorder that appends one JSON object a report to a file, and what reads such a file back."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from interptrain.report import METRICS_SCHEMA, StepReport

_START = b'{"schema": '  # of every line that is written here


class JSONLRecorder:
    """Appends `{"schema": 1, "step": n, metric: value, ...}` lines; a resumed run goes on in the same file.

    Where the whole dictionary was read, the line also has `"discovery": {hook: rows}`. Half a line at the end, which a
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
        figures = report.scalars() | ({"discovery": found} if found else {})
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
    try:
        *lines, last = Path(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        raise ValueError(f"'{path}' does not exist; a JSONLRecorder writes it while a model trains") from None
    if _is_json(last):
        lines.append(last)
    read = (_figures(line, f"'{path}', line {number}") for number, line in enumerate(lines, start=1) if line.strip())
    rows = {row["step"]: row for row in read}
    keys = dict.fromkeys(("step", *(key for row in rows.values() for key in row)))
    return {key: [rows[step].get(key) for step in sorted(rows)] for key in keys}


def _figures(line: bytes, where: str) -> dict[str, float]:
    """A line's step and its finite numbers."""
    try:
        found: dict[str, Any] = json.loads(line)
        schema, step = found.pop("schema"), float(found["step"])
    except (ValueError, TypeError, KeyError, AttributeError):
        shown = line[:40].decode(errors="replace")
        raise ValueError(f"{where}: expected a line of a JSONLRecorder with schema and step, found {shown!r}") from None
    if schema != METRICS_SCHEMA:
        raise ValueError(f"{where}: schema {schema!r}, this version reads {METRICS_SCHEMA}")
    numbers = {key: float(value) for key, value in found.items() if isinstance(value, (int, float))}
    return {key: value for key, value in numbers.items() if math.isfinite(value)} | {"step": step}


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
