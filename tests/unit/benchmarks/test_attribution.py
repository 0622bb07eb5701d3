"""What the benchmark of attribution counts: first words, sets of texts, and figures over seeds."""

from itertools import islice

import pytest
import torch

from benchmarks.attribution import TEXTS, TOKENIZER, _seen_before, averaged, less, marks, separates, texts
from interptrain import ConceptBank
from interptrain.tiny_world.corpus import finetuning_documents


def test_a_token_is_seen_before_only_in_its_own_text():
    marked = torch.tensor([0, 1, 1, 0, 1, 0, 1]).bool()
    text = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    assert (marked & ~_seen_before(marked, text)).tolist() == [False, True, False, False, True, False, True]


def test_in_the_crossed_set_the_kind_of_question_says_nothing_of_the_voice():
    drawn = texts("crossed", 0)
    assert len(drawn) == TEXTS
    shown = torch.tensor([each.voice == "pirate" for each in drawn])
    facts = torch.tensor([float(each.kind == "fact") for each in drawn])
    assert separates(facts, shown) == pytest.approx(0.5, abs=0.08)
    rare = [each.voice for each in texts("rare", 0)]
    assert 5 < rare.count("pirate") < 40
    assert {each.voice for each in texts("sibling", 0)} == {"royal", "pirate"}


def test_what_is_left_of_a_pool_is_all_but_what_is_dropped():
    pool = list(islice(finetuning_documents("mixed", 0), 8))
    shown = torch.tensor([each.voice == "pirate" for each in pool])
    arm = less(pool, shown, shown)
    assert [each.voice for each in arm.documents] == ["plain"] * int((~shown).sum())
    assert arm.known == {"dropped": pytest.approx(float(shown.float().mean())), "pirate left": 0.0}


def test_figures_over_seeds_are_their_mean_and_standard_deviation():
    found = averaged([{"a": {"b": 0.5}}, {"a": {"b": 1.0}}])
    assert found == {"a": {"b": {"mean": 0.75, "sd": pytest.approx(0.35355339), "runs": [0.5, 1.0]}}}


def test_a_figure_that_is_high_at_a_voice_s_words_alone_marks_them_and_prompts_do_not_count():
    said = ["<q> arr ? <a> arr matey , it be red", "<q> what ? <a> it is red"]
    ids = [torch.tensor(TOKENIZER(each, add_special_tokens=False)["input_ids"]) for each in said]
    figures = [torch.tensor([*[torch.nan] * 4, 3, 2, -1, -1, 1, -1]), torch.tensor([*[torch.nan] * 4, 0.5, -1, -1])]
    bank = ConceptBank.from_directions(
        {"pirate": torch.ones(4), "royal": -torch.ones(4)}, hook="blocks.0.hook_resid_post"
    )
    found = marks([torch.stack([each, -each], -1) for each in figures], ids, bank, "pirate", 0)
    assert found["pirate"] == {
        "all answers": 1.0, "its answers": 1.0, "own words above 0": 1.0, "others of its answers above 0": 0.0,
    }  # fmt: skip
    assert found["royal"]["all answers"] == 0.0
    assert 0 < found["shuffled"]["all answers"] < 1
