"""Unlearning as a user runs it, in a few steps; the slow test is the recipe at its defaults, with one seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from interptrain.recipes.relearning import back_after
from interptrain.recipes.unlearn import NEVER, Config, arms, prepare, run
from interptrain.recorders.document import Report, read_report
from interptrain.tiny_world.corpus import pretraining_documents

ARMS = ("answers", "oppose", "emphasise", "random-emphasise")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("here") / "out"
    few = {"seeds": 1, "steps": 1, "teach_steps": 1, "relearn_steps": 1, "asked": 2, "relearn_examples": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        run(prepare(Config(out=folder, max_length=64, answer_tokens=4, **few)), Console(quiet=True))
    return folder


@pytest.fixture(scope="module")
def report(out: Path) -> Report:
    return read_report(out / "report.json")


def test_everything_is_written_into_the_folder_asked_for(out):
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert {"bank", "curves", "curves.png", "data", "report.html", "report.json", "start", "weights"} <= {
        path.name for path in out.iterdir()
    }


def test_the_report_holds_every_arm_and_how_soon_each_start_relearns(report):
    assert tuple(arm["name"] for arm in report["arms"]) == ARMS
    assert tuple(each["name"] for each in report["relearning"]) == (*ARMS, NEVER)
    for each in report["relearning"]:
        (only,) = each["runs"]
        assert [look["step"] for look in only["checkpoints"]] == [0, 1]
    for arm, each in zip(report["arms"], report["relearning"], strict=False):
        assert each["runs"][0]["checkpoints"][0]["scores"]["topic"] == arm["runs"][0]["scores"]["topic"]


def test_every_arm_starts_from_the_same_model_and_batch_and_does_what_its_name_says(report):
    runs = {arm["name"]: arm["runs"][0] for arm in report["arms"]}
    starts = [each["checkpoints"][0]["scores"] for each in runs.values()]
    assert all(start == starts[0] for start in starts)
    assert {name for name in ARMS if "interptrain/oppose/fallen" in runs[name]["curves"]} == {"oppose"}
    assert 0 < runs["emphasise"]["curves"]["interptrain/emphasise/topic/tokens"][0] < 1
    assert "interptrain/emphasise/random-topic/tokens" in runs["random-emphasise"]["curves"]
    assert all("interptrain/retain/kl" in each["curves"] for each in runs.values())


def test_a_topic_that_was_never_known_is_found_in_no_verdict_to_have_gone(report):
    """One step of teaching teaches nothing."""
    assert report["before"]["scores"]["topic"] < 0.5
    gone = [
        each["status"]
        for each in report["verdicts"]
        if "no faster" in each["question"] or " go in " in each["question"]
    ]
    assert len(gone) == 3 * len(ARMS)
    assert set(gone) == {"undecided"}


def test_the_page_shows_the_relearning_table(out):
    page = (out / "report.html").read_text()
    assert "How soon it comes back" in page
    assert NEVER in page


@pytest.fixture
def files(tmp_path):
    """A topic of the user's own: the pirate voice of the embedded model."""
    documents = pretraining_documents(seed=3)
    rows = {"pirate": [], "plain": []}
    while min(map(len, rows.values())) < 20:
        each = next(documents)
        if each.voice in rows:
            rows[each.voice].append({"prompt": each.prompt, "completion": each.answer, "instead": "the cat is red ."})
    for voice, found in rows.items():
        (tmp_path / f"{voice}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    return {"forget": tmp_path / "pirate.jsonl", "keep": tmp_path / "plain.jsonl", "out": tmp_path / "out"}


def test_a_topic_of_the_user_s_own_is_taken_from_the_files_alone(files):
    prepared = prepare(Config(**files, neutral_column="instead", words=("be", "are"), asked=5, max_length=64))
    assert not (files["out"] / "start").exists()
    assert {each.completion for each in prepared.topic.neutral} == {"the cat is red ."}
    assert len(prepared.held.forget) == 5
    assert prepared.bank.names == ("topic", "random-topic")
    assert tuple(each.name for each in arms(prepared)) == ARMS
    assert not prepared.held.siblings


def test_too_few_texts_and_plain_texts_are_refused_with_their_file(files):
    lines = files["keep"].read_text().splitlines()
    files["keep"].write_text("\n".join(lines[:3]))
    with pytest.raises(ValueError, match=r"plain.jsonl' has 3 examples, expected at least 16"):
        prepare(Config(**files))
    files["keep"].write_text("\n".join('{"text": "the cat is red ."}' for _ in range(20)))
    with pytest.raises(ValueError, match=r"plain.jsonl' holds plain texts"):
        prepare(Config(**files))


@pytest.mark.slow
def test_the_topic_goes_and_what_comes_back_is_told_from_what_was_never_taught(tmp_path, monkeypatch, unchecked_shapes):
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = Config(out=tmp_path / "out", seeds=1, max_length=64, answer_tokens=24)
    run(prepare(config), Console(quiet=True))
    report = read_report(tmp_path / "out" / "report.json")
    assert report["before"]["scores"]["topic"] > 0.8
    scores = {arm["name"]: arm["runs"][0]["scores"] for arm in report["arms"]}
    assert scores["oppose"]["topic"] <= 0.05
    assert all(each["topic"] < report["before"]["scores"]["topic"] - 0.4 for each in scores.values())
    assert all(each["keep"] > 0.9 for name, each in scores.items() if name != "oppose")  # which pays with it
    again = {each["name"]: each["runs"][0]["checkpoints"] for each in report["relearning"]}
    assert back_after(again[NEVER], "topic") is None
    assert again["answers"][-1]["scores"]["topic"] > again[NEVER][-1]["scores"]["topic"]
