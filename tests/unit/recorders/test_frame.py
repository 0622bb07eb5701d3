"""A watched run in a terminal of any width."""

import io
import os

import pytest
from rich.console import Console

from interptrain.recorders.follow import Followers
from interptrain.recorders.frame import Frame
from interptrain.recorders.standing import concepts_of, loss_of, standing
from tests.helpers.watched import line, write

HOSTILE = "[red]<script>\x1b[31m"


def shown(folder, width=80, *, height=None, **console):
    runs = Followers(folder)
    runs.look()
    out = Console(width=width, file=io.StringIO(), **console)
    out.print(Frame(str(folder.name), list(runs), runs.complaints, height))
    return out.file.getvalue()


@pytest.fixture
def folder(tmp_path):
    lines = [line(step, demand=0.2 + 0.1 * step, rang=step == 3, **{"train/loss": 1.5}) for step in range(5)]
    write(tmp_path / "curves" / "gate-0.jsonl", *lines)
    return tmp_path


def test_a_concept_stands_with_its_null_z_curve_gain_and_alarm(folder):
    text = shown(folder)
    assert "gate, seed 0: step 4, loss 1.500" in text
    row = next(row for row in text.splitlines() if row.startswith("pirate"))
    for figure in ("0.600", "0.200±0.200", "4.0", "0.25", "0→0.01", "▼ 4"):
        assert figure in row
    assert any(sign in row for sign in "▁▂▃▄▅▆▇█")
    assert "alarm at step 4: 'pirate' is suppressed and flat, but its sibling 'royal' moved" in " ".join(text.split())


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(folder, width):
    write(folder / "curves" / "long-0.jsonl", line(0, concept="a concept with quite a long name, and more"))
    assert max(len(row) for row in shown(folder, width).splitlines()) <= width
    assert "0.600" in shown(folder, width)


def test_a_terminal_without_blocks_gets_other_signs(folder):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    runs = Followers(folder)
    runs.look()
    Console(width=80, file=out).print(Frame("x", list(runs)))
    out.flush()
    assert b"! 4" in out.buffer.getvalue()


def test_names_neither_style_nor_steer_the_terminal(tmp_path):
    write(tmp_path / "curves.jsonl", line(0, concept=HOSTILE, rang=True))
    text = shown(tmp_path, 120, force_terminal=True, color_system="truecolor")
    assert "[red]<script>\N{REPLACEMENT CHARACTER}[31m" in text
    assert "\x1b[31m" not in text


def test_what_the_height_leaves_out_is_named_and_the_last_written_is_shown(tmp_path):
    for number in range(4):
        path = write(tmp_path / "curves" / f"arm{number}-0.jsonl", line(0))
        os.utime(path, (1e9 + number, 1e9 + number))
    text = shown(tmp_path, height=14)
    assert "arm3, seed 0: step 0" in text
    assert "2 more: arm0, seed 0 (step 0), arm1, seed 0 (step 0)" in text
    assert len(text.splitlines()) <= 14


def test_concepts_are_told_from_what_is_measured_of_them():
    curves = {"step": [0.0], "concept/a/b/gain": [1.0], "concept/a/b/demand": [0.1], "concept/x/gain": [1.0]}
    assert concepts_of(curves) == ["a/b", "x"]
    assert concepts_of({"step": [0.0], "concept/a/demand": [0.1], "concept/a/demand/z": [1.0]}) == ["a"]


def test_figures_are_the_last_measured_and_a_null_is_that_of_the_same_step():
    curves = {"step": [0.0, 1.0, 2.0], "concept/a/demand": [0.5, 0.4, None], "concept/a/demand/null": [0.1, 0.2, None],
              "concept/a/demand/z": [4.0, 2.0, None], "concept/a/realised/other/fraction": [None, 0.3, None],
              "concept/a/loss": [9.0, 9.0, 9.0], "loss": [3.0, None, None]}  # fmt: skip
    here = standing(curves, "a")
    assert (here.demand, here.null, here.z) == (0.4, 0.2, 2.0)
    assert here.spread == pytest.approx(0.1)
    assert (here.realised, here.on) == (0.3, "other")
    assert here.gain is None
    assert loss_of(curves) == 3.0
