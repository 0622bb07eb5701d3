"""A recorder that keeps every report in memory."""

from __future__ import annotations

from interptrain.report import StepReport


class MemoryRecorder:
    """Keeps reports on their device; nothing is transferred until the curves are asked for."""

    def __init__(self) -> None:
        self.reports: list[StepReport] = []

    def record(self, report: StepReport) -> None:
        """Keep a report."""
        self.reports.append(report)

    def curves(self) -> dict[str, list[float | None]]:
        """`{"step": [...], metric: [...]}`, one entry a report; None where a metric was not measured."""
        rows = [report.scalars() for report in self.reports]
        keys = dict.fromkeys(key for row in rows for key in row)
        curves: dict[str, list[float | None]] = {"step": [float(report.step) for report in self.reports]}
        return curves | {key: [row.get(key) for row in rows] for key in keys}
