"""`concepts find`, `show` and `save` on the embedded model: what they write and say, and what they refuse first."""

import json

import pytest
import torch

from interptrain import ConceptBank, cli, tiny_world
from interptrain.commands.concepts_reading import is_read, read_texts, usable
from interptrain.meters.tokens import first_labels
from interptrain.recipes.examples import Example
from interptrain.recipes.voice import Voice
from interptrain.sites import find_sites
from interptrain.tiny_world.concepts import CONTRASTS, draw
from tests.helpers.models import gpt2

SMALL = ("--texts", "40", "--asked", "6", "--tokens", "14", "--scales", "2", "--controls", "1", "--places", "start",
         "--sparse", "1", "4", "--group", "4")  # fmt: skip


def write(path, documents):
    rows = [{"prompt": each.prompt, "completion": f" {each.answer}"} for each in documents]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    return {
        f"{half}-{side}": write(folder / f"{half}-{side}.jsonl", draw(of, half, 0, count=40))
        for half in ("search", "test")
        for side, of in zip(("positive", "negative"), CONTRASTS["pirate"], strict=True)
    }


def concepts(*options):
    return cli.main(["concepts", *map(str, options)])


def find(texts, out, *options):
    sides = ("--positive", texts["search-positive"], "--negative", texts["search-negative"])
    return concepts("find", "--model", "tiny-world", "--name", "pirate", *sides, "--out", out, *SMALL, *options)


@pytest.fixture(scope="module")
def found(texts, tmp_path_factory):
    """Pirate, sought in the wordings of one half and tested on those of the other."""
    out = tmp_path_factory.mktemp("found") / "pirate"
    held = ("--test-positive", texts["test-positive"], "--test-negative", texts["test-negative"])
    assert find(texts, out, "--sae", "tiny-world", *held) == 0
    return out


@pytest.fixture(scope="module")
def document(found):
    return json.loads((found / "found.json").read_text())


def test_texts_whose_answer_begins_behind_a_bos_token_alone_are_not_read():
    voice = Voice(tiny_world.load_base(), tiny_world.load_tokenizer(), 32)
    asked, bare = Example("<q> where is the bear ? <a>", " arr , the bear !"), Example("<q>", " arr")
    assert is_read(voice, bare)  # its end is predicted by a word
    assert not is_read(voice, bare, at=first_labels)
    assert usable(voice, [bare, asked]) == [asked]
    assert len(read_texts(voice, tiny_world.OUTPUT_HOOK, None, [asked])[0].starts) == 1
    with pytest.raises(ValueError, match="text 0 has no counted tokens"):
        read_texts(voice, tiny_world.OUTPUT_HOOK, None, [bare, asked])


def test_every_method_is_tested_on_held_out_texts_with_its_nulls_beside(document):
    assert list(document["methods"]) == [
        "means", "start-means", "linear-probe", "latents", "sparse-probe-1", "sparse-probe-4"
    ]  # fmt: skip
    for each in document["methods"].values():
        assert each["held_out"]["auc"] > 0.9
        for null in ("shuffled", "random"):
            mean, spread = each["held_out"][null]
            assert abs(mean - 0.5) < 0.25
            assert each["held_out"]["auc"] > mean
            assert spread > 0
    assert document["schema"] == 1
    assert document["texts"] == {"search": [40, 40], "test": [40, 40]}


def test_where_the_answer_begins_is_the_direction_that_makes_the_model_talk_like_a_pirate(document):
    assert document["recommended"] == "start-means"
    best = document["methods"]["start-means"]["best"]
    assert document["before"]["shown"] == 0
    assert best["answers"]["both"] > 0.8
    assert best["control"][0] == 0
    assert best["answers"]["loss"] < document["bar"]["loss"]


def test_what_tells_texts_apart_best_need_not_bring_the_concept_about(document):
    probe = document["methods"]["linear-probe"]
    assert probe["held_out"]["auc"] > 0.98
    assert probe["gain"] < 0.2


def test_the_words_that_mark_it_are_pirate_s_own(document):
    own = tiny_world.wordings.own_words("pirate", "search")
    assert document["markers"]["words"]
    assert set(document["markers"]["words"]) <= own
    assert not document["markers"]["given"]


def test_each_method_leaves_a_bank_with_the_sae_as_its_read_out(found, document):
    for name, each in document["methods"].items():
        bank = ConceptBank.load(found / name)
        assert bank.names == ("pirate",)
        assert bank.hook_points == (document["hook"],)
        assert set(bank.readouts) == {document["hook"]}
        assert [source["latent"] for source in bank.sources if "latent" in source] == each["latents"]


def test_without_an_sae_or_held_out_files_the_stream_alone_is_searched_and_half_is_held_out(texts, tmp_path, capsys):
    out = tmp_path / "out"
    assert find(texts, out, "--hook", "blocks.1.hook_resid_post", "--words", "arr,yo", "savvy") == 0
    document = json.loads((out / "found.json").read_text())
    assert list(document["methods"]) == ["means", "start-means", "linear-probe"]
    assert document["texts"] == {"search": [20, 20], "test": [20, 20]}
    assert document["markers"]["words"] == ["arr", "yo", "savvy"]
    assert ConceptBank.load(out / "means").readouts == {}
    said = capsys.readouterr().out
    assert "blocks.1.hook_resid_post" in said
    assert "the rule:" in said


def test_plain_texts_are_searched_too(texts, tmp_path):
    files = {}
    for key, path in texts.items():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        files[key] = tmp_path / f"{key}.jsonl"
        files[key].write_text("\n".join(json.dumps({"text": row["prompt"] + row["completion"]}) for row in rows))
    assert find(files, tmp_path / "out") == 0
    document = json.loads((tmp_path / "out" / "found.json").read_text())
    assert document["methods"]["means"]["held_out"]["auc"] > 0.8  # of 20 texts, questions and all
    assert all(prompt.startswith("<q>") and "<e>" not in prompt for prompt in document["prompts"])


def test_what_is_recommended_is_kept_and_a_concept_is_never_replaced(found, tmp_path, capsys):
    bank = tmp_path / "bank"
    assert concepts("save", found, "--to", bank) == 0
    assert ConceptBank.load(bank).directions.shape == (1, 128)
    assert "already" in refused("save", found, "--to", bank, capsys=capsys)
    assert concepts("save", found, "--method", "latents", "--name", "pirate latents", "--to", bank) == 0
    assert concepts("save", "--sae", "tiny-world", "--latents", "sums=3,5", "--model", "tiny-world", "--to", bank) == 0
    kept = ConceptBank.load(bank)
    assert kept.names == ("pirate", "pirate latents", "sums")
    assert len(kept.readouts) == 1
    assert find_sites(tiny_world.load_base(), kept, where="update")  # what training does with it first
    assert [source["latent"] for source in kept.sources[-2:]] == [3, 5]


def test_an_sae_of_another_hook_is_added_beside_and_of_another_release_is_refused(found, tmp_path, capsys):
    bank = tmp_path / "bank"
    at_the_end = ("--sae", "tiny-world", "--sae-id", tiny_world.OUTPUT_HOOK)
    assert concepts("save", found, "--to", bank) == 0
    assert concepts("save", *at_the_end, "--latents", "sums=7", "--to", bank) == 0
    assert len(ConceptBank.load(bank).readouts) == 2
    other = tiny_world.load_sae()
    with torch.no_grad():
        other.W_dec *= 2.0
    other.save_model(tmp_path / "other")
    said = refused("save", "--sae", tmp_path / "other", "--latents", "more=7", "--to", bank, capsys=capsys)
    assert "read-out" in said


@pytest.mark.slow
def test_a_saved_bank_is_what_fine_tuning_watches(found, texts, tmp_path):
    bank = tmp_path / "bank"
    assert concepts("save", found, "--method", "latents", "--to", bank) == 0
    out = tmp_path / "run"
    assert cli.main([
        "recipe", "run", "sft", "--model", "tiny-world", "--data", str(texts["search-positive"]), "--concepts",
        str(bank), "--steps", "2", "--out", str(out),
    ]) == 0  # fmt: skip
    report = json.loads((out / "report.json").read_text())
    assert report["concepts"][0]["name"] == "pirate"


def test_a_bank_is_shown_with_its_texts_tokens_and_neighbours(found, texts, tmp_path, capsys):
    labels = tmp_path / "labels.jsonl"
    bank = ConceptBank.load(found / "latents")
    latent = bank.sources[0]["latent"]
    labels.write_text(json.dumps({"index": str(latent), "description": "<script>alert('arr')</script>"}))
    page = tmp_path / "page.html"
    shown = ("--bank", found / "latents", "--texts", texts["test-positive"], "--neuronpedia", labels)
    assert concepts("show", "--model", "tiny-world", *shown, "--out", page) == 0
    said, html = capsys.readouterr().out, page.read_text()
    assert f"pirate: latent {latent}" in said
    assert "about: <script>" in said
    assert "&lt;script&gt;alert" in html
    assert "<script" not in html
    assert html.count("<h2>") == 1 + len(bank.directions) + 1
    assert 'class="t" style="--s:' in html
    assert "http" not in html.split("</style>")[1]


def test_where_the_answer_begins_as_a_pirate_pirate_words_are_promoted(found, texts, capsys):
    shown = ("--bank", found / "start-means", "--texts", texts["test-positive"], "--top", "3")
    assert concepts("show", "--model", "tiny-world", *shown) == 0
    promoted = next(line for line in capsys.readouterr().out.splitlines() if "promoted" in line)
    words = {part.strip("'") for part in promoted.split("promoted: ")[1].split()}
    assert len(words) == 3
    assert words <= tiny_world.wordings.own_words("pirate")


def test_latents_of_an_sae_are_shown_and_a_text_s_own_markup_stays_text(tmp_path, capsys):
    texts, page = tmp_path / "texts.jsonl", tmp_path / "page.html"
    texts.write_text(json.dumps({"text": "<q> what is 1 2 plus 3 ? <a> arr <script>x</script> \x1b[31m matey <e>"}))
    shown = ("--sae", "tiny-world", "--latents", "12,55", "7", "--texts", texts, "--out", page)
    assert concepts("show", "--model", "tiny-world", *shown) == 0
    said = capsys.readouterr().out
    assert [f"latent {number}  (" in said for number in (12, 55, 7)] == [True] * 3
    assert "\x1b[31m" not in said
    assert "<script" not in page.read_text()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--test-positive", "held.jsonl"), "held-out texts come in two files"),
        (("--sae", "tiny-world", "--hook", "blocks.1.hook_resid_post"), "with one that is where it was trained"),
        (("--scales", "0"), "scales must be finite and above 0"),
        (("--places", "everywhere"), "places"),
        (("--hook", "blocks.9.hook_resid_post"), "is at layer 9"),
        (("--hook", "blocks.1.mlp.hook_post"), "is not a place in the residual stream"),
        (("--sae", "nowhere"), "is no folder; of a release"),
        (("--positive", "nowhere.jsonl"), "'nowhere.jsonl' does not exist"),
    ],
)
def test_a_search_that_cannot_be_made_is_refused_in_one_line_and_writes_nothing(texts, tmp_path, capsys, options, says):
    with pytest.raises(SystemExit) as ended:
        find(texts, tmp_path / "out", *options)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_too_few_texts_are_refused_with_the_file_that_has_them(texts, tmp_path, capsys):
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(texts["test-positive"].read_text().splitlines()[:3]))
    held = ("--test-positive", few, "--test-negative", texts["test-negative"])
    with pytest.raises(SystemExit):
        find(texts, tmp_path / "out", *held)
    assert f"'{few}' has 3 texts" in capsys.readouterr().err


def test_texts_that_are_cut_off_before_their_answers_are_refused(texts, tmp_path, capsys):
    with pytest.raises(SystemExit):
        find(texts, tmp_path / "out", "--max-length", "3")
    assert "0 texts within max_length (3)" in capsys.readouterr().err


def test_a_folder_below_a_file_is_refused(texts, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit):
        find(texts, tmp_path / "file" / "out")
    assert "is a file; name another (--out)" in capsys.readouterr().err


def test_a_folder_that_holds_something_is_left_as_it_is(texts, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit):
        find(texts, tmp_path)
    assert "holds something already" in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["notes.txt"]


def test_an_sae_of_another_width_is_refused(texts, tmp_path, capsys):
    other = tmp_path / "gpt2"
    gpt2().save_pretrained(other)
    tiny_world.load_tokenizer().save_pretrained(other)
    with pytest.raises(SystemExit):
        find(texts, tmp_path / "out", "--model", other, "--sae", "tiny-world")
    assert "the SAE's directions have width 128" in capsys.readouterr().err
    said = refused(
        "save", "--sae", "tiny-world", "--latents", "a=1", "--model", other, "--to", tmp_path / "bank", capsys=capsys
    )
    assert "has a stream of 32" in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("save", "--to", "bank"), "name either a folder"),
        (("save", "nowhere", "--to", "bank"), "'nowhere/found.json' cannot be read"),
        (("save", "--sae", "tiny-world", "--latents", "a=999", "--to", "bank"), "asks for latent 999"),
        (("save", "--sae", "tiny-world", "--to", "bank"), "latents of the SAE are needed"),
        (("show", "--model", "tiny-world", "--texts", "t.jsonl"), "name either a bank"),
        (("show", "--model", "tiny-world", "--texts", "t.jsonl", "--sae", "x", "--latents", "1,b"), "found 'b'"),
        (("show", "--model", "tiny-world", "--texts", "t.jsonl", "--bank", "nowhere"), "'t.jsonl' does not exist"),
    ],
)
def test_what_cannot_be_shown_or_kept_is_refused(tmp_path, monkeypatch, capsys, options, says):
    monkeypatch.chdir(tmp_path)
    assert says in refused(*options, capsys=capsys)
    assert not list(tmp_path.iterdir())


def test_a_method_that_was_not_tried_is_refused_with_those_that_were(found, tmp_path, capsys):
    said = refused("save", found, "--method", "magic", "--to", tmp_path / "bank", capsys=capsys)
    assert "no method 'magic'; it has means, start-means" in said


def test_a_page_or_a_folder_that_is_no_bank_is_never_written_over(found, texts, tmp_path, capsys):
    (tmp_path / "page.html").write_text("mine")
    shown = ("--bank", found / "means", "--texts", texts["test-positive"], "--out", tmp_path / "page.html")
    assert "is there already" in refused("show", "--model", "tiny-world", *shown, capsys=capsys)
    assert "is no bank" in refused("save", found, "--to", tmp_path, capsys=capsys)
    assert (tmp_path / "page.html").read_text() == "mine"


def refused(*options, capsys):
    with pytest.raises(SystemExit) as ended:
        concepts(*options)
    assert ended.value.code == 2
    return capsys.readouterr().err
