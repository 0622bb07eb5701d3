import json
import math
import sys

import pytest
import wandb

from interptrain.recorders import WandbRecorder
from interptrain.report import Recorder, Recorders
from tests.helpers.records import discovery, report, wandb_points, wandb_records, wandb_rows

HOSTILE = "<script>alert(1)</script> **bold**"


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quiet = wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_machine_info=True)
    return {"project": "test", "dir": tmp_path, "mode": "offline", "settings": quiet}


@pytest.fixture
def run(options):
    with wandb.init(**options) as run:
        yield run


def test_every_finite_figure_is_logged_over_the_recorders_own_step(options, tmp_path):
    reports = [report(step, share, rerouting=share) for step, share in ((0, 0.3), (10, math.nan), (20, 1 / 3))]
    with WandbRecorder(**options) as recorder:
        assert isinstance(recorder, Recorder)
        for each in reports:
            recorder.record(each)
    points = wandb_points(tmp_path)
    expected = {}
    for each in reports:
        for key, value in each.scalars().items():
            expected.setdefault(key, {})[each.step] = value
    assert points == expected
    assert [row["_step"] for row in wandb_rows(tmp_path)] == [0, 1, 2]


def test_concept_curves_are_drawn_over_the_recorders_own_step(options, tmp_path):
    WandbRecorder(**options).close()
    metrics = [record["metric"] for record in wandb_records(tmp_path) if record["type"] == "metric"]
    assert {metric["glob_name"]: metric["step_metric"] for metric in metrics if "glob_name" in metric} == {
        "concept/*": "interptrain/step", "interptrain/*": "interptrain/step",
    }  # fmt: skip
    assert [metric["options"]["hidden"] for metric in metrics if metric.get("name") == "interptrain/step"] == [True]


@pytest.mark.parametrize(("counted", "every"), [("from 0", 1), ("from 0", 3), ("from 1", 1), ("by wandb", 1)])
def test_what_a_loop_logs_is_left_as_it_is(run, tmp_path, counted, every):
    recorder = WandbRecorder(run)
    for step in range(9):
        recorder.record(report(step, step / 16))
        if step % every == 0:
            own = {"from 0": {"step": step}, "from 1": {"step": step + 1}, "by wandb": {}}[counted]
            run.log({"loss": float(step)}, **own)
            if own:
                run.log({"rate": 0.5}, **own)
    recorder.close()
    run.finish()
    rows = wandb_rows(tmp_path)
    losses = [(row["_step"], row["loss"]) for row in rows if "loss" in row]
    assert [loss for _, loss in losses] == [float(step) for step in range(0, 9, every)]
    if counted != "by wandb":
        assert [step for step, _ in losses] == [loss + (counted == "from 1") for _, loss in losses]
        assert sum("rate" in row for row in rows) == len(losses)
    assert wandb_points(tmp_path)["concept/pirate/demand"] == {step: step / 16 for step in range(9)}


def test_reports_of_two_optimizers_take_no_row_from_a_loop_that_counts_steps(run, tmp_path):
    recorder = WandbRecorder(run)
    for step in range(4):
        recorder.record(report(step, 0.25))
        recorder.record(report(step, 0.5))
        run.log({"loss": float(step)}, step=step)
    run.finish()
    assert [(row["_step"], row["loss"], row["interptrain/step"]) for row in wandb_rows(tmp_path)] == [
        (step, step, step) for step in range(4)
    ]
    assert wandb_points(tmp_path)["concept/pirate/demand"] == dict.fromkeys(range(4), 0.5)


def test_discoveries_are_tables(options, tmp_path):
    with WandbRecorder(**options) as recorder:
        recorder.record(report(0, discoveries=discovery(0, HOSTILE)))
    (path,) = tmp_path.rglob("*.table.json")
    table = json.loads(path.read_text())
    assert table["columns"][:4] == ["rank", "latent", "label", "concept"]
    assert [row[:4] for row in table["data"]] == [[1, 2, "", "pirate"], [2, 1, HOSTILE, ""]]


def test_a_run_that_was_there_before_is_left_open(run, options):
    with WandbRecorder(run), WandbRecorder() as active, WandbRecorder(**options) as same:
        assert active.run is same.run is run
    run.log({"loss": 1.0})


def test_a_run_that_was_made_here_ends_as_its_block_does(options, tmp_path):
    with pytest.raises(ArithmeticError), WandbRecorder(**options):
        raise ArithmeticError
    (end,) = [record["exit"] for record in wandb_records(tmp_path) if record["type"] == "exit"]
    assert end["exit_code"] == 1
    assert wandb.run is None


def test_a_closed_recorder_takes_no_report_and_the_run_goes_on(options):
    recorder = WandbRecorder(**options)
    recorder.close()
    recorder.close()
    with pytest.warns(UserWarning, match="WandbRecorder raised RuntimeError: the recorder is closed"):
        Recorders([recorder]).record(report(0))


def test_a_run_and_arguments_to_make_one_are_refused(run):
    with pytest.raises(ValueError, match="found a run and project"):
        WandbRecorder(run, project="other")


def test_without_wandb_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'interptrain\[wandb\]'"):
        WandbRecorder()
