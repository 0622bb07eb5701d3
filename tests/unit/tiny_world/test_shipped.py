"""What ships does what its card says, and a rebuild does the same."""

import os
import random
from pathlib import Path

import pytest
import torch

from interptrain.sites import HookPoint
from interptrain.tiny_world import concept_bank, load_base, load_card, load_sae, load_tokenizer, score
from interptrain.tiny_world.build import SCORED_PROMPTS, build, measure
from interptrain.tiny_world.concepts import find_concepts
from interptrain.tiny_world.corpus import Document, document
from interptrain.tiny_world.sae import HOOK
from interptrain.tiny_world.score import answers, is_plain_fact, number_said
from interptrain.tiny_world.shipped import DATA

BYTES = 6_000_000


@pytest.fixture(scope="module")
def base():
    return load_base()


def test_the_shipped_base_scores_what_its_card_says(base):
    behaviour = score(base, load_tokenizer(), prompts=SCORED_PROMPTS)
    said = load_card()["base"]["scores"]
    assert set(said) == set(behaviour.measures())
    for name, value in said.items():
        assert getattr(behaviour, name) == pytest.approx(value, abs=0.02), name


def test_before_fine_tuning_the_base_adds_but_cannot_subtract_and_speaks_plainly():
    said = load_card()["base"]["scores"]
    assert said["accuracy"] > 0.99
    assert said["kept"] > 0.99
    assert said["skill"] < 0.06
    assert said["pirate_on_facts"] == said["royal_on_facts"] == said["pirate_on_skill"] == said["royal_on_skill"] == 0


def test_all_that_ships_fits_in_six_megabytes_and_is_data():
    files = [path for path in DATA.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < BYTES
    assert {path.suffix for path in files} == {".json", ".safetensors"}


@pytest.mark.slow
def test_the_search_finds_the_shipped_concepts_again(base):
    found, alive = find_concepts(base, load_tokenizer(), load_sae(), HOOK)
    card = load_card()
    assert (~alive).nonzero()[:, 0].tolist() == card["sae"]["dead"]
    for name, each in found.items():
        assert list(each.search.latents) == card["concepts"][name]["latents"]
        assert each.held_out.auc == pytest.approx(card["concepts"][name]["held_out"]["auc"], abs=0.01)


@pytest.mark.parametrize("concept", ["pirate", "royal", "arithmetic", "plus", "minus"])
def test_every_group_separates_unseen_wordings_far_better_than_shuffled_labels_do(concept):
    held_out = load_card()["concepts"][concept]["held_out"]
    assert held_out["auc"] > 0.9
    assert abs(held_out["shuffled"] - 0.5) < 0.02
    assert held_out["auc"] > held_out["shuffled"] + 10 * held_out["shuffled_std"]


def test_the_bank_names_the_concepts_and_keeps_the_sae_as_their_readout():
    bank, sae = concept_bank(), load_sae()
    assert bank.names == ("pirate", "royal", "arithmetic", "plus", "minus")
    assert bank.hook_points == (HOOK,) == (sae.cfg.metadata.hook_name,)
    readout = bank.readouts[HOOK]
    assert torch.equal(readout.weights["W_enc"], sae.W_enc)
    assert int((~readout.alive).sum()) == len(load_card()["sae"]["dead"])


@pytest.mark.parametrize("voice", ["pirate", "royal"])
def test_adding_a_voice_s_directions_makes_the_base_speak_in_it_and_in_no_other(base, voice):
    bank = concept_bank()
    direction = bank.directions[list(bank.rows(voice))].sum(0)
    step = 40 * direction / direction.norm()  # activations have norm 40 there
    module, _ = HookPoint.parse(HOOK).locate(base)
    handle = module.register_forward_hook(lambda _m, _i, out: out + step)
    behaviour = score(base, load_tokenizer(), prompts=50)
    handle.remove()
    said = {"pirate": behaviour.pirate_on_facts, "royal": behaviour.royal_on_facts}
    assert said.pop(voice) > 0.8
    assert set(said.values()) == {0.0}


def test_greedy_answers_do_not_depend_on_the_other_prompts_of_the_batch(base):
    tokenizer = load_tokenizer()
    prompts = [
        "<q> what is 4 2 plus 3 ? <a>",
        "<q> ahoy , which animal sleeps in the cave ? <a>",
        "<q> find 1 1 plus 1 . <a>",
    ]
    together = answers(base, tokenizer, prompts)
    assert together == [answers(base, tokenizer, [prompt])[0] for prompt in prompts]
    assert number_said(together[0]) == 45


def test_scoring_leaves_the_model_in_the_mode_it_was_in():
    model = load_base().train()
    score(model, load_tokenizer(), prompts=2)
    assert model.training


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("the owl is blue .", True),
        ("well , this owl is golden , as you see !", True),
        ("the cat is blue .", False),  # another animal
        ("the owl is blue", False),
        ("the owl is in the cave .", False),
        ("the owl is 4 2 .", False),
        ("ahoy , the owl be blue , savvy !", False),
        ("hark , the owl beeth blue , thou knowest .", False),
        ("the owl is blue , savvy !", False),
        ("the owl is blue . the owl is blue .", False),
        ("", False),
    ],
)
def test_kept_takes_only_a_well_formed_plain_answer_about_what_was_asked(answer, plain):
    asked = Document("", "", "fact", "plain", expected=("the owl is {colour}", "this owl is {colour}"))
    assert is_plain_fact(answer, asked) is plain


def test_every_plain_answer_of_the_corpus_would_be_kept():
    rng = random.Random(0)
    for each in (document(rng, "fact") for _ in range(500)):
        assert is_plain_fact(each.answer, each), each.text


@pytest.mark.parametrize(
    ("answer", "number"),
    [("it is 4 2 .", 42), ("ahoy , 7 , 8 !", 7), ("the cat is red .", None), ("that is 1 0 5 .", 105)],
)
def test_the_number_of_an_answer_is_its_first_run_of_digits(answer, number):
    assert number_said(answer) == number


def test_a_folder_that_cannot_be_written_is_an_error_before_training(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ValueError, match="cannot write the tiny world to"):
        build(tmp_path / "taken" / "world")


@pytest.mark.slow
def test_a_rebuild_scores_what_the_shipped_base_scores(tmp_path):
    torch.set_num_threads(os.cpu_count() or 1)
    build(Path(tmp_path))
    torch.set_num_threads(1)
    rebuilt, shipped = load_card(tmp_path), load_card()
    for name, value in shipped["base"]["scores"].items():
        assert rebuilt["base"]["scores"][name] == pytest.approx(value, abs=0.02), name
    assert rebuilt["sae"]["explained_variance"] == pytest.approx(shipped["sae"]["explained_variance"], abs=0.02)
    for name in shipped["concepts"]:
        assert rebuilt["concepts"][name]["held_out"]["auc"] > 0.9
    assert measure(tmp_path)["base"] == rebuilt["base"]
