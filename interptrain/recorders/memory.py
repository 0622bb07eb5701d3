"""A recorder that keeps every report in memory."""

from __future__ import annotations

from rich.jupyter import JupyterMixin
from rich.markup import escape
from rich.table import Table

from interptrain.recorders.document import Rung
from interptrain.recorders.jsonl import begun
from interptrain.recorders.sparkline import Sparkline
from interptrain.report import StepReport


class MemoryRecorder(JupyterMixin):
    """Keeps reports on their device; nothing is transferred until the curves are asked for.

    `rich.print(recorder)` shows them in the terminal, and a notebook as a cell's last line.

    Example:
        >>> import torch
        >>> from interptrain.report import Plain
        >>> recorder, none = MemoryRecorder(), torch.zeros(())
        >>> for step in range(4):
        ...     gain = Plain(torch.tensor([float(step)]))
        ...     recorder.record(StepReport(step, ("pirate",), {"gain": gain}, {}, nonfinite=none, capped=none + 1))
        >>> recorder.curves()
        {'step': [0.0, 1.0, 2.0, 3.0], 'concept/pirate/gain': [0.0, 1.0, 2.0, 3.0]}
        >>> recorder.curves_table("gain").row_count
        1
    """

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

    def alarms(self) -> list[Rung]:
        """The alarms that began to ring, by step."""
        return begun({float(report.step): report.alarms for report in self.reports})

    def curves_table(self, metric: str = "demand") -> Table:
        """One metric of every concept as a curve over the measured steps, its first and last value, null and z.

        Args:
            metric: what follows the concept's name: `demand`, `gradient`, `write`, `realised/neutral`, ...

        Raises:
            ValueError: there are reports, and none of them has the metric.
        """
        curves, concepts = self.curves(), self._concepts
        measured = _metrics(curves, concepts)
        if self.reports and metric not in measured:
            raise ValueError(f"no report has the metric '{metric}' of any concept; measured: {', '.join(measured)}")
        table = Table(
            title=f"interptrain: {escape(metric)} over {len(self.reports)} reports",
            caption="each curve from 0 to its own largest mean; null and z (against as many other latents) at the end",
        )
        table.add_column("concept")
        table.add_column(escape(metric))
        for column in ("first", "last", "null", "z"):
            table.add_column(column, justify="right")
        for concept in concepts:
            values, null, z = (
                [value for value in curves.get(f"concept/{concept}/{metric}{suffix}", []) if value is not None]
                for suffix in ("", "/null", "/z")
            )
            figures = (f"{found[0]:.3g}" if found else "-" for found in (values[:1], values[-1:], null[-1:], z[-1:]))
            table.add_row(escape(concept), Sparkline(values), *figures)
        return table

    def __rich__(self) -> Table:
        measured = _metrics(self.curves(), self._concepts)
        return self.curves_table(measured[0] if measured and "demand" not in measured else "demand")

    @property
    def _concepts(self) -> list[str]:
        return list(dict.fromkeys(name for report in self.reports for name in report.concepts))


def _metrics(curves: dict[str, list[float | None]], concepts: list[str]) -> list[str]:
    starts = [f"concept/{concept}/" for concept in concepts]
    return list(dict.fromkeys(key.removeprefix(start) for start in starts for key in curves if key.startswith(start)))
