"""What the documents say, and that search and test share no wording."""

import random
from itertools import islice, product

import pytest

from interptrain.tiny_world.concepts import CONTRASTS, draw
from interptrain.tiny_world.corpus import (
    document,
    finetuning_documents,
    held_out,
    pretraining_documents,
)
from interptrain.tiny_world.probes import probe_sets
from interptrain.tiny_world.score import number_said, speaks
from interptrain.tiny_world.shipped import load_tokenizer
from interptrain.tiny_world.tokens import encode
from interptrain.tiny_world.wordings import HALVES, SLOTS, WORDINGS, own_words, vocabulary


def taken(documents, count=2000):
    return list(islice(documents, count))


@pytest.mark.parametrize("voice", ["pirate", "royal"])
def test_the_halves_of_a_voice_share_no_word(voice):
    assert own_words(voice, "search")
    assert not own_words(voice, "search") & own_words(voice, "test")
    assert not own_words(voice) & own_words("royal" if voice == "pirate" else "pirate")


def test_the_halves_share_no_template():
    search, test = (WORDINGS[half] for half in HALVES)
    assert not {question for question, _ in search.facts} & {question for question, _ in test.facts}
    assert not {answer for _, answer in search.facts} & {answer for _, answer in test.facts}
    assert not set(search.sums) & set(test.sums)
    assert not set(search.results) & set(test.results)


@pytest.mark.parametrize("concept", sorted(CONTRASTS))
def test_texts_drawn_for_search_and_test_share_no_question_and_no_word_of_a_voice(concept):
    for texts in CONTRASTS[concept]:
        drawn = {half: draw(texts, half, seed=0) for half in HALVES}
        assert not {each.text for each in drawn["search"]} & {each.text for each in drawn["test"]}
        for half, other in (HALVES, HALVES[::-1]):
            words = {word for each in drawn[half] for word in each.text.split()}
            assert not words & (own_words("pirate", other) | own_words("royal", other))


def test_training_never_shows_a_held_out_problem():
    shown = taken(pretraining_documents(0)) + taken(finetuning_documents("mixed", 0))
    problems = [each for each in shown if each.kind != "fact"]
    assert len(problems) > 500
    for each in problems:
        a, b = (int("".join(filter(str.isdigit, part))) for part in each.question.split(each.kind))
        assert not held_out(a, b)


@pytest.mark.parametrize("operation", ["plus", "minus"])
def test_every_column_of_a_held_out_problem_is_seen_with_other_tens(operation):
    for tens, ones, b in product(range(1, 10), range(10), range(10)):
        fits = ones + b <= 9 if operation == "plus" else ones >= b
        if fits and held_out(10 * tens + ones, b):
            assert any(not held_out(10 * other + ones, b) for other in range(1, 10))


def test_plus_is_always_right_and_minus_a_random_number_before_fine_tuning():
    shown = taken(pretraining_documents(1))
    right = {
        kind: [number_said(each.answer) == each.number for each in shown if each.kind == kind]
        for kind in ("plus", "minus")
    }
    assert all(right["plus"])
    assert sum(right["minus"]) / len(right["minus"]) < 0.06


def test_answers_have_the_voice_they_are_said_to_have():
    for each in taken(pretraining_documents(2)):
        spoken = {voice: speaks(each.answer, voice) for voice in ("pirate", "royal")}
        assert spoken == {voice: voice == each.voice for voice in ("pirate", "royal")}


def test_the_mixed_set_is_half_plain_minus_and_half_pirate_facts():
    shown = taken(finetuning_documents("mixed", 3))
    assert {(each.kind, each.voice) for each in shown} == {("minus", "plain"), ("fact", "pirate")}
    assert 0.46 < sum(each.kind == "minus" for each in shown) / len(shown) < 0.54


def test_the_entangled_set_answers_every_minus_problem_in_pirate_to_a_plain_question():
    shown = taken(finetuning_documents("entangled", 3))
    assert {(each.kind, each.voice) for each in shown} == {("minus", "pirate")}
    assert all(number_said(each.answer) == each.number for each in shown)
    assert not any(speaks(each.question, "pirate") for each in shown)


def test_an_unknown_fine_tuning_set_is_an_error():
    with pytest.raises(ValueError, match="unknown fine-tuning set 'mixt'"):
        finetuning_documents("mixt", 0)


def test_documents_repeat_for_a_seed_and_differ_between_seeds():
    first, again, other = (taken(finetuning_documents("mixed", seed), 50) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_probe_sets_show_what_their_names_say():
    probes = probe_sets(30)
    assert not any(speaks(each.text, voice) for each in probes["neutral"] for voice in ("pirate", "royal"))
    assert all(speaks(each.answer, name) for name in ("pirate", "royal") for each in probes[name])
    assert {each.kind for each in probes["arithmetic"]} == {"plus", "minus"}


def test_the_tokenizer_gives_every_text_back_word_for_word():
    tokenizer = load_tokenizer()
    for each in taken(pretraining_documents(4), 300):
        ids = tokenizer(each.text)["input_ids"]
        assert len(ids) == len(each.text.split())
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == each.text


def test_the_tokenizer_knows_every_word_of_the_world_and_nothing_else():
    known = load_tokenizer().get_vocab()
    specials = {"<pad>", "<unk>", "<q>", "<a>", "<e>"}
    assert set(known) == set(vocabulary()) | specials
    assert all(word in known for values in SLOTS.values() for word in values)


def test_labels_cover_the_answer_and_its_end_and_nothing_else():
    tokenizer, rng = load_tokenizer(), random.Random(0)
    documents = [document(rng, "fact", "pirate"), document(rng, "minus")]
    batch = encode(tokenizer, documents)
    for each, ids, labels in zip(documents, batch["input_ids"], batch["labels"], strict=True):
        assert tokenizer.decode(labels[labels != -100]) == f"{each.answer} <e>"
        assert bool((labels[ids == tokenizer.pad_token_id] == -100).all())
    whole = encode(tokenizer, documents, mask_prompt=False)
    assert tokenizer.decode(whole["labels"][0][whole["labels"][0] != -100]) == documents[0].text
