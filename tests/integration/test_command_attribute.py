"""`interptrain attribute` on the embedded model: what it ranks, what it writes, and what it refuses first."""

import json
import random
from html.parser import HTMLParser

import pytest
import torch

from interptrain import ConceptBank, cli, tiny_world
from interptrain.concepts.contrast import auc
from interptrain.recipes.examples import Columns, read_examples
from interptrain.tiny_world import concept_bank
from interptrain.tiny_world.corpus import document
from interptrain.tiny_world.wordings import own_words


def rows(count=40, seed=0):
    """Questions about facts, some answered in pirate; with a column that is none of ours."""
    rng, found = random.Random(seed), []
    for number in range(count):
        voice = rng.choice(("plain", "pirate"))
        drawn = document(rng, rng.choice(("fact", "minus")), voice)
        found.append({"prompt": drawn.prompt, "completion": f" {drawn.answer}", "voice": voice, "id": number})
    return found


def as_lines(given):
    """Spaced as a person would, some lines blank, the last without an end."""
    return "\n\n".join(json.dumps(row, separators=(" ,", " : "), ensure_ascii=False) for row in given)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Data, two banks, and a run of the command that drops and writes tokens."""
    folder = tmp_path_factory.mktemp("attribute")
    given = rows()
    given.append({"prompt": "cat " * 80, "completion": " dog", "voice": "plain", "id": 40})  # cut off before its answer
    (folder / "data.jsonl").write_text(as_lines(given))
    bank = concept_bank(hook=tiny_world.OUTPUT_HOOK)
    bank.select("pirate", "royal").save(folder / "bank")
    called(folder, folder / "out", "--concepts", folder / "bank", "--concept", "pirate", "--drop-above", 2, "--tokens")
    return folder


def called(folder, out, *more):
    given = ["--model", "tiny-world", "--data", folder / "data.jsonl", "--out", out, *more]
    assert cli.main(["attribute", *map(str, given)]) == 0


def figures(out):
    return [json.loads(line) for line in (out / "attribution.jsonl").read_text().splitlines()]


def test_every_row_has_a_line_with_its_number_and_figures(world):
    found = figures(world / "out")
    assert [each["line"] for each in found] == list(range(1, 82, 2))
    assert found[-1] == {"line": 81, "tokens": 0}
    for each in found[:-1]:
        assert set(each["concepts"]) == {"pirate", "royal"}
        assert set(each["concepts"]["pirate"]) == {"signed", "z", "share", "share_null"}
        assert len(each["text"]) == len(each["token_signed"]["pirate"]) == len(each["token_share"]["royal"])
        assert set(each["token_said"]) == {"pirate", "royal"}
        unsaid = [value is None for value in each["token_said"]["pirate"]]
        assert unsaid == [value is None for value in each["token_signed"]["pirate"]]
        asked = [value for value in each["token_signed"]["pirate"] if value is not None]
        assert len(asked) == each["tokens"]
        assert sum(asked) == pytest.approx(each["concepts"]["pirate"]["signed"], abs=1e-6)


def test_pirate_answers_are_ranked_above_all_others(world):
    voices = [json.loads(line)["voice"] for line in (world / "data.jsonl").read_text().splitlines() if line]
    found = [each["concepts"]["pirate"]["signed"] for each in figures(world / "out")[:-1]]
    ranked = sorted(zip(found, voices, strict=False), reverse=True)
    assert [voice for _, voice in ranked] == sorted(voices[:-1])  # pirate, then plain


def test_what_is_left_are_the_user_s_own_lines(world):
    whole = [line for line in (world / "data.jsonl").read_bytes().split(b"\n") if line]
    left = (world / "out" / "filtered.jsonl").read_bytes().split(b"\n")
    assert left.pop() == b""
    assert left == [line for line in whole if json.loads(line)["voice"] == "plain"]
    assert whole[-1] in left  # nothing is known of it, so it stays
    assert len(read_examples(world / "out" / "filtered.jsonl", Columns())) == len(left)


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.addresses = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_says_what_was_done_and_asks_nothing_of_other_places(world):
    page = Tags((world / "out" / "attribution.html").read_text())
    said = "".join(page.words)
    assert "script" not in page.tags
    assert not page.addresses
    assert "dropped by 'pirate', z above 2: " in said
    assert "of 41 examples" in said
    assert "Those that ask for most" in said


def test_the_figures_do_not_depend_on_the_batch_and_the_weights_follow_from_them(world, tmp_path):
    called(world, tmp_path / "out", "--concepts", world / "bank", "--concept", "pirate", "--reweight", "--batch", 3)
    found = figures(tmp_path / "out")
    for one, other in zip(found[:-1], figures(world / "out")[:-1], strict=True):
        assert one["concepts"]["pirate"] == pytest.approx(other["concepts"]["pirate"], rel=1e-3, abs=1e-6)
    given = [json.loads(line) for line in (world / "data.jsonl").read_text().splitlines() if line]
    written = [json.loads(line) for line in (tmp_path / "out" / "reweighted.jsonl").read_text().splitlines()]
    for row, own, each in zip(written, given, found, strict=True):
        weight = row.pop("weight")
        assert row == own
        z = each["concepts"]["pirate"]["z"] if "concepts" in each else 1.0
        assert weight == pytest.approx(min(1.0, 1 / z) if z > 0 else 1.0, rel=1e-4)


def test_shaded_by_what_says_it_the_page_marks_words_that_ask_for_nothing(world, tmp_path):
    """Along a contrast's direction: the words of a pirate answer behind its first are certain, and are marked."""
    rng, files = random.Random(4), {}
    for name in ("pirate", "plain"):
        drawn = [document(rng, rng.choice(("fact", "minus")), name, half="search") for _ in range(32)]
        given = [{"prompt": each.prompt, "completion": f" {each.answer}"} for each in drawn]
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text(as_lines(given))
    contrast = ("--contrast", f"pirate={files['pirate']},{files['plain']}")
    called(world, tmp_path / "said", *contrast, "--shade", "said", "--tokens")
    found, page = figures(tmp_path / "said"), (tmp_path / "said" / "attribution.html").read_text()
    assert "with the concept added to the stream than" in page
    marks = {"said": [[], []], "signed": [[], []]}
    for each in found[:-1]:
        for word, said, signed in zip(
            each["text"], each["token_said"]["pirate"], each["token_signed"]["pirate"], strict=True
        ):
            if said is not None:
                own = word.strip() in own_words("pirate")
                marks["said"][own].append(said)
                marks["signed"][own].append(signed)
    separated = {
        name: float(auc(*(torch.tensor(values)[:, None] for values in reversed(sides))))
        for name, sides in marks.items()
    }
    assert separated["said"] > 0.8 > separated["signed"]
    top = max(found[:-1], key=lambda each: each["concepts"]["pirate"]["signed"])
    titles = [f'title="{value:.2g}"' for value in top["token_said"]["pirate"] if value is not None]
    assert all(title in page for title in titles)


def test_an_sae_s_latents_and_the_top_share_serve_as_well(world, tmp_path):
    latents = [concept_bank(hook=tiny_world.OUTPUT_HOOK).sources[row]["latent"] for row in range(8)]
    called(
        world, tmp_path / "out", "--sae", "tiny-world", "--sae-id", tiny_world.OUTPUT_HOOK, "--latents",
        f"pirate={','.join(map(str, latents))}", "--drop-top", 0.25,
    )  # fmt: skip
    kept = (tmp_path / "out" / "filtered.jsonl").read_text().splitlines()
    assert len(kept) == 41 - 10
    dropped = {row["id"] for row in rows()} - {json.loads(line)["id"] for line in kept}
    assert all(rows()[number]["voice"] == "pirate" for number in dropped)
    for one, other in zip(figures(tmp_path / "out")[:-1], figures(world / "out")[:-1], strict=True):
        expected = other["concepts"]["pirate"]["signed"]
        assert one["concepts"]["pirate"]["signed"] == pytest.approx(expected, rel=1e-3, abs=1e-6)


def refused(capsys, out, *arguments):
    """What is said; nothing is left behind."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["attribute", "--out", str(out), *map(str, arguments)])
    assert ended.value.code == 2
    assert not out.exists()
    return " ".join(capsys.readouterr().err.split()).split("error: ", 1)[1]


MODEL = ("--model", "tiny-world")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "model is needed"),
        (MODEL, "data is needed"),
        ((*MODEL, "--data", "nowhere.jsonl"), "the data 'nowhere.jsonl' does not exist"),
        (
            (*MODEL, "--data", "nowhere.jsonl", "--drop-top", "1.5"),
            "drop_top is a share of the examples between 0 and 1",
        ),
        ((*MODEL, "--data", "nowhere.jsonl", "--drop-top", ".5", "--reweight"), "drop_top and reweight: one of them"),
        ((*MODEL, "--data", "nowhere.jsonl", "--drop-above", "nan"), "drop_above is a z, such as 2"),
        ((*MODEL, "--data", "nowhere.jsonl", "--shade", "words"), "invalid choice: 'words'"),
        ((*MODEL, "--data", "nowhere.jsonl", "--batch", "0"), "batch must be at least 1, found 0"),
        ((*MODEL, "--data", "nowhere.jsonl", "--latents", "pirate=3"), "latents are of an SAE"),
    ],
)
def test_a_mistake_in_a_setting_is_refused_before_anything_is_written(given, message, tmp_path, capsys):
    assert message in refused(capsys, tmp_path / "out", *given)


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        ("", (), "is empty: expected a JSON object a line"),
        ("{]", (), "1 of 1 lines of"),
        ('{"prompt": "cat cat", "completion": " dog"}', ("--max-length", "2"), "leaves no token of any answer"),
        ('{"text": "cat dog"}', ("--concepts", "BANK", "--concept", "pirat"), "unknown concept 'pirat'"),
        ('{"text": "cat dog"}', ("--concepts", "WIDE"), "directions are 64 wide but 'tiny-world' is 128"),
        ('{"text": "cat dog"}', ("--concepts", "BANK", "--drop-top", ".1"), "--concept pirate or royal"),
        ('{"text": "cat dog"}', ("--concepts", "DEEP"), "'blocks.9.hook_resid_post' is at layer 9"),
        ('{"text": "cat dog", "weight": 1}', ("--concepts", "BANK", "--reweight"), "has a column 'weight' already"),
    ],
)
def test_data_and_concepts_that_do_not_fit_are_refused_before_anything_is_written(
    text, more, message, world, tmp_path, capsys
):
    (tmp_path / "data.jsonl").write_text(text)
    deep = ConceptBank.from_directions({"pirate": torch.ones(128)}, hook="blocks.9.hook_resid_post")
    wide = ConceptBank.from_directions({"pirate": torch.ones(64)}, hook="blocks.2.hook_resid_post")
    folders = {
        "BANK": str(world / "bank"),
        "DEEP": str(deep.save(tmp_path / "deep")),
        "WIDE": str(wide.save(tmp_path / "wide")),
    }
    given = [folders.get(each, each) for each in more]
    assert message in refused(capsys, tmp_path / "out", *MODEL, "--data", tmp_path / "data.jsonl", *given)


def test_nothing_is_written_over(world, capsys):
    before = (world / "out" / "attribution.jsonl").read_bytes()
    with pytest.raises(SystemExit):
        called(world, world / "out", "--concepts", world / "bank")
    said = " ".join(capsys.readouterr().err.split())
    assert "has attribution.jsonl and attribution.html already: name another folder with --out" in said
    assert (world / "out" / "attribution.jsonl").read_bytes() == before
