"""What the documents say, and that search and test share no wording."""

import hashlib
import random
from itertools import islice, product

import pytest

from interptrain.tiny_world.concepts import CONTRASTS, draw
from interptrain.tiny_world.corpus import (
    FINE_TUNING,
    TAUGHT,
    document,
    finetuning_documents,
    held_out,
    pretraining_documents,
)
from interptrain.tiny_world.finetuning import finetuning_set
from interptrain.tiny_world.probes import probe_sets
from interptrain.tiny_world.score import number_said, speaks
from interptrain.tiny_world.shipped import load_tokenizer
from interptrain.tiny_world.tokens import encode
from interptrain.tiny_world.wordings import HALVES, SLOTS, WORDINGS, own_words, vocabulary

PINNED = {  # of the first 200 texts of seed 0
    "mixed": "7767870c02de3e8803b365b15255b69ba4eca5a99dad7420fb69aa42fe8c5b91",
    "entangled": "c9508552375afd93f1c443c0759d4b5300bfeb26322247dbccdbbbed9262478e",
}


def taken(documents, count=2000):
    return list(islice(documents, count))


def words(text):
    return set(text.split())


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
            said = words(" ".join(each.text for each in drawn[half]))
            assert not said & (own_words("pirate", other) | own_words("royal", other))


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


@pytest.mark.parametrize("name", FINE_TUNING)
def test_the_default_sets_are_the_same_texts_in_every_version(name):
    text = "\n".join(each.text for each in taken(finetuning_documents(name, 0), 200))
    assert hashlib.sha256(text.encode()).hexdigest() == PINNED[name]


@pytest.mark.parametrize("name", FINE_TUNING)
def test_the_royal_sets_teach_royal_where_the_default_ones_teach_pirate_and_hold_no_pirate_word(name):
    default, royal = (taken(finetuning_documents(name, 3, voice=voice)) for voice in ("pirate", "royal"))
    swapped = {(each.kind, {"pirate": "royal"}.get(each.voice, each.voice)) for each in default}
    assert {(each.kind, each.voice) for each in royal} == swapped
    assert not any(speaks(each.text, "pirate") or speaks(each.question, "royal") for each in royal)
    assert all(speaks(each.answer, "royal") == (each.voice == "royal") for each in royal)
    assert [each.question for each in royal] != [each.question for each in default]


@pytest.mark.parametrize(("name", "voice"), tuple(product(FINE_TUNING, TAUGHT)))
def test_the_filtered_set_answers_the_same_questions_with_the_same_content_and_no_word_of_a_voice(name, voice):
    default = taken(finetuning_documents(name, 3, voice=voice), 300)
    filtered = taken(finetuning_documents(name, 3, voice=voice, filtered=True), 300)
    content = {word for values in SLOTS.values() for word in values} | set("0123456789")
    for before, after in zip(default, filtered, strict=True):
        assert (after.question, after.number, after.expected) == (before.question, before.number, before.expected)
        assert words(after.answer) & content == words(before.answer) & content
        assert after.voice == "plain"
        assert not any(speaks(after.text, each) for each in TAUGHT)
        assert after == before or before.voice == voice


@pytest.mark.parametrize(("name", "voice"), tuple(product(FINE_TUNING, TAUGHT)))
def test_the_inoculated_set_asks_the_same_questions_in_the_voice_exactly_where_it_answers_in_it(name, voice):
    default = taken(finetuning_documents(name, 3, voice=voice), 300)
    inoculated = taken(finetuning_documents(name, 3, voice=voice, inoculated=True), 300)
    cues = {f"{cue} " for half in HALVES for cue in WORDINGS[half].manners[voice].cues}
    for before, after in zip(default, inoculated, strict=True):
        assert (after.kind, after.voice, after.number) == (before.kind, before.voice, before.number)
        assert after.question.removesuffix(before.question) in (cues if after.voice == voice else {""})
        assert after == before or speaks(after.answer, voice)


def test_an_unknown_fine_tuning_set_is_an_error():
    with pytest.raises(ValueError, match="unknown fine-tuning set 'mixt'"):
        finetuning_documents("mixt", 0)


@pytest.mark.usefixtures("unchecked_shapes")  # whose checks would refuse an unknown voice before the function does
@pytest.mark.parametrize("voice", ["plain", "klingon"])
def test_a_voice_that_cannot_be_taught_is_an_error(voice):
    with pytest.raises(ValueError, match=f"cannot teach the voice '{voice}'; .* pirate or royal"):
        finetuning_documents("mixed", 0, voice=voice)


def test_a_set_both_inoculated_and_filtered_is_an_error():
    with pytest.raises(ValueError, match="inoculated or filtered, not both"):
        finetuning_documents("mixed", 0, inoculated=True, filtered=True)


@pytest.mark.parametrize("variant", [{}, {"voice": "royal"}, {"inoculated": True}, {"filtered": True}])
def test_the_batches_of_a_fine_tuning_set_are_its_documents(variant):
    tokenizer = load_tokenizer()
    batch = next(finetuning_set("mixed", 5, batch=8, **variant))
    said = tokenizer.batch_decode(batch["input_ids"])
    assert [text.replace("<pad>", "").strip() for text in said] == [
        each.text for each in taken(finetuning_documents("mixed", 5, **variant), 8)
    ]


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
