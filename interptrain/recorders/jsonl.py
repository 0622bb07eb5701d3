"""A recorder that appends one JSON object a report to a file."""

from __future__ import annotations

import json
from pathlib import Path

from interptrain.report import METRICS_SCHEMA, StepReport


class JSONLRecorder:
    """Appends `{"schema": 1, "step": n, metric: value, ...}` lines; a resumed run goes on in the same file.

    Where the whole dictionary was read, the line also has `"discovery": {hook: rows}`.

    Each line is one synchronisation with the device; measure less often (`every`) to pay less.

    Args:
        path: the file; its folder is made.

    Raises:
        ValueError: the file cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.open("a").close()
        except OSError as error:
            raise ValueError(f"cannot write '{self.path}': {error}") from error

    def record(self, report: StepReport) -> None:
        """Append a report."""
        found = {hook: table.rows() for hook, table in report.discoveries.items()}
        figures = report.scalars() | ({"discovery": found} if found else {})
        line = json.dumps({"schema": METRICS_SCHEMA, "step": report.step, **figures})
        with self.path.open("a") as file:
            file.write(line + "\n")
