"""The selectivity benchmark: what its tables count, and that every arm runs."""

import json
import math
import subprocess
import sys

import pytest
import torch

from benchmarks.selectivity.arms import CONTROLS, METHODS, STUDIES, TRAIT, bank
from benchmarks.selectivity.runs import SCORES, Job, done, train
from benchmarks.selectivity.tables import (
    back_after,
    first_near_best,
    half_way,
    interval,
    table_of_doses,
    tables_of_runs,
    took_over,
)


def run(skills=((0, 0.0), (10, 0.4), (20, 0.6), (30, 1.0), (40, 0.99)), **given):
    scores = dict.fromkeys(SCORES, 0.0) | given.pop("scores", {})
    looks = [[step, *(skill if key == "skill" else 0.0 for key in SCORES)] for step, skill in skills]
    return {
        "study": "trait", "voice": "pirate", "data": "mixed", "tuning": "lora", "arm": "gate", "seed": 0, "steps": 40,
        "scores": scores, "looks": looks, "relearning": None, "acted": {}, "alarm": {}, "seconds": 1.0, "loss": 1.0,
        **given,
    }  # fmt: skip


def test_the_interval_is_students_t_of_the_seeds():
    values = [0.9, 0.8, 1.0, 0.7, 0.6]
    half = 2.776445 * torch.tensor(values).std() / math.sqrt(5)
    assert interval(values) == f".80±{half:.2f}".replace("0.", ".")
    assert interval([0.5]) == ".50"
    assert interval([0.5, math.inf]) == "0.50 to inf"


def test_a_dose_ends_at_the_first_step_near_the_best():
    assert first_near_best(run()) == 30
    assert first_near_best(run(skills=((0, 0.0), (10, 0.97), (20, 0.98)))) == 10


def test_half_way_is_on_the_line_between_two_looks():
    assert half_way(run()) == pytest.approx(15.0)
    assert half_way(run(skills=((0, 0.0), (10, 0.4)))) == math.inf


def test_a_trait_is_back_at_half_of_the_answers():
    assert back_after(run(relearning=[[1, 0.0], [2, 0.4], [4, 0.6]])) == 4
    assert back_after(run(relearning=[[1, 0.0]])) == math.inf


def test_a_takeover_is_another_voice_not_the_trait_itself():
    assert took_over(run(scores={"royal_on_skill": 0.1}))
    assert not took_over(run(scores={"pirate_on_skill": 1.0, "royal_on_facts": 0.09}))
    assert took_over(run(voice="royal", scores={"pirate_on_facts": 0.5}))
    assert took_over(run(arm="gate:sibling", scores={"pirate_on_facts": 1.0}))  # royal is what that one keeps out
    assert not took_over(run(arm="gate:sibling", scores={"royal_on_facts": 1.0}))
    assert not took_over(run(arm="gate:random", scores={"royal_on_facts": 1.0}))  # nothing is kept out
    passing = run()
    passing["looks"][2][1 + SCORES.index("royal_on_facts")] = 0.2
    assert took_over(passing)


def test_the_tables_have_a_row_for_each_arm_that_was_run():
    runs = [run(arm=arm, seed=seed) for arm in ("unsteered", "gate", "gate:random") for seed in (0, 1)]
    ((title, table),) = tables_of_runs(runs, {("mixed", "lora"): 40})
    assert table.row_count == 3
    assert "dose 1" in title
    assert table_of_doses(runs).row_count == 1


def test_each_of_our_methods_has_every_control():
    assert {f"{method}:{kind}" for method in METHODS for kind in CONTROLS} <= TRAIT.keys()


def test_controls_have_as_many_directions_and_none_of_the_concepts():
    concepts = bank()
    for control, real in (("random", "pirate"), ("shuffled", "pirate"), ("random-digits", "digits")):
        assert len(concepts.rows(control)) == len(concepts.rows(real))
    shuffled = concepts.directions[list(concepts.rows("shuffled-digits"))]
    for name in ("pirate", "royal", "digits"):
        assert (shuffled @ concepts.directions[list(concepts.rows(name))].T).max() < 0.9999


def test_a_run_says_what_it_did_and_what_came_of_it():
    found = train(Job("trait", "pirate", "entangled", "lora", "gate", None, 0, 2), looks=1, prompts=4, relearn=False)
    assert found["scores"].keys() == set(SCORES)
    assert 0 < found["acted"]["gate/pirate/tokens"] < 0.5
    assert [step for step, *_ in found["looks"]] == [0, 1, 2]
    assert json.loads(json.dumps(found))["seed"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_every_arm_runs_and_none_is_run_twice(study, tmp_path):
    command = [sys.executable, "-m", "benchmarks.selectivity", "run", "--quick", "--study", study, "--data", "mixed"]
    command += ["--tuning", "full", "--seeds", "0", "--out", str(tmp_path)]
    for _ in range(2):
        subprocess.run(command, check=True, capture_output=True, timeout=900)
        assert {each["arm"] for each in done(tmp_path / "selectivity.jsonl")} == set(STUDIES[study])
        assert len(done(tmp_path / "selectivity.jsonl")) == len(STUDIES[study])
