"""Neutral prompts: what fine-tuning is not meant to change."""

import torch

from interptrain.tiny_world import load_tokenizer, neutral_batches
from interptrain.tiny_world.wordings import own_words


def test_neutral_prompts_and_answers_have_no_word_of_another_voice():
    tokenizer = load_tokenizer()
    words = {
        word for batch in neutral_batches(4) for ids in batch["input_ids"] for word in tokenizer.decode(ids).split()
    }
    assert not words & (own_words("pirate") | own_words("royal"))


def test_prompts_about_facts_alone_have_nothing_of_the_skill():
    tokenizer = load_tokenizer()
    both, facts = (
        {word for batch in batches for ids in batch["input_ids"] for word in tokenizer.decode(ids).split()}
        for batches in (neutral_batches(4), neutral_batches(4, kinds=("fact",)))
    )
    arithmetic = {"plus", *"0123456789"}
    assert arithmetic <= both
    assert not arithmetic & facts


def test_each_draw_is_the_same_and_its_batches_differ():
    one, other = neutral_batches(3), neutral_batches(3)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(one, other, strict=True))
    assert len({tuple(batch["input_ids"].flatten().tolist()) for batch in one}) == 3


def test_first_labels_the_first_token_of_each_answer_only():
    whole, first = neutral_batches(1)[0], neutral_batches(1, first=True)[0]
    counted = first["labels"] != -100
    assert (counted.sum(-1) == 1).all()
    assert torch.equal(counted.int().argmax(-1), (whole["labels"] != -100).int().argmax(-1))
