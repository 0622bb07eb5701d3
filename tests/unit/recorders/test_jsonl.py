import json
import math

import pytest

from interptrain.recorders import JSONLRecorder, MemoryRecorder, read_curves
from tests.helpers.records import HOOK, discovery, report


def test_a_line_a_report_is_appended(tmp_path):
    path = tmp_path / "new" / "curves.jsonl"
    JSONLRecorder(path).record(report(0, 0.2))
    JSONLRecorder(path).record(report(1, 0.3))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1]
    assert lines[1]["schema"] == 1
    assert lines[1]["concept/pirate/demand"] == pytest.approx(0.3)


def test_a_path_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write"):
        JSONLRecorder(tmp_path / "file" / "curves.jsonl")


def test_curves_read_back_are_those_of_a_recorder_in_memory(tmp_path):
    memory, file = MemoryRecorder(), JSONLRecorder(tmp_path / "curves.jsonl")
    for each in (report(0, 0.2), report(5, math.nan, rerouting=1.0), report(6, 0.6, discoveries=discovery(6))):
        memory.record(each)
        file.record(each)
    curves = read_curves(file.path)
    assert curves == memory.curves()
    assert curves["concept/pirate/demand"][1] is None
    assert curves["interptrain/rerouting"] == [None, 1.0, None]
    assert json.loads(file.path.read_text().splitlines()[-1])["discovery"][HOOK][0]["latent"] == 2


def test_a_resumed_run_replaces_the_steps_that_it_repeats(tmp_path):
    path = tmp_path / "curves.jsonl"
    for step in range(4):
        JSONLRecorder(path).record(report(step, 0.1 * step, rerouting=1.0))
    for step in range(2, 6):
        JSONLRecorder(path).record(report(step, 0.5))
    curves = read_curves(path)
    assert curves["step"] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert curves["concept/sums/demand"] == pytest.approx([0.0, 0.1, 0.5, 0.5, 0.5, 0.5])
    assert curves["interptrain/rerouting"] == [1.0, 1.0, None, None, None, None]


def test_runs_of_other_concepts_in_one_file_have_none_where_the_other_measured(tmp_path):
    path = tmp_path / "curves.jsonl"
    JSONLRecorder(path).record(report(0, concepts=("pirate",)))
    JSONLRecorder(path).record(report(1, concepts=("royal",)))
    curves = read_curves(path)
    assert curves["concept/pirate/demand"] == [0.5, None]
    assert curves["concept/royal/demand"] == [None, 0.5]


@pytest.mark.parametrize("kept", [1, 10, 40, -2])
def test_a_run_that_is_killed_while_it_writes_goes_on_after_its_last_whole_line(tmp_path, kept):
    path = tmp_path / "curves.jsonl"
    recorder = JSONLRecorder(path)
    for step in range(3):
        recorder.record(report(step))
    first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second + third[:kept])
    assert read_curves(path)["step"] == [0.0, 1.0]
    JSONLRecorder(path).record(report(2))
    assert path.read_bytes() == first + second + third


def test_a_whole_line_that_only_lacks_its_break_is_kept(tmp_path):
    path = tmp_path / "curves.jsonl"
    JSONLRecorder(path).record(report(0))
    path.write_bytes(path.read_bytes()[:-1])
    assert read_curves(path)["step"] == [0.0]
    JSONLRecorder(path).record(report(1))
    assert read_curves(path)["step"] == [0.0, 1.0]


def test_nothing_is_cut_off_a_file_of_somebody_else(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("first\nmy last line")
    with pytest.raises(ValueError, match="ends in half a line that no JSONLRecorder began, 'my last line'"):
        JSONLRecorder(path)
    assert path.read_text() == "first\nmy last line"


def test_numbers_that_are_not_finite_are_not_read(tmp_path):
    path = tmp_path / "curves.jsonl"
    path.write_text('{"schema": 1, "step": 3, "concept/a/demand": NaN, "concept/b/demand": 1e999, "gain": 2}\n')
    assert read_curves(path) == {"step": [3.0], "gain": [2.0]}


def test_the_file_of_a_run_without_reports_is_empty_curves(tmp_path):
    path = JSONLRecorder(tmp_path / "curves.jsonl").path
    assert read_curves(path) == {"step": []} == MemoryRecorder().curves()


@pytest.mark.parametrize("line", ['{"schema": 1, "st', "[1, 2]", '{"loss": 1.0}', '{"schema": 1}', "\x00\x00"])
def test_a_line_that_is_none_of_a_recorder_is_named(tmp_path, line):
    path = tmp_path / "curves.jsonl"
    path.write_text(f'{{"schema": 1, "step": 0}}\n{line}\n{{"schema": 1, "step": 1}}\n')
    with pytest.raises(ValueError, match=r"curves\.jsonl', line 2: expected a line of a JSONLRecorder"):
        read_curves(path)


def test_a_file_of_another_schema_and_a_missing_one_are_refused(tmp_path):
    path = tmp_path / "curves.jsonl"
    with pytest.raises(ValueError, match="does not exist; a JSONLRecorder writes it"):
        read_curves(path)
    path.write_text('{"schema": 2, "step": 0}\n')
    with pytest.raises(ValueError, match="line 1: schema 2, this version reads 1"):
        read_curves(path)
