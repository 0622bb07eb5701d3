"""The recipe as a user runs it: one command in a fresh process, a few steps, one seed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from peft import PeftModel

from interptrain.recipes.pirate_arithmetic import treatments
from interptrain.recorders import read_curves
from interptrain.recorders.document import REPORT_SCHEMA, Report, read_report, rounded
from interptrain.tiny_world import load_base

ARMS = ("unsteered", "suppress-update", "gate", "random-gate")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    here = tmp_path_factory.mktemp("here")
    environment = {**os.environ, "WANDB_MODE": "offline", "COLUMNS": "160", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "interptrain", "recipe", "run", "pirate-arithmetic", "--out", "out"]
    return subprocess.run(
        [*command, "--seeds", "1", "--steps", "4", "--score-every", "2", "--workers", "1"],
        cwd=here, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=400, check=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def out(ran: subprocess.CompletedProcess[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return next(tmp_path_factory.getbasetemp().glob("here*/out"))


@pytest.fixture(scope="module")
def report(out: Path) -> Report:
    return read_report(out / "report.json")


def test_the_screen_ends_with_the_table_and_the_report_s_path(ran):
    assert ran.stdout.rstrip().endswith("report: out/report.html")
    for arm in ARMS:
        assert f"{arm}, seed 0" in ran.stdout
    for label in ("before", "plain facts", "old skill", "tokens dropped"):
        assert label in ran.stdout


def test_nothing_is_written_but_in_the_folder_asked_for(out):
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert sorted(path.name for path in out.iterdir()) == [
        "curves", "curves.png", "report.html", "report.json", "wandb", "weights",
    ]  # fmt: skip


def test_the_curves_can_be_followed_while_it_runs(out, report):
    for arm in report["arms"]:
        curves = read_curves(out / "curves" / f"{arm['name']}-0.jsonl")
        assert arm["runs"][0]["curves"] == rounded(curves)
        assert arm["runs"][0]["alarms"] == []


def test_the_report_holds_every_arm_with_its_scores_curves_and_words(report):
    assert report["schema"] == REPORT_SCHEMA
    assert tuple(arm["name"] for arm in report["arms"]) == ARMS
    assert report["config"]["steps"] == 4
    keys = {measure["key"] for measure in report["measures"]}
    for arm in report["arms"]:
        (run,) = arm["runs"]
        assert set(run["scores"]) == keys
        assert [point["step"] for point in run["checkpoints"]] == [0, 1, 2, 4]
        assert run["curves"]["step"] == [0, 2]
        for concept in report["concepts"]:
            for metric in ("demand", "demand/null", "demand/z", "gradient", "gain"):
                assert len(run["curves"][f"concept/{concept['name']}/{metric}"]) == 2
        assert len(run["samples"]) == len(report["before"]["samples"]) > 0


def test_every_arm_starts_from_the_same_model_and_the_same_batch(report):
    starts = [arm["runs"][0]["checkpoints"][0]["scores"] for arm in report["arms"]]
    assert all(start == starts[0] for start in starts)
    unsteered, projected = (arm["runs"][0]["curves"] for arm in report["arms"][:2])
    for concept in report["concepts"]:
        key = f"concept/{concept['name']}/demand"
        assert unsteered[key][0] == projected[key][0]


def test_what_a_gate_drops_is_asked_for_no_more(report):
    """Demand is read from the gradients that train."""
    asked = {arm["name"]: arm["runs"][0]["curves"]["concept/pirate/demand"][0] for arm in report["arms"]}
    assert asked["gate"] < min(asked["unsteered"], asked["random-gate"])


def test_the_arms_do_what_their_names_say(report):
    curves = {arm["name"]: arm["runs"][0]["curves"] for arm in report["arms"]}
    asked = {
        name: {concept["name"]: own[f"concept/{concept['name']}/gain"][0] for concept in report["concepts"]}
        for name, own in curves.items()
    }
    assert asked["suppress-update"]["pirate"] == 0.0
    assert all(set(asked[name].values()) == {1.0} for name in ARMS if name != "suppress-update")
    for name, concept in (("gate", "pirate-words"), ("random-gate", "random-words")):
        assert all(0 < share < 0.5 for share in curves[name][f"interptrain/gate/{concept}/tokens"])
    assert not [key for name in ("unsteered", "suppress-update") for key in curves[name] if "/gate/" in key]


def test_where_the_trait_is_taught_with_the_skill_the_neutral_prompts_are_anchored():
    acts = {arm.name: [type(act).__name__ for act in arm.acts()] for arm in treatments("entangled")}
    assert acts["gate"] == acts["random-gate"] == ["TokenGate", "Retain"]
    assert [type(act).__name__ for act in treatments("mixed")[2].acts()] == ["TokenGate"]


def test_a_run_too_short_to_tell_says_so(report):
    assert report["verdicts"][0]["status"] == "undecided"
    assert all(verdict["rule"] and verdict["answer"] for verdict in report["verdicts"])


def test_the_random_control_has_as_many_directions_as_pirate(report):
    directions = {concept["name"]: concept["directions"] for concept in report["concepts"]}
    assert directions["random"] == directions["pirate"]
    assert directions["random-words"] == directions["pirate-words"]


def test_the_concepts_were_chosen_by_a_search_that_holds_on_other_texts(report):
    cards = {concept["name"]: concept for concept in report["concepts"]}
    for name in ("pirate", "royal", "pirate-words"):
        assert cards[name]["latents"]
        assert cards[name]["auc"] > 0.9 > cards[name]["shuffled_auc"]


def test_every_adapter_is_there_and_loads(out, report):
    for arm in report["arms"]:
        folder = out / arm["runs"][0]["weights"]
        assert (folder / "adapter_model.safetensors").exists()
        PeftModel.from_pretrained(load_base(), folder)
    assert not list(out.rglob("*.bin")) + list(out.rglob("*.ckpt")) + list(out.rglob("*.pt"))


def test_the_offline_wandb_run_of_every_arm_shows_the_concepts(out, report):
    for arm in report["arms"]:
        folder = out / arm["runs"][0]["wandb"]
        shown = subprocess.run(
            [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--summary", "--json", folder],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        summary = json.loads(shown.stdout)["summary"]
        for concept in report["concepts"]:
            assert f"concept/{concept['name']}/demand" in summary
        assert "behaviour/skill" in summary
