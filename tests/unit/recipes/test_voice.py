"""What a model says: long texts and prompts are met within what the model was made for."""

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from interptrain.recipes.examples import Example, encode
from interptrain.recipes.voice import Voice
from interptrain.tiny_world import load_tokenizer

POSITIONS = 16


@pytest.fixture(scope="module")
def voice():
    """A GPT-2 with random weights, whose table of positions has 16 rows."""
    tokenizer = load_tokenizer()
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": POSITIONS}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes, bos_token_id=0, eos_token_id=None))
    return Voice(model, tokenizer, POSITIONS)


def test_an_answer_ends_where_the_model_has_no_more_positions(voice):
    for length in (2, POSITIONS - 1):
        (answer,) = voice.answers([Example("the " * length, " river")])
        assert len(voice.tokenizer(answer, add_special_tokens=False)["input_ids"]) <= POSITIONS


def test_of_a_long_text_the_half_that_is_asked_leaves_an_answer(voice):
    text = Example("", "the river " * 50)
    (question,) = voice.questions([text])
    assert question.prompt + question.completion == text.completion
    (row,) = encode(voice.tokenizer, [question], POSITIONS)
    assert sum(label != -100 for label in row["labels"]) == POSITIONS // 2
    assert voice.mean_loss(voice.model, voice.own([question])) > 0
