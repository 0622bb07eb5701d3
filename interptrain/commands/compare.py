"""`interptrain compare A B`: two runs side by side, in the terminal and as a page."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from interptrain.recorders.comparison import Setting, Side, paired, read_side

NEEDS = ("recipes",)


@dataclass(frozen=True)
class Prepared:
    """Two runs that were read, and where their page goes."""

    a: Side
    b: Side
    out: Path | None


def arguments(parser: argparse.ArgumentParser) -> None:
    """The two runs, and the page."""
    what = "a recipe's folder or report.json, a JSONLRecorder's file, or a folder of them"
    parser.add_argument("a", type=Path, metavar="A", help=what)
    parser.add_argument("b", type=Path, metavar="B", help="the same")
    parser.add_argument("--out", type=Path, metavar="PAGE.html", help="also write a page with both runs' curves")


def prepare(options: argparse.Namespace) -> Prepared:
    """Read both.

    Raises:
        ValueError: one is no run, they have no arm in common, or the page cannot be written.
    """
    from interptrain.recorders.pages import is_ours

    a, b, out = read_side(options.a), read_side(options.b), options.out
    if not paired(a, b)[0]:
        names = [", ".join(arm["name"] for arm in side.arms) for side in (a, b)]
        raise ValueError(f"'{a.place}' and '{b.place}' have no arm in common: {names[0]}; {names[1]}")
    if out is not None and out.exists() and not is_ours(out):
        raise ValueError(f"'{out}' is no page of interptrain's and is left as it is; name another file (--out)")
    if out is not None and not out.absolute().parent.is_dir():
        raise ValueError(f"cannot write '{out}': '{out.parent}' is no folder; make it, or name another file (--out)")
    return Prepared(a, b, out)


def run(prepared: Prepared, console: Console) -> int:
    """Show the tables; write the page."""
    from interptrain.recorders.compare_page import compared, render_comparison
    from interptrain.recorders.pages import replace_page

    found = compared(prepared.a, prepared.b)
    console.print(f"A: {found['places'][0]}\nB: {found['places'][1]}", markup=False, highlight=False, soft_wrap=True)
    for note in found["notes"]:
        console.print(Text(note, style="yellow"))
    if found["reports"]:
        console.print(_settings("set otherwise", [*found["config"], *found["versions"]]))
        console.print(_scores(found["scores"]))
    for words in found["starts"]:
        console.print(Text(words))
    if found["rows"]:
        console.print(_concepts(found["rows"]))
    for name, words in found["alarms"]:
        console.print(Text(f"{name}: {words}", style="bold red"))
    if prepared.out is not None:
        with console.status("drawing"):
            page = render_comparison(prepared.a, prepared.b)
        replace_page(prepared.out, page)
        console.print(f"page: [bold]{escape(str(prepared.out))}[/]", soft_wrap=True)
    return 0


def _settings(title: str, rows: list[Setting]) -> Table | Text:
    if not rows:
        return Text("the same settings and versions", style="dim")
    table = Table(title, "A", "B", box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _scores(rows: list[Any]) -> Table:
    from interptrain.recorders.compare_page import difference, over_seeds

    table = Table("arm", "measure", box=SIMPLE_HEAD, pad_edge=False)
    for side in ("A", "B", "B - A"):
        table.add_column(side, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(Text(row.arm), Text(row.measure), over_seeds(row.a), over_seeds(row.b), difference(row))
    return table


def _concepts(rows: list[dict[str, Any]]) -> Table:
    table = Table("arm", "concept", box=SIMPLE_HEAD, pad_edge=False)
    for head in ("demand A", "B", "realised A", "B", "apart from"):
        table.add_column(head, justify="right")
    for row in rows:
        demand, realised = ([_figure(value) for value in row[name]] for name in ("demand", "realised"))
        apart = "never" if row["apart"] is None else f"step {row['apart']}"
        table.add_row(Text(row["arm"]), Text(row["concept"]), *demand, *realised, apart)
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
