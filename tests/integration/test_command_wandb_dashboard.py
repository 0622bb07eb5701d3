"""`interptrain wandb-dashboard`: a board of what a real run logged, without a network."""

import json

import pytest

from interptrain import cli
from interptrain.recorders import JSONLRecorder, WandbRecorder
from tests.helpers.records import wandb_points
from tests.helpers.watched import line, rerouted_run, write

WHOSE = ["--entity", "me", "--project", "mine"]


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A run with an offline W&B log beside its curves, and the metrics that W&B's own reader finds there."""
    folder = tmp_path_factory.mktemp("logged")
    with WandbRecorder(mode="offline", dir=folder) as board:
        rerouted_run(10, JSONLRecorder(folder / "curves.jsonl"), board)
    return folder, wandb_points(folder)


def refused(capsys, *options):
    with pytest.raises(SystemExit) as ended:
        cli.main(["wandb-dashboard", *map(str, options)])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_every_panel_shows_metrics_that_are_in_the_log_and_the_alarm_is_there(logged, capsys):
    folder, points = logged
    assert points["concept/pirate/alarm"] == {4: 0.0, 9: 1.0}
    assert cli.main(["wandb-dashboard", str(folder), *WHOSE]) == 0
    assert "not sent anywhere" in capsys.readouterr().out
    board = json.loads((folder / "wandb-dashboard.json").read_text())
    sections = board["spec"]["section"]["panelBankConfig"]["sections"]
    assert [each["name"] for each in sections] == [
        "Overview", "pirate", "royal", "arithmetic", "plus", "minus", "interptrain", "System",
    ]  # fmt: skip
    shown = {metric for each in sections for panel in each["panels"] for metric in panel["config"]["metrics"]}
    assert shown <= points.keys()
    assert {"concept/pirate/alarm", "concept/royal/demand/null", "concept/pirate/achieved"} <= shown
    assert cli.main(["wandb-dashboard", str(folder), *WHOSE, "--concepts", "royal"]) == 0  # over its own file
    assert len(json.loads((folder / "wandb-dashboard.json").read_text())["spec"]["section"]["panelBankConfig"][
        "sections"]) == 4  # fmt: skip


def test_concepts_by_name_need_no_run(tmp_path, capsys):
    file = tmp_path / "board.json"
    assert cli.main(["wandb-dashboard", *WHOSE, "--concepts", "<b>", "--to", str(file), "--name", "mine"]) == 0
    board = json.loads(file.read_text())
    assert (board["entity"], board["project"], board["name"]) == ("me", "mine", "mine")
    assert "concept/<b>/demand/null" in file.read_text()


def test_saving_needs_a_login_and_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    file = tmp_path / "board.json"
    said = refused(capsys, *WHOSE, "--concepts", "pirate", "--to", file, "--save")
    assert "--save needs a login to api.wandb.ai: `wandb login`, or WANDB_API_KEY" in said
    assert not file.exists()


@pytest.mark.slow  # W&B tries again for a while
def test_a_server_that_cannot_be_reached_leaves_the_file_and_a_status(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    file = tmp_path / "board.json"
    assert cli.main(["wandb-dashboard", *WHOSE, "--concepts", "pirate", "--to", str(file), "--save"]) == 1
    assert "W&B did not take the dashboard" in capsys.readouterr().out
    assert file.exists()


def test_a_mistake_is_said_before_anything_is_written(tmp_path, capsys):
    run = write(tmp_path / "run" / "curves.jsonl", line(0)).parent
    other = write(tmp_path / "mine.json", "{}")
    assert "has no concept royal; it has pirate" in refused(capsys, run, *WHOSE, "--concepts", "royal")
    assert "no concepts to show" in refused(capsys, *WHOSE, "--to", tmp_path / "new.json")
    assert "name the file to write (--to)" in refused(capsys, *WHOSE, "--concepts", "pirate")
    assert "is another's file and is left as it is" in refused(capsys, run, *WHOSE, "--to", other)
    assert "does not exist" in refused(capsys, tmp_path / "none", *WHOSE)
    assert other.read_text() == "{}"
    assert [file.name for file in run.iterdir()] == ["curves.jsonl"]
