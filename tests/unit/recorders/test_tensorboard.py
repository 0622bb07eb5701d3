import math
import sys
import time
from html.parser import HTMLParser

import pytest
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.summary.writer import event_file_writer

from interptrain.recorders import TensorBoardRecorder
from interptrain.report import Recorder
from tests.helpers.records import HOOK, discovery, report, tensorboard_points, tensorboard_texts

HOSTILE = "<script>alert(1)</script> | **bold** `code` [a](http://x) <!-- &lt; _it_ ~~~"


def test_every_finite_figure_is_a_scalar_under_its_metric_name(tmp_path):
    assert isinstance(TensorBoardRecorder(tmp_path), Recorder)
    with TensorBoardRecorder(tmp_path / "new" / "folder") as recorder:
        recorder.record(report(0, 0.3, concepts=("pirate talk", "sums")))
        recorder.record(report(7, math.nan, concepts=("pirate talk", "sums"), rerouting=1.0))
    points = tensorboard_points(recorder.folder)
    assert points["concept/pirate talk/demand"] == [(0, pytest.approx(0.3))]
    assert points["concept/sums/gain"] == [(0, 0.25), (7, 0.25)]
    assert points["interptrain/rerouting"] == [(7, 1.0)]


def test_a_resumed_run_replaces_the_steps_that_it_repeats(tmp_path, monkeypatch):
    start = time.time()
    with TensorBoardRecorder(tmp_path) as recorder:
        for step in range(0, 50, 10):
            recorder.record(report(step, step / 100, rerouting=1.0, discoveries=discovery(step)))
    monkeypatch.setattr(event_file_writer.time, "time", lambda: start + 60)  # files are read in the order of seconds
    with TensorBoardRecorder(tmp_path) as recorder:
        for step in (20, 30):
            recorder.record(report(step, 0.75, discoveries=discovery(step)))
    assert tensorboard_points(tmp_path)["concept/pirate/demand"] == [
        (0, 0.0), (10, pytest.approx(0.1)), (20, 0.75), (30, 0.75),
    ]  # fmt: skip
    assert tensorboard_points(tmp_path)["interptrain/rerouting"] == [(0, 1.0), (10, 1.0)]
    ((_, texts),) = tensorboard_texts(tmp_path).items()
    assert [step for step, _ in texts] == [0, 10, 20, 30]


def test_a_recorder_that_is_closed_opens_again_at_the_next_report(tmp_path):
    recorder = TensorBoardRecorder(tmp_path)
    recorder.close()
    assert not list(tmp_path.iterdir())
    recorder.record(report(0))
    recorder.close()
    recorder.close()
    assert tensorboard_points(tmp_path)["concept/pirate/demand"] == [(0, 0.5)]


class Cells(HTMLParser):
    """The tags of a page and the text of each table cell."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.cells = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data.strip("\n")


def test_hostile_names_and_labels_are_shown_as_text_by_tensorboard_itself(tmp_path):
    with TensorBoardRecorder(tmp_path) as recorder:
        recorder.record(report(0, discoveries=discovery(0, HOSTILE, concept=HOSTILE)))
    ((tag, ((_, text),)),) = tensorboard_texts(tmp_path).items()
    page = Cells(markdown_to_safe_html(text))
    assert tag.startswith(f"interptrain/discovery/{HOOK}")
    assert page.tags <= {"table", "thead", "tbody", "tr", "th", "td"}
    columns = ["rank", "latent", "label", "concept", "coefficient"]
    assert [page.cells[at : at + 5] for at in (0, 10, 20)] == [
        columns, ["1", "2", "", HOSTILE, "5"], ["2", "1", HOSTILE, "", "-2"],
    ]  # fmt: skip
    assert len(page.cells) == 3 * 10


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write to '.*file'"):
        TensorBoardRecorder(tmp_path / "file")


def test_a_disk_that_is_full_at_the_end_is_a_warning(tmp_path, monkeypatch):
    def full(self):
        raise OSError(28, "No space left on device")

    recorder = TensorBoardRecorder(tmp_path)
    recorder.record(report(0))
    monkeypatch.setattr("torch.utils.tensorboard.FileWriter.flush", full)
    with pytest.warns(UserWarning, match=r"the last figures were not written .*No space left on device"):
        recorder.close()


def test_without_tensorboard_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'interptrain\[tensorboard\]'"):
        TensorBoardRecorder(tmp_path)
