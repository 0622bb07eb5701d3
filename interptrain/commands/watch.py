"""`interptrain watch DIR`: a run that trains now, or has ended, in the terminal and as a page."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.markup import escape

from interptrain.recipes.settings import add_options, configured, option
from interptrain.recorders.follow import Followers
from interptrain.recorders.frame import Frame

NEEDS = ("recipes",)
PAGE_EVERY, PAGE_SHARE = 10.0, 20.0  # seconds between two pages, at least, and as a multiple of what one takes
REFRESH = 10  # seconds after which a browser loads it anew


@dataclass(frozen=True)
class Config:
    """How it is shown."""

    every: float = option("seconds between two looks", 2.0)
    once: bool = option("show what there is, write the page and end", False)
    page: bool = option("also write a page: DIR/live.html, or beside a file the same name with .html", True)

    def __post_init__(self) -> None:
        if not self.every >= 0.1:
            raise ValueError(f"every is seconds, at least 0.1, found {self.every}")


@dataclass
class Prepared:
    """What is watched.

    Args:
        config: how.
        place: a folder or a file.
        followers: its runs.
        notes: what is said under the tables, such as that the page cannot be written.
    """

    config: Config
    place: Path
    followers: Followers
    notes: list[str] = field(default_factory=list)


def arguments(parser: argparse.ArgumentParser) -> None:
    """The folder, and the settings."""
    parser.add_argument("place", type=Path, metavar="DIR", help="a run's folder, or a JSONLRecorder's file")
    add_options(parser, Config)


def prepare(options: argparse.Namespace) -> Prepared:
    """Look whether there is something to watch.

    Raises:
        ValueError: there is not, or a page of somebody else's is where this one would be.
    """
    given = vars(options).copy()
    place: Path = given.pop("place")
    config = configured(Config, given)
    followers = Followers(place)
    followers.look()
    if not place.exists() and (config.once or not place.absolute().parent.is_dir()):
        raise ValueError(f"'{place}' does not exist; name the folder of a run, or a JSONLRecorder's file")
    if not list(followers) and (config.once or place.is_file()):
        report = place / "report.html"
        there = f"; it has a report: '{report}'" if report.is_file() else ""
        said = "; ".join(followers.complaints)
        raise ValueError(f"'{place}' has no curves of a JSONLRecorder{f' ({said})' if said else ''}{there}")
    if config.page:
        _check(page_of(place))
    return Prepared(config, place, followers)


def run(prepared: Prepared, console: Console) -> int:
    """Show it until it ends or Ctrl-C is pressed."""
    if prepared.config.once or finished(prepared):
        console.print(_frame(prepared, None))
        _write(prepared, refresh=None)
    else:
        try:
            _follow(prepared, console)
        except KeyboardInterrupt:  # how one stops looking
            pass
        finally:
            _write(prepared, refresh=None)  # a page that no longer loads itself anew
    for path in (prepared.place / "report.html", page_of(prepared.place)):
        if path.is_file() and (prepared.config.page or path.name == "report.html"):
            console.print(f"page: [bold]{escape(str(path))}[/]", soft_wrap=True)
    return 0


def page_of(place: Path) -> Path:
    """Where the page of a folder or file is: never a recipe's `report.html`."""
    return place.with_suffix(".html") if place.is_file() else place / "live.html"


def finished(prepared: Prepared) -> bool:
    """Whether a recipe has written its report over all that was recorded."""
    report, runs = prepared.place / "report.json", prepared.followers.runs
    try:
        return report.stat().st_mtime >= max((path.stat().st_mtime for path in runs), default=0.0)
    except OSError:
        return False


def _follow(prepared: Prepared, console: Console) -> None:
    every, due, drawn = prepared.config.every, 0.0, False
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            news = prepared.followers.look()
            if console.is_terminal:
                live.update(_frame(prepared, console.height), refresh=True)
            elif news:
                console.print(_frame(prepared, None))
            if finished(prepared):
                return
            drawn = drawn and not news
            if not drawn and time.monotonic() >= due:
                began = time.monotonic()
                _write(prepared, refresh=REFRESH)
                drawn, now = True, time.monotonic()
                due = now + max(PAGE_EVERY, PAGE_SHARE * (now - began))
            time.sleep(every)


def _frame(prepared: Prepared, height: int | None) -> Frame:
    notes = [*prepared.notes, *prepared.followers.complaints]
    return Frame(str(prepared.place), list(prepared.followers), notes, height)


def _write(prepared: Prepared, *, refresh: int | None) -> None:
    """The page, if it is wanted; one that cannot be written is said once, and the terminal goes on."""
    from interptrain.recorders.live import render_live
    from interptrain.recorders.pages import replace_page

    place, runs = prepared.place, list(prepared.followers)
    if not (prepared.config.page and runs) or prepared.notes:
        return
    text = render_live(place, runs, notes=prepared.followers.complaints, refresh=refresh)
    try:
        replace_page(page_of(place), text)
    except ValueError as error:
        prepared.notes.append(f"{error}; the terminal goes on without it")


def _check(path: Path) -> None:
    from interptrain.recorders.pages import is_ours

    if path.exists() and not is_ours(path):
        raise ValueError(f"'{path}' is no page of interptrain's and is left as it is; move it, or leave the page out "
                         "(--no-page)")  # fmt: skip
