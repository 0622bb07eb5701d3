"""`taught.html`: the table of what a run taught besides its task; one file, no script, no request to anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from interptrain.recipes.taught import Taught
from interptrain.recorders.document import Report
from interptrain.recorders.pages import write_page


def write_taught(report: Report, found: Sequence[Taught], rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Write the page; every text is escaped.

    Args:
        report: of the run; its last verdicts are those of the hooks.
        found: by hook.
        rows: of all hooks.
        path: the file.
    """
    hooks = []
    for each, verdict in zip(found, report["verdicts"][-len(found) :], strict=True):
        own = [row for row in rows if row["hook"] == each.hook]
        explained, null = each.explained(len(own))
        hooks.append({
            "name": each.hook, "verdict": verdict, "rows": own, "moved": each.moved, "task": each.task_share,
            "left": 1 - explained, "left_null": 1 - float(null.mean()),
        })  # fmt: skip
    then = report["arms"][0]["runs"][0]["samples"]
    samples = [(a["prompt"], a["answer"], b["answer"]) for a, b in zip(report["before"]["samples"], then, strict=True)]
    return write_page(path, "taught.html", report=report, hooks=hooks, samples=samples)
