"""`similar.html` and the end of a search on the screen: what was found like a few examples, by each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from interptrain.recorders.pages import write_page

LIMITS = (
    "A high score says that a step on the document would move the model as steps on the examples would, at the weights "
    "it has now; whether training on the ranked documents teaches the skill is not measured here.",
    "What most documents of the sample ask for is discounted: a skill that much of the corpus teaches stands out less.",
    "Gradients are those of the linear layers compared; embeddings, norms, biases and fused experts are left out.",
)


def write_similar(
    path: Path,
    summary: Mapping[str, Any],
    asked: Sequence[Mapping[str, Any]],
    columns: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Path:
    """Write the page; every text is escaped.

    Args:
        path: the file.
        summary: what `summary.json` holds.
        asked: the examples, each with `prompt` and `completion`.
        columns: of each ranking the first documents, with `line`, `score` and `labelled` too.
    """
    says = {
        "gradient": f"The gradients of {len(summary['layers'])} linear layers.",
        "concepts": f"What is asked of {sum(summary['directions'].values())} directions at "
        f"{', '.join(summary['directions'])}.",
        "both": "The mean of the two scores; top.jsonl is their top.",
    }
    return write_page(
        path, "similar.html", query=summary["query"], says=said(summary), figures=figures(summary, list(columns)),
        asked=asked, limits=LIMITS,
        columns=[{"name": name, "says": says[name], "rows": rows} for name, rows in columns.items()],
    )  # fmt: skip


def show_similar(summary: Mapping[str, Any], page: Path, console: Console) -> None:
    """The figures, time and memory, and where the page is."""
    rows = figures(summary, list(summary["rankings"]))
    table = Table("by", *rows[0]["cells"], box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(row["name"], *row["cells"].values())
    console.print(table)
    console.print(said(summary), highlight=False)
    console.print(f"\npage: [bold]{escape(str(page))}[/]", soft_wrap=True)


def figures(summary: Mapping[str, Any], rankings: Sequence[str]) -> list[dict[str, Any]]:
    """A row of figures for each ranking: how many documents, and with labels how many of them are right."""
    rows, top, labelled = [], summary["top"], summary["labelled"]
    for name in rankings:
        cells = {"top": f"{top} of {summary['documents']}"}
        if labelled is not None:
            precision, chance = summary["precision"][name], labelled / summary["documents"]
            recall = precision * top / labelled
            cells |= {"precision": f"{precision:.3f}", "by chance": f"{chance:.3f}", "recall": f"{recall:.3f}"}
        rows.append({"name": name, "cells": cells})
    return rows


def said(summary: Mapping[str, Any]) -> str:
    """The search in a few sentences."""
    peak = "" if summary["peak_memory"] is None else f", at most {decimal(summary['peak_memory'])} of memory"
    found = (
        f"{summary['examples']} examples, {summary['documents']} documents in {summary['seconds']:.1f} s "
        f"({summary['documents_per_second']:.0f} a second{peak})."
    )
    if summary["unscored"]:
        found += f" {summary['unscored']} documents have no token in the loss and no score."
    if summary["overlap"] is not None:
        found += (
            f" Gradient and concepts: rank correlation {summary['rank_correlation']:.2f}, "
            f"{summary['overlap']:.0%} of their tops in common."
        )
    return found
