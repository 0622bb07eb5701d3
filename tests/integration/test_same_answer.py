"""The same run under Lightning, Hugging Face and plain torch: the same steered weights, the same curves."""

import math

import pytest
import torch

from interptrain import gate, one_sided, scheduled, suppress
from tests.helpers.loops import LOOPS, largest_difference, run
from tests.helpers.models import llama, lora, two_concepts

# Hugging Face sums a batch's loss and divides, the others take the mean: the last digits of float32 differ, and Adam's
# first steps (the sign of a gradient, times the learning rate) make what is nearly zero into 1e-4 at most.
WEIGHTS, CURVES = 2e-5, 1e-3


@pytest.fixture
def bank():
    return two_concepts()


def assert_same_curves(one, other):
    assert one.curves.keys() == other.curves.keys()
    assert any(key.endswith("/write") for key in one.curves)
    for key, values in one.curves.items():
        for here, there in zip(values, other.curves[key], strict=True):
            assert (here is None) == (there is None), key
            scale = 10.0 if key.endswith("/z") else 1.0
            assert here is None or math.isclose(here, there, rel_tol=CURVES * scale, abs_tol=1e-5 * scale), (
                key,
                here,
                there,
            )


RULES = {
    "suppress": lambda: suppress("pirate"),
    "one-sided": lambda: one_sided(suppress("pirate")),
    "scheduled": lambda: scheduled(suppress("pirate"), lambda step: 1.0 if step % 2 else 0.5),
    "gate": lambda: gate("pirate", tokens=0.3),
}


@pytest.mark.parametrize("where", ["gradient", "update"])
@pytest.mark.parametrize("rule", RULES)
def test_three_loops_give_the_same_weights_and_curves(bank, rule, where, tmp_path):
    runs = {loop: run(loop, lora(llama()), tmp_path, bank, RULES[rule](), where=where) for loop in LOOPS}
    for loop in LOOPS:
        plain = run(loop, lora(llama()), tmp_path)
        assert largest_difference(runs[loop], plain) > 1e-3, f"{loop} was not steered"
        assert largest_difference(runs[loop], runs["torch"]) < WEIGHTS, loop
        assert_same_curves(runs[loop], runs["torch"])


@pytest.mark.parametrize("loop", LOOPS)
def test_observing_changes_no_weight_by_one_bit(bank, loop, tmp_path):
    settings = {"clip": 0.2, "accumulate": 2, "steps": 4}
    plain = run(loop, lora(llama()), tmp_path, **settings)
    observed = run(loop, lora(llama()), tmp_path, bank, **settings)
    assert largest_difference(plain, observed) == 0.0
    assert observed.curves["step"] == [0.0, 1.0, 2.0, 3.0]


def test_clip_norm_clips_what_is_steered_in_every_loop_as_lightning_does(bank, tmp_path):
    by_us = {loop: run(loop, lora(llama()), tmp_path, bank, suppress("pirate"), clip_norm=0.1) for loop in LOOPS}
    by_lightning = run("lightning", lora(llama()), tmp_path, bank, suppress("pirate"), clip=0.1)
    unclipped = run("torch", lora(llama()), tmp_path, bank, suppress("pirate"))
    assert largest_difference(unclipped, by_lightning) > WEIGHTS
    for loop in LOOPS:
        assert largest_difference(by_us[loop], by_lightning) < WEIGHTS, loop


def test_hugging_face_and_plain_loops_steer_what_is_clipped(bank, tmp_path):
    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=1.0)

    runs = {
        loop: run(loop, lora(llama()), tmp_path, bank, suppress("pirate"), clip=0.1, make_optimizer=sgd)
        for loop in LOOPS
    }
    assert largest_difference(runs["hugging face"], runs["torch"]) < WEIGHTS
    assert largest_difference(runs["lightning"], runs["torch"]) > 10 * WEIGHTS  # the order is the other one


def test_accumulated_batches_are_one_step_in_every_loop(bank, tmp_path):
    runs = {loop: run(loop, lora(llama()), tmp_path, bank, suppress("pirate"), accumulate=2, steps=3) for loop in LOOPS}
    assert largest_difference(runs["lightning"], runs["torch"]) < WEIGHTS
    assert len(runs["hugging face"].curves["step"]) == len(runs["torch"].curves["step"]) == 3
