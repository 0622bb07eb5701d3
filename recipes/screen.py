"""The end of a run on the screen: the behaviour table, the verdicts and where the rest is."""

from __future__ import annotations

import re
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from interptrain.recorders.document import Report, write_report

COLOURS = {"held": "green", "did not hold": "red", "undecided": "yellow"}


def write_pages(report: Report, folder: Path) -> Path:
    """Write `report.json`, `curves.png` and `report.html`; returns the path of the last."""
    from interptrain.recorders.curves import save_png
    from interptrain.recorders.html import write_html

    write_report(report, folder / "report.json")
    save_png(report, folder / "curves.png")
    return write_html(report, folder / "report.html")


def scores_table(report: Report) -> Table:
    """Every measure before training and in every arm."""
    from interptrain.recorders.html import spread

    table = Table("", "before", *(arm["name"] for arm in report["arms"]), box=SIMPLE_HEAD, pad_edge=False)
    for measure in report["measures"]:
        key, before = measure["key"], report["before"]["scores"][measure["key"]]
        table.add_row(measure["label"], f"{before:.2f}", *(spread(arm, key) for arm in report["arms"]))
    return table


def show_verdicts(report: Report, console: Console) -> None:
    """Each question with its answer."""
    for verdict in report["verdicts"]:
        console.print(f"{verdict['status']:>12}  {verdict['question']} {verdict['answer']}", highlight=False)


def show(report: Report, page: Path, console: Console) -> None:
    """Every measure before training and in every arm, each verdict, and the page's path."""
    from interptrain.recorders.html import dropped, spread

    arms = report["arms"]
    heads = ("before\ntraining", *(arm["name"].replace("-", "\n") for arm in arms))
    table = Table(
        "", *heads, title=report["title"], title_justify="left", box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False
    )
    for measure in report["measures"]:
        key = measure["key"]
        table.add_row(
            measure["label"],
            short(f"{report['before']['scores'][key]:.2f}"),
            *(short(spread(arm, key)) for arm in arms),
        )
    table.add_row("tokens dropped", "", *(short(dropped(arm)) for arm in arms))
    console.print(table)
    for verdict in report["verdicts"]:
        status = verdict["status"]
        console.print(f"[{COLOURS[status]}]{status:>12}[/]  {verdict['question']}", highlight=False)
    console.print(f"\nreport: [bold]{escape(str(page))}[/]", soft_wrap=True)


def short(figure: str) -> str:
    """A figure for a narrow screen.

    Example:
        >>> short("0.89 ± 0.04"), short("1.00 ± 0.00")
        ('.89±.04', '1.00±.00')
    """
    return re.sub(r"\b0\.", ".", figure).replace(" ", "")
