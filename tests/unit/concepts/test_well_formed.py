"""Whether an answer is still language."""

import pytest
import torch

from interptrain.concepts.trials import Answers, Trial, best_trial, gain, recommended
from interptrain.concepts.well_formed import Bar, repetition, text_losses
from tests.helpers.models import WORDS, llama


def test_losses_are_those_of_each_text_alone_and_the_model_stays_in_its_mode():
    model, ids = llama().train(), torch.randint(1, WORDS, (3, 6))
    labels = ids.clone()
    labels[0, :3] = -100
    labels[2] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    found = text_losses(model, batch)
    assert model.training
    with torch.no_grad():
        for row in (0, 1):
            one = model.eval()(**{key: value[row : row + 1] for key, value in batch.items()}).loss
            assert float(found[row]) == pytest.approx(float(one), rel=1e-5)
    assert found[2] == torch.inf


def test_repetition_counts_pairs_that_were_said_before():
    assert repetition(["a", "b", "c", "d"]) == 0.0
    assert repetition(["yo"] * 11) == pytest.approx(0.9)
    assert repetition(["yo"]) == repetition([]) == 0.0


def test_the_bar_lets_most_of_its_reference_through_and_no_silence():
    losses = torch.linspace(1, 2, 101)
    bar = Bar.of(losses, torch.zeros(101))
    assert bar.loss == pytest.approx(1.95)
    assert bar.holds(1.9, 0.0, "arr")
    assert not bar.holds(2.0, 0.0, "arr")
    assert not bar.holds(1.0, 0.5, "yo yo yo")
    assert not bar.holds(1.0, 0.0, "  ")
    with pytest.raises(ValueError, match="no reference"):
        Bar.of(torch.zeros(0), torch.zeros(0))


PLAIN = Answers(0.1, 1.0, 0.1, 0.6, 0.0, ())


def trial(both, *, share=1.0, control=0.0, shown=1.0):
    return Trial("start", 1.0, 5.0, share, Answers(shown, 0.9, both, 1.0, 0.0, ()), (control, 0.0), control)


def test_the_gain_is_above_the_model_as_it_was_and_above_random_directions():
    assert gain(trial(0.9), PLAIN) == pytest.approx(0.8)
    assert gain(trial(0.9, control=0.6), PLAIN) == pytest.approx(0.3)
    assert gain(trial(0.0), PLAIN) < 0


def test_broken_text_with_the_right_words_gains_nothing():
    assert gain(trial(0.0, shown=1.0), PLAIN) <= 0


def test_of_trials_that_do_as_much_the_one_that_adds_least_is_the_best():
    trials = [trial(0.3, share=0.5), trial(0.97, share=1.0), trial(1.0, share=2.0)]
    assert best_trial(trials, PLAIN) is trials[1]
    assert best_trial([], PLAIN) is None


def test_what_gains_too_little_or_tells_nothing_apart_is_never_recommended():
    assert recommended({"a": 0.9, "b": 0.5}, {"a": 0.6, "b": 0.9}) == "b"
    assert recommended({"a": 0.19}, {"a": 1.0}) is None
    assert recommended({}, {}) is None
    assert recommended({"a": 0.9, "b": 0.87}, {"a": 0.95, "b": 0.99}) == "b"
