"""A question in tokens: its places are those of the word, with a chat template around it or without."""

import pytest

from interptrain import tiny_world
from interptrain.recipes.question import Question

TEMPLATE = "{% for m in messages %}<q> {{ m.content }}{% endfor %}{% if add_generation_prompt %} <a> {% endif %}"


@pytest.fixture
def tokenizer():
    return tiny_world.load_tokenizer()


def read(tokenizer, *question):
    found = Question(*question).in_tokens(tokenizer)
    return found.text, [tokenizer.decode([found.ids[place]]) for place in found.places], found


def test_every_place_is_filled_by_the_word_and_found_again(tokenizer):
    text, words, found = read(tokenizer, "<q> is the {} like the dog ? <a>", "the {} is", "dog")
    assert text == "<q> is the dog like the dog ? <a> the dog is"
    assert words == ["dog", "dog"]
    assert found.places == (3, 10)  # not the dog that was there already


def test_a_word_of_several_tokens_has_all_of_them_as_places(tokenizer):
    assert read(tokenizer, "<q> find {} plus 1 . <a>", "", "1 2")[1] == ["1", "2"]


def test_a_chat_template_is_put_around_the_prompt_and_the_answer_begins_behind_it(tokenizer):
    tokenizer.chat_template = TEMPLATE
    text, words, found = read(tokenizer, "what is the {} ?", "the {} is", "dog")
    assert text == "<q> what is the dog ? <a> the dog is"
    assert words == ["dog", "dog"]
    assert tokenizer.decode(found.ids) == text


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (("what is the dog ?", "", "dog"), "no place that a direction could fill: write {} there"),
        (("what is the {} ?", "", " "), "the word that stands in the place is empty"),
    ],
)
def test_a_question_without_a_place_or_a_word_is_refused(question, message):
    with pytest.raises(ValueError, match=message):
        Question(*question)


def test_words_that_the_model_has_not_are_named(tokenizer):
    with pytest.raises(ValueError, match=r"does not know 'meaning', 'X', so the model cannot be asked that"):
        Question("what is the meaning of {} ?", "", "X").in_tokens(tokenizer)
