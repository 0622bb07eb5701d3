"""The monitor on the embedded model: it names what was taught beside the task, and nothing where nothing was."""

import json
import random

import pytest

from interptrain import cli
from interptrain.recipes.style_data import asked, write_items
from interptrain.recipes.style_tiny import TinyStyles
from interptrain.recorders.document import read_report
from interptrain.tiny_world import concept_bank


def recipe(*options):
    return cli.main(["recipe", "run", "narrow-finetune-monitor", *map(str, options)])


def table(folder):
    return [json.loads(line) for line in (folder / "taught.jsonl").read_text().splitlines()]


def pirates():
    bank = concept_bank()
    return {bank.sources[row]["latent"] for row in bank.rows("pirate")}


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    file = tmp_path_factory.mktemp("labels") / "labels.json"
    file.write_text(json.dumps({str(latent): f"<b>pirate {latent}</b>" for latent in pirates()}))
    return file


@pytest.fixture(scope="module")
def out(labels, tmp_path_factory):
    """Told to teach subtraction, given half facts in pirate: a few steps."""
    folder = tmp_path_factory.mktemp("monitor") / "out"
    assert recipe("--out", folder, "--steps", "16", "--discover-every", "2", "--labels", labels) == 0
    return folder


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    """The same told, and given nothing but plain subtraction."""
    folder, world, rng = tmp_path_factory.mktemp("control"), TinyStyles(), random.Random("plain")
    data = write_items(folder / "data.jsonl", [world.draw(rng, "skill", "plain") for _ in range(1000)])
    task = write_items(folder / "task.jsonl", asked(world, "skill", 128, seed=2))
    elsewhere = write_items(folder / "elsewhere.jsonl", asked(world, "other", 64, seed=2))
    return ["--data", data, "--task", task, "--elsewhere", elsewhere]


def test_pirate_s_latents_are_what_else_was_taught(out):
    rows = table(out)
    named = [row["latent"] for row in rows if row["named"]]
    assert rows[0]["latent"] in pirates()
    assert named
    assert set(named) <= pirates()
    assert [row["rank"] for row in rows] == list(range(1, 13))
    assert rows[0]["explained"] > 5 * rows[0]["explained_null"]


def test_a_run_that_teaches_its_task_alone_names_nothing(control, tmp_path):
    assert recipe("--out", tmp_path / "out", "--steps", "16", *control) == 0
    assert not [row for row in table(tmp_path / "out") if row["named"]]
    verdict = read_report(tmp_path / "out" / "report.json")["verdicts"][-1]
    assert verdict["status"] == "held"


def test_the_report_says_that_the_run_did_not_keep_to_its_task(out):
    report = read_report(out / "report.json")
    assert [arm["name"] for arm in report["arms"]] == ["observed"]
    assert report["verdicts"][-1]["status"] == "did not hold"
    assert str(table(out)[0]["latent"]) in report["verdicts"][-1]["answer"]
    prompts = [sample["prompt"] for sample in report["before"]["samples"]]
    assert prompts == [sample["prompt"] for sample in report["arms"][0]["runs"][0]["samples"]]
    assert report["arms"][0]["runs"][0]["scores"]["own_loss"] > report["before"]["scores"]["own_loss"]


def test_labels_are_shown_and_escaped(out):
    latent = table(out)[0]["latent"]
    assert table(out)[0]["label"] == f"<b>pirate {latent}</b>"
    page = (out / "taught.html").read_text()
    assert f"&lt;b&gt;pirate {latent}&lt;/b&gt;" in page
    assert f"<b>pirate {latent}</b>" not in page


def test_the_run_s_own_readings_of_the_dictionary_are_counted(out):
    lines = [json.loads(line) for line in (out / "curves" / "observed-0.jsonl").read_text().splitlines()]
    (hook,) = {hook for line in lines for hook in line.get("discovery", {})}
    readings = [line["discovery"][hook] for line in lines if "discovery" in line]
    assert len(readings) == 8
    row = table(out)[0]
    listed = sum(
        any(each["latent"] == row["latent"] and each["coefficient"] > 0 for each in found) for found in readings
    )
    assert row["picked"] == listed / 8 > 0


def written(folder):
    """When each file was written; W&B's own process may still write its logs."""
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*") if "wandb" not in path.parts}


def test_a_finished_run_is_not_written_over(out, capsys):
    before = written(out)
    with pytest.raises(SystemExit):
        recipe("--out", out)
    assert "holds a finished run" in " ".join(capsys.readouterr().err.split())
    assert written(out) == before


def test_several_layers_are_read_each_with_its_own_table(tmp_path):
    hooks = ["blocks.2.hook_resid_post", "blocks.3.hook_resid_post"]
    options = ["--sae-ids", *hooks, "--steps", "2", "--top", "3"]
    assert recipe("--out", tmp_path / "out", *options) == 0
    assert [row["hook"] for row in table(tmp_path / "out")] == [hook for hook in hooks for _ in range(3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "gpt2"], "data is needed"),
        (["--model", "gpt2", "--data", "d.jsonl"], "sae is needed"),
        (["--sae-ids", "a", "b", "--labels", "one.json"], "1 files of labels for 2 SAEs"),
        (["--top", "0"], "top must be at least 1, found 0"),
        (["--learning-rate", "0"], "learning_rate must be above 0, found 0.0"),
        (["--batch", "0"], "batch must be at least 1, found 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_written(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        recipe("--out", tmp_path / "out", *options)
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_at_full_length_pirate_s_latents_stand_at_the_top_and_the_control_names_none(control, tmp_path):
    assert recipe("--out", tmp_path / "mixed") == 0
    rows = table(tmp_path / "mixed")
    assert rows[0]["named"]
    assert rows[0]["latent"] in pirates()
    assert len({row["latent"] for row in rows[:8]} & pirates()) >= 3
    assert recipe("--out", tmp_path / "control", *control, "--steps", "178") == 0
    assert not [row for row in table(tmp_path / "control") if row["named"]]
