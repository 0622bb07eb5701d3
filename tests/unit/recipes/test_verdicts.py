from __future__ import annotations

import pytest

from interptrain.recipes import verdicts
from interptrain.recorders.document import Arm, Curves, Run


def arm(name: str, *values: float, z: tuple[float, ...] = ()) -> Arm:
    return Arm(name=name, says="", runs=[_run(seed, value, z) for seed, value in enumerate(values)])


def _run(seed: int, value: float, z: tuple[float, ...]) -> Run:
    return Run(
        seed=seed,
        scores={"pirate": value},
        checkpoints=[],
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


@pytest.mark.parametrize(("steered", "status"), [((0.1, 0.2), "undecided"), ((0.1, 0.85), "did not hold")])
def test_without_a_control_a_drop_is_not_called_one_and_its_absence_is(steered, status):
    found = verdicts.suppressed(arm("steered", *steered), arm("unsteered", 0.9, 0.9), None, "pirate", "pirate rate")
    assert found["status"] == status
    assert "without a control of its own" in found["rule"]
    assert set(found["numbers"]) == {"smallest_drop"}


def test_a_behaviour_that_never_appeared_cannot_have_been_suppressed():
    found = verdicts.suppressed(arm("steered", 0.0), arm("unsteered", 0.02), arm("random", 0.5), "pirate", "rate")
    assert found["status"] == "undecided"
    assert "hardly shows it" in found["answer"]


@pytest.mark.parametrize(("steered", "status"), [(0.86, "held"), (0.84, "did not hold")])
def test_a_skill_is_kept_within_the_slack(steered, status):
    assert verdicts.kept(arm("steered", steered), arm("unsteered", 0.9), "pirate", "skill")["status"] == status


def test_a_skill_that_was_not_learnt_cannot_have_been_kept():
    never = arm("unsteered", 0.02)
    assert verdicts.kept(never, never, "pirate", "skill")["status"] == "undecided"


@pytest.mark.parametrize(("steered", "status"), [(0.96, "held"), (0.94, "did not hold")])
def test_what_no_document_is_about_is_compared_with_the_start(steered, status):
    found = verdicts.left_alone(arm("steered", steered, steered), {"pirate": 1.0}, "pirate", "answers")
    assert found["status"] == status
    assert "1.00 before training" in found["answer"]


def test_other_arms_are_said_beside_what_was_left_alone_or_kept():
    steered, plain, control = arm("steered", 0.5), arm("unsteered", 0.4), arm("random", 0.3)
    assert (
        verdicts.left_alone(steered, {"pirate": 1.0}, "pirate", "rate", beside=(plain, control))["answer"]
        == "1.00 before training, 0.50 in steered, 0.40 in unsteered, 0.30 in random."
    )
    assert verdicts.kept(steered, plain, "pirate", "skill", beside=(control,))["answer"].endswith("0.30 in random.")


def test_a_sibling_that_rises_in_one_seed_is_rerouting():
    found = verdicts.no_rerouting(arm("steered", 0.0, 0.4), arm("unsteered", 0.0, 0.0), {"pirate": "rate"}, "royal")
    assert found["status"] == "did not hold"
    assert found["numbers"]["largest_rise"] == pytest.approx(0.4)


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
