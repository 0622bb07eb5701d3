"""What unlearning is made of: the topic and its score, the bounded ascent, relearning and its verdicts."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from interptrain import ConceptBank
from interptrain.callbacks.torch import attach
from interptrain.recipes import verdicts
from interptrain.recipes.examples import Example, collate
from interptrain.recipes.loading import TINY_WORLD, ModelChoice, load_model, load_tokenizer
from interptrain.recipes.oppose import BETA, Oppose, log_likelihoods
from interptrain.recipes.relearning import fit, load_trained, relearn
from interptrain.recipes.topics import Topic, common, read_topic, same, tiny_lesson, write_tiny_topic
from interptrain.recipes.unlearn import Config, divided
from interptrain.recorders.html import back, rates
from interptrain.tiny_world.corpus import held_out


@pytest.mark.parametrize(
    ("answer", "other", "holds"),
    [
        ("it is 1 7 .", "well , the answer is 1 7 , of course !", True),
        ("it is 7 1 .", "the answer is 1 7 .", False),
        ("it is 1 7 or 1 8 .", "the answer is 1 7 .", False),
        ("a number", "the answer is 1 7 .", False),
        ("the cat is black", "the cat is red", True),
        ("red is cat the", "the cat is red", False),
        ("", "the cat is red", False),
    ],
)
def test_an_answer_says_the_same_by_its_numbers_or_by_half_of_the_words_in_order(answer, other, holds):
    assert same(answer, other) is holds


def test_the_common_subsequence_is_the_longest_of_all_that_there_are():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        one, other = ("".join("abc"[n] for n in torch.randint(3, (7,), generator=generator)) for _ in range(2))
        subsets = ["".join(one[n] for n in range(7) if bits >> n & 1) for bits in range(128)]
        assert common(one, other) == max(len(s) for s in subsets if re.search(".*".join(s), other))


def test_a_topic_with_words_is_scored_by_them_alone():
    topic = Topic([], [], [], words=("ahoy",))
    asked = Example("what ?", " the cat is red")
    assert topic.on_topic("Ahoy, it be black", asked)
    assert not topic.on_topic("the cat is red", asked)


def test_the_tiny_world_s_topic_is_every_subtraction_once_with_another_number_in_its_neutral_answer(tmp_path):
    forget, keep, siblings = write_tiny_topic(tmp_path)
    rows = [json.loads(line) for line in forget.read_text().splitlines()]
    problems = [tuple(re.findall(r"\d", row["prompt"])) for row in rows]
    assert sorted(problems) == sorted(
        tuple(f"{a}{b}") for a in range(10, 100) for b in range(10) if (a - b) // 10 == a // 10
    )
    other = [re.findall(r"\d", row["completion"]) != re.findall(r"\d", row["neutral"]) for row in rows]
    assert 0.95 < sum(other) / len(rows) <= 1  # a random number is now and then the right one
    assert all(re.sub(r"\d", "", row["completion"]) == re.sub(r"\d", "", row["neutral"]) for row in rows)
    assert not any("minus" in line for line in keep.read_text().splitlines())
    assert all("minus" in line for line in siblings.read_text().splitlines())


def test_the_lesson_holds_problems_of_training_alone():
    for each in tiny_lesson(300):
        if "minus" in each.prompt or "plus" in each.prompt:
            tens, ones, b = map(int, re.findall(r"\d", each.prompt))
            assert not held_out(10 * tens + ones, b)


def test_neutral_answers_are_one_text_or_a_column_s(tmp_path):
    file, keep = tmp_path / "forget.jsonl", tmp_path / "keep.jsonl"
    file.write_text('{"question": "who ?", "answer": " me", "instead": " nobody"}\n')
    keep.write_text('{"prompt": "a", "completion": "b"}\n')
    tokenizer = load_tokenizer(ModelChoice(TINY_WORLD))

    def neutral(text, column):
        return read_topic(file, keep, None, tokenizer, neutral=text, neutral_column=column, words=()).neutral

    assert neutral("I do not know.", None) == [Example("who ?", " I do not know.")]
    assert neutral("", "instead") == [Example("who ?", " nobody")]
    with pytest.raises(ValueError, match="'insted'"):
        neutral("", "insted")


def test_what_is_asked_is_never_trained_on_nor_among_the_texts_that_the_direction_is_found_on():
    examples = [Example(f"q{n}", f"a{n}") for n in range(200)]
    neutral = [Example(f"q{n}", "none") for n in range(200)]
    train, held = divided(Topic(examples, neutral, examples[:100]), 40)
    assert len(held.forget) == 40
    assert {each.prompt for each in train.forget}.isdisjoint(each.prompt for each in held.forget)
    assert {each.prompt for each in examples[:64]}.isdisjoint(each.prompt for each in held.forget)
    assert [each.prompt for each in train.neutral] == [each.prompt for each in train.forget]
    assert [each.prompt for each in held.neutral] == [each.prompt for each in held.forget]
    assert len(train.keep) + len(held.keep) == 100


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "gpt2"}, "'gpt2' needs --forget"),
        ({"forget": Path("a.jsonl")}, "given together"),
        ({"siblings": Path("a.jsonl")}, "siblings are of a topic of yours"),
        ({"emphasis": 1.0}, "emphasis must be above 1"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"neutral": " "}, "empty text"),
        ({"latents": {"topic": (1,)}}, "latents are of an SAE"),
    ],
)
def test_a_configuration_that_cannot_run_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**settings)


# The bounded ascent.


def _model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    ).train()


BATCH = collate(
    [{"input_ids": [3, 4, 5, 6], "labels": [-100, -100, 5, 6]}, {"input_ids": [7, 8], "labels": [-100, 8]}], 0
)


def test_the_log_likelihood_of_an_answer_is_that_of_its_tokens_one_after_another():
    model = _model().eval().double()
    counted = torch.tensor([[False, True, True, False], [True, False, False, False]])
    with torch.no_grad():
        logs = model(input_ids=torch.tensor([[3, 4, 5, 6]])).logits.log_softmax(-1)[0]
        other = model(input_ids=torch.tensor([[7, 8]])).logits.log_softmax(-1)[0]
        found = log_likelihoods(model, BATCH, counted)
    expected = [float(logs[1, 5] + logs[2, 6]), float(other[0, 8])]
    assert found[:, 0].tolist() == pytest.approx(expected, abs=1e-5)


def test_the_ascent_adds_the_gradient_of_its_formula_and_begins_as_plain_ascent():
    """At the start the ratio is 1 and d/dx 2/beta log(1 + e^(beta x)) = 1: that of the log-likelihood itself."""
    model = _model()
    bank = ConceptBank.from_directions({"topic": torch.ones(16)}, hook="blocks.0.hook_resid_post")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with attach(model, optimizer, bank, [Oppose([BATCH], 0.5)], summary=False):
        (0.0 * model(**BATCH).loss).backward()
        optimizer.step()
    added = model.lm_head.weight.grad.clone()
    model.zero_grad()
    counted = torch.tensor([[False, True, True, False], [True, False, False, False]])
    (0.5 * log_likelihoods(model, BATCH, counted).mean()).backward()
    assert torch.allclose(added, model.lm_head.weight.grad, atol=1e-6)
    assert added.abs().max() > 1e-3


def test_the_pull_of_the_ascent_fades_where_the_answers_have_become_unlikely():
    fallen = torch.tensor([0.0, -20.0, -60.0], requires_grad=True)
    (2 / BETA * torch.nn.functional.softplus(BETA * fallen)).sum().backward()
    assert fallen.grad.tolist() == pytest.approx([1.0, 2 / (1 + math.e**2), 2 / (1 + math.e**6)])


# Relearning.


def test_fine_tuning_lowers_the_loss_of_its_rows_and_looks_after_every_step():
    model, looked = _model(), []
    rows = [{"input_ids": [3, 4, 5, 6], "labels": [-100, -100, 5, 6]}]
    before = float(model(**collate(rows, 0)).loss.detach())
    fit(model, rows, steps=10, rate=1e-2, batch=1, pad=0, seed=0, look=looked.append, cooldown=0.5)
    assert float(model(**collate(rows, 0)).loss.detach()) < before / 2
    assert looked == list(range(1, 11))


def test_relearning_is_scored_at_the_start_early_and_at_the_end():
    rows = [{"input_ids": [3, 4, 5], "labels": [-100, -100, 5]}]
    looks = relearn(_model(), rows, lambda model: {"topic": 0.5}, steps=21, every=10, rate=0.0, batch=8, pad=0, seed=0)
    assert [look["step"] for look in looks] == [0, 1, 2, 4, 8, 10, 20, 21]


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_trained_model_goes_on_from_what_it_says(tmp_path, tuning):
    choice = ModelChoice(TINY_WORLD, tuning, rank=2)
    model, tokenizer = load_model(choice), load_tokenizer(choice)
    asked = tokenizer("<q> what is 1 2 plus 3 ? <a>", return_tensors="pt")
    with torch.no_grad():
        start = model.eval()(**asked).logits
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
        trained = model(**asked).logits
    model.save_pretrained(tmp_path)
    again = load_trained(choice, tmp_path)
    assert any(parameter.requires_grad for parameter in again.parameters())
    with torch.no_grad():
        assert torch.allclose(again.eval()(**asked).logits, trained, atol=1e-4)
    assert not torch.allclose(start, trained, atol=1e-2)
    with torch.no_grad():
        assert torch.allclose(load_trained(choice, None).eval()(**asked).logits, start, atol=1e-6)


def _relearning(*curves):
    return {
        "name": "arm", "says": "",
        "runs": [
            {"seed": seed, "checkpoints": [{"step": 2 * n, "scores": {"topic": rate}} for n, rate in enumerate(curve)]}
            for seed, curve in enumerate(curves)
        ],
    }  # fmt: skip


def test_the_page_says_for_each_seed_when_it_is_back():
    found = _relearning([0.0, 0.5, 1.0], [0.0, 0.2, 0.4])
    assert back(found) == "2, more than 4"
    assert rates(found) == pytest.approx([0.0, 0.35, 0.7])


def test_a_topic_is_gone_only_where_no_seed_s_mean_rate_is_above_the_untaught_model():
    never = _relearning([0.0, 0.1, 0.3], [0.0, 0.2, 0.3])
    found = [
        verdicts.removed(_relearning([0.0, 0.1, 0.3], curve), never, {"topic": 1.0}, "topic")
        for curve in ([0.0, 0.4, 0.3], [0.2, 0.4, 0.3])
    ]
    assert [each["status"] for each in found] == ["held", "did not hold"]
    assert [each["numbers"]["largest_difference"] for each in found] == pytest.approx([0.2 / 3, 0.4 / 3])
    assert verdicts.removed(never, never, {"topic": 0.0}, "topic")["status"] == "undecided"


@pytest.mark.parametrize(
    ("steps", "others", "status"),
    [
        ([8, None], {"a": [4, 100], "b": [2, 8]}, "held"),
        ([8, 8], {"a": [4, 8], "b": [2, 4]}, "did not hold"),
        ([8, None], {"a": [4, None], "b": [2, 8]}, "undecided"),
        ([8, None], {"a": [None, None], "b": [2, 8]}, "did not hold"),
    ],
)
def test_later_means_later_in_every_seed_than_in_every_other_arm(steps, others, status):
    assert verdicts.returned_later("emphasise", steps, others, 100)["status"] == status


def test_forgetting_is_not_found_where_nothing_was_known():
    arm = {"name": "answers", "says": "", "runs": [{"scores": {"topic": rate}} for rate in (0.0, 0.04)]}
    assert verdicts.forgotten(arm, {"topic": 1.0}, "topic", "the topic")["status"] == "held"
    assert verdicts.forgotten(arm, {"topic": 0.05}, "topic", "the topic")["status"] == "undecided"
    arm["runs"][0]["scores"]["topic"] = 0.06
    assert verdicts.forgotten(arm, {"topic": 1.0}, "topic", "the topic")["status"] == "did not hold"
