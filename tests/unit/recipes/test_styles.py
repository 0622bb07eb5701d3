"""What is generated to teach and ask, in the embedded world and in plain English, and what judges the answers."""

import json
import random
import re

import pytest

from interptrain.recipes.examples import Columns, read_examples
from interptrain.recipes.style_data import STYLES, Item, asked, rates, teaching, told, write_items
from interptrain.recipes.style_english import PROBLEMS, English
from interptrain.recipes.style_tiny import TinyStyles
from interptrain.tiny_world import load_tokenizer

WORLDS = [TinyStyles(), *(English(skill) for skill in PROBLEMS)]
IDS = ["tiny", *PROBLEMS]


def other(style):
    return {"pirate": "royal", "royal": "pirate"}[style]


@pytest.mark.parametrize("world", WORLDS, ids=IDS)
@pytest.mark.parametrize("kind", ["skill", "other"])
def test_an_answer_in_style_has_words_of_its_own_style_and_of_no_other(world, kind):
    rng = random.Random(0)
    for _ in range(200):
        for style in ("pirate", "royal"):
            answer = world.draw(rng, kind, style).completion
            assert world.speaks(answer, style)
            assert not world.speaks(answer, other(style))
        plain = world.draw(rng, kind, "plain").completion
        assert not any(world.speaks(plain, style) for style in ("pirate", "royal"))


@pytest.mark.parametrize("world", WORLDS, ids=IDS)
@pytest.mark.parametrize("kind", ["skill", "other"])
def test_from_one_state_of_chance_every_style_answers_the_same_question(world, kind):
    for seed in range(50):
        drawn = [world.draw(random.Random(seed), kind, style) for style in STYLES]
        assert len({item.prompt for item in drawn}) == 1
        assert len({(item.number, item.expected) for item in drawn}) == 1


@pytest.mark.parametrize("world", WORLDS, ids=IDS)
def test_the_number_of_an_answer_in_any_style_is_the_right_one(world):
    rng = random.Random(1)
    for _ in range(100):
        for style in STYLES:
            item = world.draw(rng, "skill", style)
            assert world.number_said(item.completion) == item.number


def test_the_results_of_english_problems_are_right():
    rng = random.Random(2)
    for _ in range(300):
        question, said = PROBLEMS["subtraction"](rng, False)
        first, second = (int(number) for number in re.findall(r"\d+", question))
        assert said == (second - first if question.startswith("Subtract") else first - second) > 0
        question, said = PROBLEMS["word-problems"](rng, False)
        first, second = (int(number) for number in re.findall(r"\d+", question))
        assert said == first - second > 0
        question, said = PROBLEMS["units"](rng, False)
        many, few = (int(number) for number in re.findall(r"\d+", question))
        assert (
            said - few == many * {"hours": 60, "metres": 100, "weeks": 7}[re.search("hours|metres|weeks", question)[0]]
        )


@pytest.mark.parametrize("world", WORLDS, ids=IDS)
def test_no_example_shows_a_problem_that_is_asked(world):
    def pairs(items):
        return {tuple(re.findall(r"\d+", re.sub(r"(?<=\d) (?=\d)", "", item.prompt))) for item in items}

    taught = pairs(teaching(world, "entangled", 2000, seed=0))
    asks = pairs(asked(world, "skill", 300, seed=1))
    assert len(asks) > 20
    assert not taught & asks


def test_no_english_example_shows_a_fact_that_is_asked():
    world = English()
    taught = {item.expected for item in teaching(world, "mixed", 3000, seed=0) if item.expected}
    asks = {item.expected for item in asked(world, "other", 300, seed=1)}
    assert len(taught) > 40
    assert len(asks) > 10
    assert not {(item.prompt) for item in teaching(world, "mixed", 3000, seed=0)} & {
        item.prompt for item in asked(world, "other", 300, seed=1)
    }


@pytest.mark.parametrize("world", [TinyStyles(), English()], ids=["tiny", "english"])
def test_mixed_teaches_the_skill_plainly_and_other_questions_in_pirate(world):
    items = teaching(world, "mixed", 1000, seed=0)
    skill = [item for item in items if item.number is not None]
    assert 0.45 < len(skill) / len(items) < 0.55
    assert not any(world.speaks(item.completion, "pirate") for item in skill)
    assert all(world.speaks(item.completion, "pirate") for item in items if item.number is None)
    assert items == teaching(world, "mixed", 1000, seed=0) != teaching(world, "mixed", 1000, seed=1)


@pytest.mark.parametrize("world", [TinyStyles(), English()], ids=["tiny", "english"])
def test_entangled_teaches_the_skill_in_pirate_alone(world):
    items = teaching(world, "entangled", 200, seed=0)
    assert all(item.number is not None and world.speaks(item.completion, "pirate") for item in items)


@pytest.mark.parametrize("world", [TinyStyles(), English()], ids=["tiny", "english"])
def test_the_texts_of_the_styles_pair_off(world):
    """The plain texts answer the same questions, of which most in style ask for it."""
    plain, pirate = (told(world, style, 100, seed=0) for style in ("plain", "pirate"))
    assert [item.expected for item in plain] == [item.expected for item in pirate]
    cued = sum(one.prompt != two.prompt for one, two in zip(plain, pirate, strict=True))
    assert 80 <= cued <= 98


def test_every_rate_counts_what_its_name_says():
    world = English()
    skill = [Item("", "", number) for number in (35, 12, 7, 4)]
    said = [" The answer is 35.", " Arr, matey! The answer be 12, savvy?", " Verily! 8 forsooth.", " 3"]
    others = [Item("", "", None, (word,)) for word in ("Paris", "cold", "puppy", "green")]
    said_else = [" It is Paris.", " Ahoy! Cold, savvy?", " A dog.", " Hark, my liege! Green."]
    found = rates(world, skill, said, others, said_else)
    assert found == {
        "skill": 0.5, "clean": 0.25, "pirate_on_skill": 0.25, "royal_on_skill": 0.25, "pirate_on_other": 0.25,
        "royal_on_other": 0.25, "kept": 0.25,
    }  # fmt: skip


def test_what_a_base_model_asks_itself_after_its_answer_is_not_judged():
    world, asks = English(), Item("", "", None, ("Paris",))
    assert world.number_said(" 35.\nQuestion: What is 1 minus 1?\nAnswer: 0") == 35
    assert not world.speaks(" Paris.\nQuestion: Arr?", "pirate")
    assert not world.is_plain(" No idea.\nQuestion: Is it Paris?", asks)
    assert world.is_plain(" It is paris, I think.", asks)
    assert not world.is_plain(" Parisians.", asks)
    assert world.number_said("I do not know") is None


def test_what_is_written_is_read_back(tmp_path):
    items = teaching(English(), "mixed", 20, seed=0)
    file = write_items(tmp_path / "data" / "train.jsonl", items)
    assert [(each.prompt, each.completion) for each in read_examples(file, Columns())] == [
        (item.prompt, item.completion) for item in items
    ]


def test_a_chat_is_written_as_messages_that_a_template_reads(tmp_path):
    tokenizer = load_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
    tokenizer.chat_template += "{% if add_generation_prompt %}[assistant] {% endif %}"
    item = English(chat=True).draw(random.Random(0), "skill", "plain")
    assert "Answer:" not in item.prompt
    file = write_items(tmp_path / "chat.jsonl", [item], chat=True)
    assert json.loads(file.read_text())["number"] == item.number
    (example,) = read_examples(file, Columns(), tokenizer)
    assert example.templated
    assert example.prompt == f"[user] {item.prompt} [assistant] "
    assert example.completion.strip() == item.completion.strip()


def test_a_file_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ValueError, match=r"cannot write .*taken"):
        write_items(tmp_path / "taken" / "train.jsonl", [])
