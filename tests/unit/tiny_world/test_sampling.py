"""Answers sampled at a temperature: the model's own distribution, repeatable, and greedy at zero."""

import pytest
import torch

from interptrain.tiny_world.score import answers, score
from interptrain.tiny_world.shipped import load_base, load_tokenizer

PROMPTS = ["<q> what colour is the cat ? <a>", "<q> what is 3 4 plus 5 ? <a>"]


@pytest.fixture(scope="module")
def world():
    return load_base(), load_tokenizer()


def test_a_temperature_near_zero_says_what_greedy_says(world):
    assert answers(*world, PROMPTS, temperature=1e-4) == answers(*world, PROMPTS)


def test_the_same_seed_samples_the_same_answers_and_another_seed_others(world):
    drawn = [answers(*world, PROMPTS * 10, temperature=1.0, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert len(set(drawn[0])) > 2


def test_sampling_leaves_torch_s_own_random_state(world):
    before = torch.get_rng_state()
    answers(*world, PROMPTS, temperature=1.0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_first_words_come_as_often_as_the_model_says(world, temperature):
    model, tokenizer = world
    with torch.no_grad():
        logits = model(**tokenizer(PROMPTS[:1], return_tensors="pt")).logits[0, -1]
    expected = (logits / temperature).softmax(-1)
    said = answers(model, tokenizer, PROMPTS[:1] * 2000, temperature=temperature)
    first = tokenizer([text.split()[0] if text else "<e>" for text in said], return_tensors="pt")["input_ids"][:, 0]
    found = torch.bincount(first, minlength=len(expected)) / len(first)
    assert expected.max() < 0.9
    assert (found - expected).abs().max() < 0.04  # 3.5 standard errors at 2000 draws


def test_the_scorer_hands_its_temperature_on(world):
    greedy, sampled = score(*world, prompts=20), score(*world, prompts=20, temperature=1.0)
    assert greedy == score(*world, prompts=20)
    assert greedy.samples != sampled.samples
    assert [question for question, _ in greedy.samples] == [question for question, _ in sampled.samples]


def test_a_negative_temperature_is_refused(world):
    with pytest.raises(ValueError, match="temperature must be 0"):
        answers(*world, PROMPTS, temperature=-1.0)
