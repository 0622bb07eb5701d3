"""A run that is killed at a random step and started again equals one that was not: weights, curves, steering state."""

import random

import pytest
from safetensors.torch import load_file

from interptrain.recorders.jsonl import read_curves
from tests.helpers.killed import CURVES, LOOPS, WEIGHTS, start

STEPS = 20


def whole_and_killed(loop, folder, seed):
    """The weights and curves of a run in one piece, and of one that was killed once."""
    found = []
    for name in ("whole", "killed"):
        (folder / name).mkdir()
    start(loop, folder / "whole", STEPS)
    chance = random.Random(seed)
    killed_after = chance.randrange(1, STEPS - 1), chance.uniform(0.0, 0.03)
    start(loop, folder / "killed", STEPS, kill_after=killed_after)
    assert not (folder / "killed" / WEIGHTS).exists(), "it had ended before it was killed"
    start(loop, folder / "killed", STEPS)
    for name in ("whole", "killed"):
        found.append((load_file(folder / name / WEIGHTS), read_curves(folder / name / CURVES)))
    return found


def check(loop, folder, seed):
    (weights, curves), (resumed, resumed_curves) = whole_and_killed(loop, folder, seed)
    assert weights.keys() == resumed.keys()
    for name, value in weights.items():
        assert value.equal(resumed[name]), name
    assert any(float(value.abs().max()) > 0 for name, value in weights.items() if "lora_B" in name)
    assert curves["step"] == [float(step) for step in range(STEPS)]
    assert curves == resumed_curves
    assert "concept/pirate/write/cumulative" in curves
    assert any(value is not None for value in curves["concept/pirate/realised/neutral"])


@pytest.mark.parametrize("loop", LOOPS)
def test_a_killed_run_goes_on_as_if_it_had_not_been(loop, tmp_path):
    check(loop, tmp_path, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 8))
@pytest.mark.parametrize("loop", LOOPS)
def test_many_killed_runs_go_on_as_if_they_had_not_been(loop, seed, tmp_path):
    check(loop, tmp_path, seed)
