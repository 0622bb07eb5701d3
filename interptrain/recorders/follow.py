"""Curves files that grow while they are read: of one run, and of every run in a folder."""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from interptrain.recorders.document import Curves, Rung
from interptrain.recorders.jsonl import Line, begun, columns, read_line

BEGINS = b'{"schema"'  # what tells a JSONLRecorder's file from other JSON lines
LOOKS = 30  # that the speed is a mean over


class Follower:
    """A `JSONLRecorder`'s file as far as it is written: `look` reads what is new.

    Half a line is left for the next look, and a file that was begun anew is read anew. Of steps that repeat, as a run
    writes that was resumed, the last line counts. A line that cannot be read is passed over and counted.

    Args:
        path: the file, which may appear later.
        name: of the run.
        clock: seconds, for the speed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = Follower(Path(folder, "curves.jsonl"))
        ...     _ = run.path.write_text('{"schema": 1, "step": 0, "concept/pirate/demand": 0.5}\\n{"schema": 1, "st')
        ...     run.look(), run.look(), run.curves()
        (True, False, {'step': [0.0], 'concept/pirate/demand': [0.5]})
    """

    def __init__(self, path: Path, name: str = "", *, clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self.name, self._clock = path, name or path.stem, clock
        self.unread, self.complaint = 0, ""
        self._begin()

    def _begin(self) -> None:
        self._offset, self._lines, self._number, self._inode = 0, dict[float, Line](), 0, 0
        self._seen = deque[tuple[float, float]](maxlen=LOOKS)
        self._curves: Curves | None = None
        self.step: float | None = None

    def look(self) -> bool:
        """Read what was written since the last look; whether there was anything."""
        try:
            with self.path.open("rb") as file:
                found = file.seek(0, 2)
                inode = os.fstat(file.fileno()).st_ino
                if found < self._offset or self._inode not in (0, inode):
                    self._begin()
                self._inode = inode
                file.seek(self._offset)
                whole, found_break, _ = file.read().rpartition(b"\n")
        except OSError:  # not there yet, or between two runs
            return False
        if not found_break:
            return False
        self._offset += len(whole) + 1
        for line in whole.split(b"\n"):
            self._number += 1
            if line.strip():
                self._take(line)
        if self.step is not None:
            self._seen.append((self._clock(), self.step))
        return True

    def _take(self, raw: bytes) -> None:
        try:
            line = read_line(raw, f"{self.path.name}, line {self._number}")
        except ValueError as error:
            self.unread += 1
            self.complaint = self.complaint or str(error)
            return
        if self.step is not None and line.step < self.step:
            self._seen.clear()
        if self._curves is not None and line.step > self._curves["step"][-1]:  # type: ignore[operator]
            _append(self._curves, line.figures)
        else:
            self._curves = None  # a step that repeats: they are made anew when they are asked for
        self.step = line.step
        self._lines[line.step] = line

    def curves(self) -> Curves:
        """As `read_curves` has them; not to be changed."""
        if self._curves is None:
            self._curves = columns({step: line.figures for step, line in self._lines.items()})
        return self._curves

    def alarms(self) -> list[Rung]:
        """As `read_alarms` has them."""
        return begun({step: line.alarms for step, line in self._lines.items()})

    def speed(self) -> float | None:
        """Steps a second over the last looks; None before there were two with news."""
        if len(self._seen) < 2:
            return None
        (before, first), (now, last) = self._seen[0], self._seen[-1]
        return (last - first) / (now - before) if now > before else None

    def age(self) -> float:
        """Seconds since the file was last written."""
        try:
            return max(0.0, time.time() - self.path.stat().st_mtime)
        except OSError:
            return 0.0


def _append(curves: Curves, figures: Mapping[str, float]) -> None:
    before = len(curves["step"])
    for key in figures:
        curves.setdefault(key, [None] * before)
    for key, values in curves.items():
        values.append(figures.get(key))


class Followers:
    """Every run whose curves lie under a folder, or the one in a file; new ones are found as they appear.

    Args:
        place: a folder or a `JSONLRecorder`'s file; it may appear later.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.runs: dict[Path, Follower] = {}

    def look(self) -> bool:
        """Read what is new in all of them; whether there was anything."""
        for path in _files(self.place):
            if path not in self.runs:
                self.runs[path] = Follower(path, run_name(path, self.place))
        news = [run.look() for run in self.runs.values()]  # every one looks
        return any(news)

    def __iter__(self) -> Iterator[Follower]:
        """Those that have a step, by name."""
        return iter(
            sorted((run for run in self.runs.values() if run.step is not None), key=lambda run: _natural(run.name))
        )

    @property
    def complaints(self) -> list[str]:
        """For each file with lines that could not be read, the first, and how many."""
        bad = [run for run in self.runs.values() if run.unread]
        return [run.complaint + (f" ({run.unread} lines are passed over)" if run.unread > 1 else "") for run in bad]


def run_name(path: Path, place: Path) -> str:
    """What a run is called: where its file lies in the folder, and of a recipe's `curves/ARM-SEED` the arm and seed.

    Example:
        >>> run_name(Path("runs/a/curves/steered-0.jsonl"), Path("runs/a"))
        'steered, seed 0'
        >>> run_name(Path("a/b.jsonl"), Path("a/b.jsonl"))
        'b'
    """
    inside = path.relative_to(path.parent if path == place else place)
    parts = [part for part in (*inside.parts[:-1], inside.stem) if part != "curves"] or [path.absolute().parent.name]
    arm = re.fullmatch(r"(.+)-(\d+)", parts[-1]) if path.absolute().parent.name == "curves" else None
    last = f"{arm[1]}, seed {arm[2]}" if arm else parts[-1]
    return "/".join((*parts[:-1], last))


def _files(place: Path) -> list[Path]:
    if place.is_dir():
        return sorted(path for path in place.rglob("*.jsonl") if path.is_file() and _begins(path))
    return [place] if place.is_file() else []


def _begins(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(BEGINS)) == BEGINS
    except OSError:
        return False


def _natural(name: str) -> list[tuple[int, str]]:
    """Numbers by their size: seed 2 before seed 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
