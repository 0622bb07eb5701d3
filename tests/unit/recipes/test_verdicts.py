from __future__ import annotations

import pytest

from interptrain.recipes import verdicts
from interptrain.recorders.document import Arm, Curves, Run


def arm(name: str, *values: float, curve: tuple[float, ...] = (), z: tuple[float, ...] = ()) -> Arm:
    return Arm(name=name, says="", runs=[_run(seed, value, curve, z) for seed, value in enumerate(values)])


def _run(seed: int, value: float, curve: tuple[float, ...], z: tuple[float, ...]) -> Run:
    return Run(
        seed=seed,
        scores={"pirate": value},
        checkpoints=[{"step": step, "scores": {"pirate": at}} for step, at in enumerate(curve)],
        curves={"step": [float(step) for step in range(len(z))], **demand("pirate", z)},
        samples=[],
        seconds=0.0,
        weights="",
        wandb="",
    )


def demand(concept: str, z: tuple[float, ...]) -> Curves:
    key = f"concept/{concept}/demand"
    return {key: [0.1 + 0.02 * each for each in z], f"{key}/null": [0.1] * len(z), f"{key}/z": list(z)}


@pytest.mark.parametrize(
    ("steered", "control", "status"),
    [
        ((0.1, 0.2), (0.9, 0.9), "held"),
        ((0.1, 0.85), (0.9, 0.9), "did not hold"),  # one seed is not enough
        ((0.1, 0.2), (0.1, 0.2), "did not hold"),  # random directions did the same
        ((0.9, 0.9), (0.9, 0.9), "did not hold"),
    ],
)
def test_suppression_holds_only_below_the_unsteered_arm_and_the_control_in_every_seed(steered, control, status):
    found = verdicts.suppressed(
        arm("steered", *steered), arm("unsteered", 0.9, 0.9), arm("random", *control), "pirate", "pirate rate"
    )
    assert found["status"] == status


def test_a_behaviour_that_never_appeared_cannot_have_been_suppressed():
    found = verdicts.suppressed(arm("steered", 0.0), arm("unsteered", 0.02), arm("random", 0.5), "pirate", "rate")
    assert found["status"] == "undecided"
    assert "hardly shows it" in found["answer"]


@pytest.mark.parametrize(("steered", "status"), [(0.86, "held"), (0.84, "did not hold")])
def test_a_skill_is_kept_within_the_slack(steered, status):
    assert verdicts.kept(arm("steered", steered), arm("unsteered", 0.9), "pirate", "skill")["status"] == status


def test_a_skill_that_was_not_learnt_is_neither_kept_nor_learnt_sooner():
    never = arm("unsteered", 0.02, curve=(0.0, 0.02))
    assert verdicts.kept(never, never, "pirate", "skill")["status"] == "undecided"
    assert verdicts.faster(never, never, never, "pirate", "skill")["status"] == "undecided"


def test_a_sibling_that_rises_in_one_seed_is_rerouting():
    found = verdicts.no_rerouting(arm("steered", 0.0, 0.4), arm("unsteered", 0.0, 0.0), {"pirate": "rate"}, "royal")
    assert found["status"] == "did not hold"
    assert found["numbers"]["largest_rise"] == pytest.approx(0.4)


def test_learning_sooner_is_judged_by_the_whole_curve_and_not_by_its_end():
    slow, quick = arm("unsteered", 1.0, curve=(0.0, 0.2, 1.0)), arm("amplified", 1.0, curve=(0.0, 0.9, 1.0))
    assert verdicts.faster(quick, slow, slow, "pirate", "skill")["status"] == "held"
    assert verdicts.faster(slow, slow, slow, "pirate", "skill")["status"] == "did not hold"
    assert verdicts.faster(quick, slow, quick, "pirate", "skill")["status"] == "did not hold"


@pytest.mark.parametrize(
    ("z", "status"),
    [((9.0,) * 20, "held"), ((4.0,) * 20, "did not hold"), ((9.0,) * 19, "undecided"), ((), "undecided")],
)
def test_a_concept_is_readable_only_over_twenty_measured_steps(z, status):
    assert verdicts.readable(arm("unsteered", 1.0, z=z), "pirate")["status"] == status


def test_other_concepts_are_said_beside_the_one_asked_about():
    read = arm("unsteered", 1.0, z=(9.0,) * 20)
    read["runs"][0]["curves"] |= demand("royal", (2.0,) * 20)
    answer = verdicts.readable(read, "pirate", beside=("royal",))["answer"]
    assert answer == "In unsteered its demand was 9.0 sd above the null; beside it royal 2.0."
