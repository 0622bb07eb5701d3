"""Files that grow, break off and begin anew while they are followed."""

import pytest

from interptrain.recorders import read_alarms, read_curves
from interptrain.recorders.follow import Follower, Followers, run_name
from tests.helpers.watched import RANG, line, write


def test_what_is_followed_line_by_line_is_what_is_read_at_once(tmp_path):
    run, lines = Follower(tmp_path / "curves.jsonl"), [line(step, rang=step > 1) for step in range(5)]
    assert not run.look()
    for count in range(1, len(lines) + 1):
        write(run.path, *lines[:count])
        assert run.look()
        assert run.step == count - 1
        assert run.curves() == read_curves(run.path)
        assert run.alarms() == read_alarms(run.path)
    assert not run.look()


@pytest.mark.parametrize("kept", [1, 10, -2])
def test_half_a_line_waits_for_its_other_half(tmp_path, kept):
    run, last = Follower(tmp_path / "curves.jsonl"), line(1)
    write(run.path, line(0), last[:kept])
    assert run.look()
    assert run.curves()["step"] == [0.0]
    assert not run.look()
    write(run.path, line(0), last)
    assert run.look()
    assert run.curves()["step"] == [0.0, 1.0]
    assert run.unread == 0


def test_of_steps_that_a_resumed_run_repeats_the_last_line_counts(tmp_path):
    run = Follower(tmp_path / "curves.jsonl")
    before = [line(step) for step in range(4)]
    write(run.path, *before)
    run.look()
    write(run.path, *before, line(2, demand=0.9), line(3, demand=0.9, extra=7.0))
    run.look()
    assert run.step == 3
    assert run.curves() == read_curves(run.path)
    assert run.curves()["concept/pirate/demand"] == [0.5, 0.5, 0.9, 0.9]


def test_a_file_that_is_begun_anew_is_read_anew(tmp_path):
    run = Follower(tmp_path / "curves.jsonl")
    write(run.path, *(line(step) for step in range(5)))
    run.look()
    write(run.path, line(0, demand=0.7))
    assert run.look()
    assert run.curves()["concept/pirate/demand"] == [0.7]
    run.path.unlink()
    assert not run.look()
    assert run.curves()["step"] == [0.0]


def test_lines_that_cannot_be_read_are_passed_over_counted_and_said_once(tmp_path):
    write(tmp_path / "curves.jsonl", line(0), "not json\n", '{"schema": 2, "step": 1}\n', '{"step": NaN}\n', line(2))
    runs = Followers(tmp_path)
    assert runs.look()
    (run,) = runs
    assert run.curves()["step"] == [0.0, 2.0]
    (said,) = runs.complaints
    assert said.startswith("curves.jsonl, line 2: expected a line of a JSONLRecorder")
    assert "3 lines are passed over" in said


def test_files_that_appear_later_are_found_and_other_json_lines_are_not_taken_for_runs(tmp_path):
    runs = Followers(tmp_path / "later")
    assert not runs.look()
    write(tmp_path / "later" / "curves" / "gate-10.jsonl", line(0))
    write(tmp_path / "later" / "curves" / "gate-2.jsonl", line(0))
    write(tmp_path / "later" / "data.jsonl", '{"prompt": "who ?", "completion": "me ."}\n')
    assert runs.look()
    assert [run.name for run in runs] == ["gate, seed 2", "gate, seed 10"]
    assert runs.complaints == []


def test_a_run_is_named_by_where_it_lies(tmp_path):
    names = {"curves/a-b-1.jsonl": "a-b, seed 1", "one/curves.jsonl": "one", "mine-3.jsonl": "mine-3",
             "curves.jsonl": tmp_path.name}  # fmt: skip
    assert {file: run_name(tmp_path / file, tmp_path) for file in names} == names
    assert run_name(tmp_path / "curves" / "a-1.jsonl", tmp_path / "curves") == "a, seed 1"
    alone = tmp_path / "curves" / "a-1.jsonl"
    assert run_name(alone, alone) == "a, seed 1"


def test_the_speed_is_that_of_the_last_looks_and_begins_anew_when_a_run_is_resumed(tmp_path):
    now = iter([0.0, 2.0, 3.0, 5.0])
    run = Follower(tmp_path / "curves.jsonl", clock=lambda: next(now))
    lines = []
    for new, speed in (([0], None), ([1, 2, 3, 4], 2.0), ([2], None), ([3], 0.5)):
        lines += [line(step) for step in new]
        write(run.path, *lines)
        run.look()
        assert run.speed() == speed


def test_an_alarm_is_an_event_where_it_begins_and_each_time_it_begins_again(tmp_path):
    rings = [False, True, True, False, True]
    path = write(tmp_path / "curves.jsonl", *(line(step, rang=rang) for step, rang in enumerate(rings)))
    assert read_alarms(path) == [{"concept": "pirate", "step": step, **RANG} for step in (2, 5)]


def test_an_alarm_of_which_a_line_says_nothing_more_still_counts(tmp_path):
    path = write(tmp_path / "curves.jsonl", '{"schema": 1, "step": 4, "concept/a/b/alarm": 1.0, "alarms": 3}\n')
    assert read_alarms(path) == [{"concept": "a/b", "step": 5, "what": "", "figure": 1.0, "on": ""}]
