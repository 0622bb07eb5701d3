"""What ships does what its card says, and a rebuild does the same."""

import os
import random
from itertools import product
from pathlib import Path

import pytest
import torch

from interptrain.sites import HookPoint
from interptrain.tiny_world import OUTPUT_HOOK, concept_bank, load_base, load_card, load_sae, load_tokenizer, score
from interptrain.tiny_world.build import SCORED_PROMPTS, build, measure
from interptrain.tiny_world.concepts import find_concepts
from interptrain.tiny_world.corpus import Document, document
from interptrain.tiny_world.finetuning import finetuning_set
from interptrain.tiny_world.sae import HOOK
from interptrain.tiny_world.score import answers, is_plain_fact, number_said
from interptrain.tiny_world.shipped import DATA, SAE_FOLDERS, card_at

BYTES = 6_000_000
CONCEPTS = ("pirate", "royal", "arithmetic", "plus", "minus")
HOOKS = (HOOK, OUTPUT_HOOK)
MIN_HELD_OUT = {HOOK: 0.9, OUTPUT_HOOK: 0.8}  # plus is told least well behind the last layer: .84


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
@pytest.mark.parametrize("hook", HOOKS)
def test_the_search_finds_the_shipped_concepts_again(base, hook):
    found, alive = find_concepts(base, load_tokenizer(), load_sae(hook=hook), hook)
    card = card_at(load_card(), hook)
    assert (~alive).nonzero()[:, 0].tolist() == card["sae"]["dead"]
    for name, each in found.items():
        assert list(each.search.latents) == card["concepts"][name]["latents"]
        assert each.held_out.auc == pytest.approx(card["concepts"][name]["held_out"]["auc"], abs=0.01)


@pytest.mark.parametrize(("hook", "concept"), tuple(product(HOOKS, CONCEPTS)))
def test_every_group_separates_unseen_wordings_far_better_than_shuffled_labels_do(hook, concept):
    held_out = card_at(load_card(), hook)["concepts"][concept]["held_out"]
    assert held_out["auc"] > MIN_HELD_OUT[hook]
    assert abs(held_out["shuffled"] - 0.5) < 0.02
    assert held_out["auc"] > held_out["shuffled"] + 10 * held_out["shuffled_std"]


@pytest.mark.parametrize("hook", HOOKS)
def test_the_bank_names_the_concepts_and_keeps_the_sae_as_their_readout(hook):
    bank, sae, card = concept_bank(hook=hook), load_sae(hook=hook), card_at(load_card(), hook)
    assert bank.names == CONCEPTS
    assert bank.hook_points == (hook,) == (sae.cfg.metadata.hook_name,) == (card["sae"]["hook"],)
    assert [source["latent"] for source in bank.sources] == [
        latent for name in CONCEPTS for latent in card["concepts"][name]["latents"]
    ]
    readout = bank.readouts[hook]
    assert torch.equal(readout.weights["W_enc"], sae.W_enc)
    assert (~readout.alive).nonzero()[:, 0].tolist() == card["sae"]["dead"]


def test_without_a_hook_the_bank_and_the_sae_are_those_of_the_middle_layer():
    assert torch.equal(concept_bank().directions, concept_bank(hook=HOOK).directions)
    assert torch.equal(load_sae().W_dec, load_sae(hook=HOOK).W_dec)


@pytest.mark.parametrize("load", [load_sae, concept_bank])
def test_a_hook_without_an_sae_is_an_error_that_names_those_with_one(load):
    with pytest.raises(ValueError, match=rf"SAEs at {HOOK} and {OUTPUT_HOOK}, none at 'blocks.0.hook_resid_post'"):
        load(hook="blocks.0.hook_resid_post")


@pytest.mark.parametrize("folder", SAE_FOLDERS.values())
def test_an_sae_s_folder_holds_what_saelens_reads_and_nothing_else(folder):
    assert {path.name for path in (DATA / folder).iterdir()} == {"cfg.json", "sae_weights.safetensors"}


@pytest.mark.parametrize("voice", ["pirate", "royal"])
def test_behind_the_last_layer_a_voice_s_first_word_asks_for_its_latents_as_no_digit_does(base, voice):
    bank = concept_bank(hook=OUTPUT_HOOK)
    span = torch.linalg.qr(bank.directions[list(bank.rows(voice))].T)[0]
    batch = next(finetuning_set("entangled", voice=voice))
    caught: list[torch.Tensor] = []
    handle = HookPoint.parse(OUTPUT_HOOK).listen(base, caught.append)
    (gradient,) = torch.autograd.grad(base(**batch).loss, caught[0])
    handle.remove()
    labels, gradient = batch["labels"][:, 1:], gradient[:, :-1]
    share = (gradient @ span).square().sum(-1) / gradient.square().sum(-1)
    answer = labels != -100
    first = answer & (answer.cumsum(-1) == 1)
    digits = torch.isin(labels, torch.tensor(load_tokenizer().convert_tokens_to_ids(list("0123456789"))))
    assert int(first.sum()) == len(labels)
    assert share[first].min() > 2 * share[digits].max()


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
    for hook, bound in MIN_HELD_OUT.items():
        ours, theirs = card_at(rebuilt, hook), card_at(shipped, hook)
        explained = theirs["sae"]["explained_variance"]
        assert ours["sae"]["explained_variance"] == pytest.approx(explained, abs=0.02)
        assert all(ours["concepts"][name]["held_out"]["auc"] > bound for name in theirs["concepts"])
    assert measure(tmp_path)["base"] == rebuilt["base"]
