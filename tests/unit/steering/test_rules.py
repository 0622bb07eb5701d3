import pytest
import torch

from interptrain import amplify, chain, keep_only, observe, one_sided, scheduled, suppress
from interptrain.steering.rules import reads_coefficients

TOWARD = {"pirate": torch.tensor(2.0), "sums": torch.tensor(-1.0), "royal": torch.tensor(0.5)}


def test_observing_asks_for_nothing():
    assert observe()(TOWARD, 0) == {}


def test_suppress_removes_unless_told_how_much():
    assert suppress("pirate")(TOWARD, 0) == {"pirate": 0.0}
    assert suppress("pirate", 0.5)(TOWARD, 0) == {"pirate": 0.5}


@pytest.mark.parametrize("gain", [1.0, 3.0, float("nan"), float("inf")])
def test_suppress_refuses_gains_that_do_not_lower(gain):
    with pytest.raises(ValueError, match="suppress needs a finite gain below 1"):
        suppress("pirate", gain)


@pytest.mark.parametrize("gain", [1.0, 0.0, float("nan"), float("inf")])
def test_amplify_refuses_gains_that_do_not_raise(gain):
    with pytest.raises(ValueError, match="amplify needs a finite gain above 1"):
        amplify("pirate", gain)


def test_keep_only_names_every_concept_so_that_the_kept_one_is_protected():
    assert keep_only("sums")(TOWARD, 0) == {"pirate": 0.0, "sums": 1.0, "royal": 0.0}


def test_keep_only_refuses_what_the_bank_has_not():
    with pytest.raises(ValueError, match=r"keep_only names \['parrot'\], the bank has pirate, sums, royal"):
        keep_only("parrot")(TOWARD, 0)
    with pytest.raises(ValueError, match="at least one"):
        keep_only()


def test_a_schedule_moves_the_gain_between_one_and_the_rule():
    rule = scheduled(suppress("pirate", -1.0), lambda step: step / 10)
    assert [rule(TOWARD, step)["pirate"] for step in (0, 5, 10)] == [1.0, 0.0, -1.0]


def test_one_sided_acts_only_toward_the_concept():
    rule = one_sided(chain([suppress("pirate"), suppress("sums")]))
    gains = rule(TOWARD, 0)
    assert float(gains["pirate"]) == 0.0
    assert float(gains["sums"]) == 1.0


def test_chained_gains_multiply_and_a_lambda_is_a_legal_rule():
    rule = chain([suppress("pirate", 0.5), lambda coefficients, step: {"pirate": 3.0, "sums": float(step)}])
    assert rule(TOWARD, 4) == {"pirate": 1.5, "sums": 4.0}


def test_chain_refuses_what_cannot_be_called():
    unchecked = chain.__wrapped__  # without the test run's own check of annotations
    with pytest.raises(TypeError, match="found str"):
        unchecked(["suppress"])


def test_only_rules_that_look_at_coefficients_pay_for_them():
    plain = chain([suppress("pirate"), scheduled(amplify("sums", 2.0), lambda step: 1.0), keep_only("sums")])
    assert not reads_coefficients(plain)
    assert reads_coefficients(chain([plain, one_sided(suppress("pirate"))]))
    assert reads_coefficients(lambda coefficients, step: {})
