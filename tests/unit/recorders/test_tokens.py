"""tokens.json and its page: texts as they stand, figures beside each word."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from interptrain import ConceptBank
from interptrain.meters.kept_examples import KeptExample
from interptrain.recorders.tokens import TokenFile, pieces, read_tokens, write_tokens
from tests.unit.recorders.test_html import HOSTILE, Page

BANK = ConceptBank.from_directions(
    {"pirate": torch.eye(4)[0], "royal": torch.eye(4)[1]}, hook="blocks.1.hook_resid_post"
)
TEXTS = ("arr matey, naïve façade 海賊旗 🏴‍☠️ ahoy", "  two  spaces\nand a line", "🏴‍☠️🏴‍☠️", "", HOSTILE)


@pytest.fixture(scope="module")
def tokenizer():
    """Bytes and a few merges: a character of another script is several tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        ["arr matey ahoy two spaces"], trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False)
    )
    return made


def example(tokenizer, text, step=3):
    ids = torch.tensor(tokenizer.encode(text).ids, dtype=torch.long)
    figures = torch.linspace(-1, 1, 2 * len(ids)).view(-1, 2)
    figures[:1] = torch.nan
    return KeptExample(step, ids, figures.nansum(0), figures.nansum(0).abs(), figures, figures.abs())


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_of_a_text_are_the_text_and_as_many_as_its_tokens(tokenizer, text):
    ids = tokenizer.encode(text).ids
    found = pieces(tokenizer.decode, ids)
    assert "".join(found) == text
    assert len(found) == len(ids)


def test_half_a_character_at_the_end_is_shown_as_such(tokenizer):
    ids = tokenizer.encode("ahoy 海").ids
    assert "".join(pieces(tokenizer.decode, ids[:-1])) == "ahoy \ufffd"


def test_the_file_holds_every_token_s_figures_and_none_for_the_prompt_s(tokenizer, tmp_path):
    given = [example(tokenizer, "arr matey"), example(tokenizer, "ahoy")]
    TokenFile(tmp_path / "run" / "tokens.json", tokenizer).show(BANK, 3, given)
    found = read_tokens(tmp_path / "run" / "tokens.json")
    assert {key: found[key] for key in ("schema", "step", "concepts", "hook")} == {
        "schema": 1, "step": 3, "concepts": ["pirate", "royal"], "hook": "blocks.1.hook_resid_post",
    }  # fmt: skip
    for each, kept in zip(found["examples"], given, strict=True):
        assert set(each) == {"tokens", "share", "signed"}
        for key, figures in (("share", kept.token_share), ("signed", kept.token_signed)):
            for number, name in enumerate(BANK.names):
                values = each[key][name]
                assert len(values) == len(each["tokens"])
                assert values[0] is None
                assert values[1:] == pytest.approx(figures[1:, number].tolist(), rel=1e-3, abs=1e-9)
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["tokens.json"]


def test_of_many_examples_those_are_shown_that_ask_most_for_any_concept(tokenizer, tmp_path):
    given = [example(tokenizer, "arr") for _ in range(9)]
    for number, each in enumerate(given):
        each.signed[0], each.signed[1] = float(number == 2), float(number == 7)
    view = TokenFile(tmp_path / "tokens.json", tokenizer, most=2)
    seen = []
    view._tokenizer = type("Seen", (), {"decode": lambda self, ids: seen.append(list(ids)) or ""})()
    given[2].input_ids[:], given[7].input_ids[:] = 1, 2
    view.show(BANK, 0, given)
    assert {ids[0] for ids in seen if ids} == {1, 2}


def test_a_file_is_due_again_after_its_seconds(tokenizer, tmp_path):
    view = TokenFile(tmp_path / "tokens.json", tokenizer, seconds=60.0)
    assert view.due()
    view.show(BANK, 0, [example(tokenizer, "arr")])
    assert not view.due()
    assert TokenFile(tmp_path / "tokens.json", tokenizer, seconds=0.0).due()


def test_a_disk_that_refuses_is_a_warning_and_a_folder_that_cannot_be_an_error(tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write"):
        TokenFile(tmp_path / "file" / "tokens.json", tokenizer)
    (tmp_path / "tokens.json").mkdir()
    with pytest.warns(UserWarning, match="of step 4 is not written, the run goes on"):
        TokenFile(tmp_path / "tokens.json", tokenizer).show(BANK, 4, [example(tokenizer, "arr")])


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), ("{", "is not JSON"), ('{"schema": 9}', "schema 9"), ("[]", "schema 'list'")],
)
def test_a_file_that_is_none_is_refused(content, message, tmp_path):
    if content is not None:
        (tmp_path / "tokens.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_tokens(tmp_path / "tokens.json")


def test_hostile_words_stay_words_on_the_page(tokenizer, tmp_path):
    view = TokenFile(tmp_path / "tokens.json", tokenizer)
    hostile = ConceptBank.from_directions(
        {HOSTILE: torch.ones(4), "royal": torch.eye(4)[0]}, hook="blocks.1.hook_resid_post"
    )
    view.show(hostile, 3, [example(tokenizer, HOSTILE)])
    document = json.loads((tmp_path / "tokens.json").read_text())
    page = Page(write_tokens(document, tmp_path / "tokens.html").read_text())
    assert "script" not in page.tags
    assert not page.handlers
    assert not page.addresses
    assert "".join(page.words).count(HOSTILE) == 3  # as a concept, and once a concept as a text
