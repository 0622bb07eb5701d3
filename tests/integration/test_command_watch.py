"""`interptrain watch` on runs that the real callback wrote, and on files that grow while they are watched."""

import json
import os

import pytest

from interptrain import cli
from interptrain.commands import watch
from interptrain.recorders import JSONLRecorder, read_alarms
from tests.helpers.pages import Page
from tests.helpers.reports import small_report
from tests.helpers.watched import line, recorded, write


@pytest.fixture(scope="module")
def rerouted(tmp_path_factory):
    """The folder of a run in which the alarm rings at its tenth step."""
    return recorded(tmp_path_factory.mktemp("rerouted"))


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def test_once_shows_a_real_run_with_its_alarm_and_writes_its_page(rerouted, capsys):
    assert read_alarms(rerouted / "curves" / "suppressed-0.jsonl")[0]["step"] == 10
    assert cli.main(["watch", str(rerouted), "--once"]) == 0
    said = capsys.readouterr().out
    assert "suppressed, seed 0: step 9" in said
    rows = {row.split()[0]: row for row in said.splitlines() if row.startswith(("pirate", "royal", "minus"))}
    assert "▼ 10" in rows["pirate"]
    assert "0→0.00" in rows["pirate"]
    assert "▼" not in rows["royal"]
    assert max(map(len, said.splitlines()[:9])) <= 80
    text = (rerouted / "live.html").read_text()
    assert text.count("alarm, step 10") == 4  # on demand, write, achieved and realised
    assert "its sibling 'royal' moved" in " ".join(Page(text).words)
    assert "refresh" not in text


def test_nothing_but_the_terminal_where_no_page_is_wanted(rerouted, tmp_path, capsys):
    folder = tmp_path / "run"
    write(folder / "curves.jsonl", line(0))
    assert cli.main(["watch", str(folder), "--once", "--no-page"]) == 0
    assert "pirate" in capsys.readouterr().out
    assert [file.name for file in folder.iterdir()] == ["curves.jsonl"]


def following(monkeypatch, *happenings):
    """While it is watched each of these happens in turn, between two looks; then Ctrl-C is pressed."""
    happen = iter(happenings)

    def sleep(_):
        try:
            next(happen)()
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(watch.time, "sleep", sleep)
    monkeypatch.setattr(watch, "PAGE_EVERY", 0.0)
    monkeypatch.setattr(watch, "PAGE_SHARE", 0.0)


def test_a_run_that_grows_is_followed_until_ctrl_c(tmp_path, monkeypatch, capsys):
    folder, pages = tmp_path / "later", []
    file = folder / "curves" / "gate-0.jsonl"

    def keep():
        pages.append((folder / "live.html").read_text())

    following(
        monkeypatch,
        lambda: write(file, line(0), line(1)[:9]),  # the folder appears, with half a line
        keep,
        lambda: write(file, line(0), line(1), line(2)),
        lambda: write(folder / "curves" / "plain-0.jsonl", line(0, rang=True)),
        lambda: write(file, line(0), line(1), line(2), line(1), "broken\n", line(2), line(3)),  # resumed
        keep,
    )
    assert cli.main(["watch", str(folder)]) == 0
    said = capsys.readouterr().out
    for shown in ("gate, seed 0: step 0", "gate, seed 0: step 2", "plain, seed 0: step 0", "gate, seed 0: step 3"):
        assert shown in said
    assert said.count("gate-0.jsonl, line 5: expected a line of a JSONLRecorder") == 1
    assert all('http-equiv="refresh"' in page for page in pages)
    assert "plain, seed 0" not in pages[0]
    assert "plain, seed 0" in pages[1]
    assert 'http-equiv="refresh"' not in (folder / "live.html").read_text()  # nobody watches any more


def test_a_recipe_that_ends_ends_the_watching_and_its_page_stays(tmp_path, monkeypatch, capsys):
    write(tmp_path / "curves" / "gate-0.jsonl", line(0))

    def end():
        write(tmp_path / "report.html", "the recipe's own")
        write(tmp_path / "report.json", json.dumps(small_report()))

    following(monkeypatch, end)
    assert cli.main(["watch", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").read_text() == "the recipe's own"
    assert "report.html" in capsys.readouterr().out
    assert cli.main(["watch", str(tmp_path)]) == 0  # it has ended: one frame
    os.utime(tmp_path / "report.json", (1, 1))  # begun anew in the same folder
    following(monkeypatch)
    assert cli.main(["watch", str(tmp_path), "--no-page"]) == 0


def test_one_file_has_its_page_beside_it(tmp_path):
    recorder = JSONLRecorder(tmp_path / "mine.jsonl")
    recorder.path.write_text(line(0))
    assert cli.main(["watch", str(recorder.path), "--once"]) == 0
    assert "demand for pirate" in (tmp_path / "mine.html").read_text()


def test_a_page_that_cannot_be_written_is_said_and_the_terminal_goes_on(tmp_path, monkeypatch, capsys):
    write(tmp_path / "curves.jsonl", line(0))
    following(monkeypatch, lambda: write(tmp_path / "live.html", "mine"),
              lambda: write(tmp_path / "curves.jsonl", line(0), line(1)),
              lambda: write(tmp_path / "curves.jsonl", line(0), line(1), line(2)))  # fmt: skip
    (tmp_path / "live.html").unlink(missing_ok=True)
    assert cli.main(["watch", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "is no page of interptrain's and is left as it is" in said
    assert "step 2" in said
    assert (tmp_path / "live.html").read_text() == "mine"


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda folder: None, ["--once"], "does not exist; name the folder of a run"),
        (lambda folder: folder.mkdir(), ["--once"], "has no curves of a JSONLRecorder"),
        (lambda folder: write(folder / "report.html", ""), ["--once"], "it has a report"),
        (lambda folder: write(folder / "x.jsonl", line(0), "") and write(folder / "live.html", "mine"), ["--once"],
         "is no page of interptrain's and is left as it is"),
        (lambda folder: write(folder / "x.jsonl", line(0)), ["--every", "0"], "every is seconds, at least 0.1"),
        (lambda folder: write(folder, "mine\n"), ["--once"], "expected a line of a JSONLRecorder"),
    ],
)  # fmt: skip
def test_a_mistake_is_said_before_anything_is_written(tmp_path, capsys, make, options, message):
    folder = tmp_path / "run"
    make(folder)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        cli.main(["watch", str(folder), *options])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
