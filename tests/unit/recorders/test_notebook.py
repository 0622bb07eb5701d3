"""What a notebook shows, in IPython's own shell."""

import sys

import pytest
import torch
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell

from interptrain import ConceptBank
from interptrain.plan import Plan
from interptrain.recorders import CurvesDisplay, MemoryRecorder
from interptrain.sites import LeftOut
from tests.helpers.pages import Page
from tests.helpers.records import report

HOSTILE = "<script>alert(1)</script>[link=javascript:alert(1)]x[/link]"


@pytest.fixture
def shell():
    """A shell; `shell.kernel` makes it a notebook's. What is displayed is kept."""
    shell = InteractiveShell.instance()
    shell.display_pub = CapturingDisplayPublisher()
    yield shell
    InteractiveShell.clear_instance()


@pytest.fixture
def notebook(shell):
    shell.kernel = object()
    yield shell
    del shell.kernel


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def shown(thing, shell):
    return shell.display_formatter.format(thing)[0]["text/html"]


def test_one_drawing_appears_and_is_replaced_in_place(notebook):
    clock = Clock()
    display = CurvesDisplay(every=5.0, clock=clock)
    for step in range(6):
        clock.now = 2.0 * step
        display.record(report(step, 0.3))
    outputs = notebook.display_pub.outputs
    assert [output["update"] for output in outputs] == [False, True]  # at 0 and 6 seconds
    assert len({output["transient"]["display_id"] for output in outputs}) == 1
    assert "step 0" in outputs[0]["data"]["text/html"]
    assert "step 3" in outputs[1]["data"]["text/html"]
    assert "step 5" in shown(display, notebook)


def test_a_terminal_and_a_script_get_no_drawing(shell, monkeypatch):
    display = CurvesDisplay()
    display.record(report(0))
    assert shell.display_pub.outputs == []
    shell.kernel = object()
    monkeypatch.delitem(sys.modules, "IPython.display")  # as in a script, which never imports it
    CurvesDisplay().record(report(0))
    assert shell.display_pub.outputs == []
    assert "IPython.display" not in sys.modules


def test_it_keeps_what_a_recorder_in_memory_keeps():
    display, memory = CurvesDisplay(), MemoryRecorder()
    for recorder in (display, memory):
        for step in range(3):
            recorder.record(report(step, 0.1 * step))
            assert recorder.curves()["step"][-1] == step
    assert display.curves() == memory.curves()


def test_the_curve_lies_in_its_null_band_and_an_alarm_is_marked():
    display, rung = CurvesDisplay(), {"step": 3, "what": "its sibling", "figure": 0.5, "on": "neutral"}
    for step in range(4):
        display.record(report(step, concepts=("pirate",), alarms={"pirate": rung if step == 2 else None}))
    text = display._repr_html_()
    assert "alarm, step 3" in text
    assert "alarm at step 3" in text
    assert "null, mean" in text
    assert "FillBetweenPolyCollection" in text
    assert CurvesDisplay(concepts=["sums"])._repr_html_().count("<svg") == 0


def test_two_displays_on_one_page_share_no_id():
    displays = [CurvesDisplay(), CurvesDisplay()]
    for display in displays:
        display.record(report(0, concepts=("pirate",)))
    page = Page("".join(display._repr_html_() for display in displays))
    assert page.ids
    assert len(page.ids) == len(set(page.ids))


def test_everything_that_a_notebook_shows_is_escaped(shell):
    bank = ConceptBank.from_directions({HOSTILE: torch.ones(4)}, hook=HOSTILE, source={"kind": HOSTILE})
    memory, display = MemoryRecorder(), CurvesDisplay()
    for recorder in (memory, display):
        recorder.record(report(0, concepts=(HOSTILE,)))
    plan = Plan((), (), (LeftOut(HOSTILE, HOSTILE),), 0, (HOSTILE,))
    for thing in (bank, memory, display, plan):
        page = Page(shown(thing, shell))
        assert "script" not in page.tags
        assert "a" not in page.tags
        assert not page.handlers
        assert "<script>" in "".join(page.words)


def test_seconds_between_drawings_are_positive():
    with pytest.raises(ValueError, match="every is seconds above 0, found 0"):
        CurvesDisplay(every=0.0)
