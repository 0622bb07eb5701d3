"""When a direction says something, and when it does not: the rule, and what a model must do to meet it."""

import pytest
import torch

from interptrain import tiny_world
from interptrain.concepts.bank import unit_rows
from interptrain.concepts.injection import Asked
from interptrain.concepts.self_explaining import MARGIN, Answer, SelfExplainer, Sweep, best_scale, verdict


def answer(**changed):
    scales = torch.zeros(2)
    said = {"words": (4, 6), "scale": 0, "entropy": scales, "similarity": scales, "advantage": 2.0, "uninjected": 3.0,
            "agreement": 1.0}  # fmt: skip
    return Answer(**(said | changed))


NULL, BARE = (0.3, -0.1, 1.9), (4, 7)


def test_an_answer_that_is_its_own_by_more_than_any_random_ones_says_something():
    assert verdict(answer(), NULL, BARE) == ""


@pytest.mark.parametrize(
    ("changed", "null", "why"),
    [
        ({"words": ()}, NULL, "before the first word"),
        ({"words": BARE}, NULL, "without the direction is answered the same"),
        ({"uninjected": MARGIN}, NULL, "without the direction makes the same answer as likely"),
        ({"advantage": MARGIN}, (-1.0,), "a random direction makes the same answer as likely"),
        ({}, (*NULL, 2.0), "of 4 random directions 1 have an answer that is as much their own"),
        ({"agreement": MARGIN}, NULL, "no longer says it"),
    ],
)
def test_every_part_of_the_rule_can_refuse_by_itself(changed, null, why):
    assert why in verdict(answer(**changed), null, BARE)


def test_the_scale_is_where_the_model_is_sure_and_like_the_direction():
    assert best_scale(torch.tensor([2.0, 1.0, 1.5]), torch.tensor([0.1, 0.25, 0.3])) == 1
    assert best_scale(torch.ones(3), torch.tensor([0.1, 0.3, 0.2])) == 1
    assert best_scale(torch.tensor([2.0, 1.0, 3.0]), torch.zeros(3)) == 1


@pytest.mark.parametrize(
    "wrong", [{"scales": (1.0,)}, {"scales": (2.0, 1.0)}, {"scales": (0.0, 1.0)}, {"tokens": 0}, {"controls": 0}]
)
def test_a_sweep_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        Sweep(**wrong)


@pytest.fixture(scope="module")
def world():
    return tiny_world.load_base(), tiny_world.load_tokenizer()


def explainer(world, text, word, sweep):
    model, tokenizer = world
    ids = torch.tensor(tokenizer(text)["input_ids"])
    places = tuple((ids == tokenizer.convert_tokens_to_ids(word)).nonzero()[:, 0].tolist())
    asked = Asked(ids, places, "blocks.0.hook_resid_pre")
    return SelfExplainer(model, asked, sweep, end=[tokenizer.eos_token_id], reads="blocks.3.hook_resid_post")


@pytest.fixture(scope="module")
def where(world):
    return explainer(world, "<q> where is the dog ? <a>", "dog", Sweep(tokens=8, controls=9))


def test_directions_of_a_known_word_say_that_word(world, where):
    model, tokenizer = world
    said = {}
    for word in ("whale", "owl", "crab", "parrot"):
        row = model.get_input_embeddings().weight.detach()[[tokenizer.convert_tokens_to_ids(word)]]
        found = where.explain(unit_rows(row)[0])
        if not where.verdict(found):
            said[word] = tokenizer.decode(list(found.words))
    assert len(said) >= 3
    assert all(word in text for word, text in said.items())


def test_the_word_that_stands_there_already_says_nothing(world, where):
    model, tokenizer = world
    row = model.get_input_embeddings().weight.detach()[[tokenizer.convert_tokens_to_ids("dog")]]
    assert "without the direction" in where.verdict(where.explain(unit_rows(row)[0]))


def test_random_directions_say_nothing_or_hardly_ever(where):
    rows = unit_rows(torch.randn(10, 128, generator=torch.Generator().manual_seed(77)))
    assert sum(not where.verdict(where.explain(row)) for row in rows) <= 3  # of ten, one or two in the mean at most


def test_a_control_that_is_asked_again_is_one_of_many(where):
    """Against the controls, itself among them, no direction has an answer that is its own."""
    assert where.verdict(where.explain(where.controls[0]))


def test_the_same_seed_gives_the_same_answers_and_the_model_stays_as_it_was(world):
    model = world[0]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sweep = Sweep(scales=(1.0, 2.0), tokens=4, controls=2)
    runs = [explainer(world, "<q> where is the dog ? <a>", "dog", sweep) for _ in range(2)]
    assert [each.words for each in runs[0].null] == [each.words for each in runs[1].null]
    assert [each.advantage for each in runs[0].null] == [each.advantage for each in runs[1].null]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
