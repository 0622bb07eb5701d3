"""`interptrain concepts explain`: directions of a known meaning say it, others say nothing, and the reason is given."""

import json

import pytest
import torch

from interptrain import ConceptBank, cli, tiny_world

EMBEDDINGS = "blocks.0.hook_resid_pre"
FEW = ["--controls", "5", "--tokens", "8", "--word", "dog", "--begin", ""]


def explain(*options):
    return cli.main(["concepts", "explain", "--model", "tiny-world", *map(str, options)])


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    """A bank whose concepts are words of the world: their embeddings."""
    model, tokenizer = tiny_world.load_base(), tiny_world.load_tokenizer()
    table = model.get_input_embeddings().weight.detach()
    words = {word: table[tokenizer.convert_tokens_to_ids(word)] for word in ("whale", "owl", "dog")}
    return ConceptBank.from_directions(words, hook=EMBEDDINGS).save(tmp_path_factory.mktemp("bank"))


def test_a_direction_of_a_known_meaning_is_given_it_and_the_word_that_stood_there_is_not(animals, tmp_path, capsys):
    file = tmp_path / "explained.json"
    where = ("--prompt", "<q> where is the {} ? <a>", "--at", EMBEDDINGS)
    assert explain("--concepts", animals, *where, *FEW, "--out", file) == 0
    document = json.loads(file.read_text())
    found = {entry["name"]: entry for entry in document["directions"]}
    assert "whale" in found["whale"]["says"]
    assert "owl" in found["owl"]["says"]
    assert found["dog"]["says"] is None
    assert "without the direction" in found["dog"]["why_not"]
    assert len(found["whale"]["null"]) == 5
    assert document["prompt"] == "<q> where is the dog ? <a>"
    printed = capsys.readouterr().out
    assert "the whale" in printed
    assert "2 of 3 say something" in printed


def test_concepts_that_the_model_cannot_put_in_words_say_nothing_and_why_is_said(tmp_path, capsys):
    """The world has no language for what a voice means; the rule is what keeps its answers from being labels."""
    bank, file = tiny_world.concept_bank().save(tmp_path / "bank"), tmp_path / "explained.json"
    what = ("--prompt", "<q> what is the {} ? <a>", "--only", "pirate", "royal", "arithmetic")
    assert explain("--concepts", bank, *what, *FEW, "--out", file) == 0
    for entry in json.loads(file.read_text())["directions"]:
        assert entry["says"] is None
        assert entry["why_not"]
        assert entry["answer"]  # it did say something, which is not believed
    assert "0 of 3 say something" in capsys.readouterr().out


def test_latents_of_an_sae_are_asked_for_by_number(tmp_path):
    file = tmp_path / "explained.json"
    what = ("--prompt", "<q> what is the {} ? <a>", "--latents", 3, 5, "--added")
    assert explain("--sae", "tiny-world", *what, *FEW, "--controls", 1, "--out", file) == 0
    assert [entry["name"] for entry in json.loads(file.read_text())["directions"]] == ["3", "5"]


def test_the_default_question_is_refused_by_a_model_that_has_not_its_words(capsys):
    assert "does not know 'What', 'meaning'" in refused(capsys, "--sae", "tiny-world", "--latents", 3)


def test_mistakes_are_refused_before_anything_is_asked(animals, tmp_path, capsys):
    there, narrow = tmp_path / "there.json", tmp_path / "narrow"
    there.write_text("mine")
    ConceptBank.from_directions({"a": torch.ones(8)}, hook=EMBEDDINGS).save(narrow)
    bank = ("--concepts", animals)
    ours = ("--prompt", "<q> where is the {} ? <a>", *FEW)
    mistakes = {
        "name either a bank (--concepts) or an SAE": (),
        "latents of an SAE are named by --sae and --latents together": ("--sae", "tiny-world"),
        "is there already": (*bank, *ours, "--out", there),
        "is no folder that can be written": (*bank, *ours, "--out", tmp_path / "no" / "x.json"),
        "no place that a direction could fill": (*bank, *FEW, "--prompt", "where?"),
        "unknown concept 'cow'": (*bank, *ours, "--only", "cow"),
        "expected two scales or more that rise from above 0": (*bank, *ours, "--scales", 2, 1),
        "'a' has a direction of width 8 but 'tiny-world' has a stream of 128": ("--concepts", narrow, *ours),
        "has 4 blocks": (*bank, *ours, "--at", "blocks.7.hook_resid_pre"),
    }
    for message, options in mistakes.items():
        assert message in refused(capsys, *options)
    assert there.read_text() == "mine"


def refused(capsys, *options):
    with pytest.raises(SystemExit) as ended:
        explain(*options)
    assert ended.value.code == 2
    return capsys.readouterr().err
