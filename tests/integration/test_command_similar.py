"""`interptrain similar` on the embedded model: what it finds and writes, and what it refuses first."""

import json
import random

import pytest
import torch
from safetensors.torch import save_file

from interptrain import ConceptBank, cli
from interptrain.commands.similar import Config
from interptrain.recipes.settings import configured
from interptrain.tiny_world import OUTPUT_HOOK, concept_bank, load_base
from interptrain.tiny_world.corpus import document
from tests.unit.recorders.test_html import Page

HOSTILE = "<script>alert(1)</script>"
SAE = ("--sae", "tiny-world", "--sae-id", OUTPUT_HOOK)


def rows(kinds, half, seed):
    """Questions and answers as a user has them, with a column of its own."""
    rng, found = random.Random(seed), []
    for kind in kinds:
        prompt, answer = document(rng, kind, half=half).text.removesuffix(" <e>").split(" <a> ")
        found.append({"prompt": f"{prompt} <a>", "completion": f" {answer}", "is_minus": kind == "minus", "ü": "é"})
    return found


def write(file, lines):
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return file


def lines_of(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    kinds = ["minus"] * 12 + ["fact"] * 60 + ["plus"] * 48
    random.Random(0).shuffle(kinds)
    corpus = rows(kinds, "test", 1)
    corpus[0]["prompt"] = HOSTILE + corpus[0]["prompt"]
    few = rows(["minus"] * 8, "search", 2)
    few[0]["prompt"] = HOSTILE + few[0]["prompt"]
    return {"query": write(folder / "few.jsonl", few), "corpus": write(folder / "corpus.jsonl", corpus)}


def call(texts, out, *more):
    given = ["--query", str(texts["query"]), "--corpus", str(texts["corpus"]), "--out", str(out)]
    return cli.main(["similar", "--model", "tiny-world", "--batch", "16", *given, *map(str, more)])


def refusal(capsys, texts, out, *more):
    with pytest.raises(SystemExit) as ended:
        call(texts, out, *more)
    assert ended.value.code == 2
    assert not (out / "similar.jsonl").exists()
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def found(texts, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "both"
    assert call(texts, out, *SAE, "--top", "0.1", "--label-column", "is_minus", "--dimension", "1024") == 0
    return out


def test_the_asked_skill_is_found_by_each_method(found):
    summary = json.loads((found / "summary.json").read_text())
    assert summary["top"] == summary["labelled"] == 12
    assert min(summary["precision"].values()) >= 0.75
    assert summary["precision"]["both"] >= 0.9
    assert -1 < summary["rank_correlation"] <= 1
    assert 0 < summary["overlap"] <= 1


def test_every_document_has_its_scores_under_its_line(found, texts):
    scores = lines_of(found / "similar.jsonl")
    assert [row["line"] for row in scores] == list(range(1, 121))
    assert set(scores[0]) == {"line", "gradient", "concepts", "both"}
    assert all(row["both"] == pytest.approx((row["gradient"] + row["concepts"]) / 2, abs=1e-5) for row in scores)
    assert all(row["gradient"] >= 0 for row in scores)


def test_the_top_is_the_user_s_own_lines_unchanged(found, texts):
    lines = texts["corpus"].read_text(encoding="utf-8").split("\n")
    scores = sorted(lines_of(found / "similar.jsonl"), key=lambda row: (-row["both"], row["line"]))
    numbers = sorted(row["line"] for row in scores[:12])
    assert (found / "top.jsonl").read_text(encoding="utf-8").splitlines() == [lines[n - 1] for n in numbers]


def test_the_page_shows_each_ranking_and_hostile_text_as_text(found):
    page = Page((found / "similar.html").read_text(encoding="utf-8"))
    words = " ".join(page.words)
    assert "script" not in page.tags
    assert not page.addresses
    assert HOSTILE in words
    assert all(name in words for name in ("gradient", "concepts", "both", "precision", "120 documents"))


def test_the_rankings_of_two_runs_are_the_same_and_the_batch_does_not_matter(texts, found, tmp_path):
    out = tmp_path / "again"
    assert call(texts, out, *SAE, "--dimension", "1024", "--batch", "5") == 0
    again, first = (lines_of(folder / "similar.jsonl") for folder in (out, found))
    for one, other in zip(first, again, strict=True):
        assert one == pytest.approx(other, abs=5e-3)


def test_adam_by_the_sample_or_by_an_optimizer_s_moments(texts, tmp_path):
    shape = {name: p.shape for name, p in load_base().named_parameters() if "mlp.down" in name}
    moments = tmp_path / "moments.safetensors"
    save_file({name: torch.rand(*size) + 0.1 for name, size in shape.items()}, moments)
    options = ("--normaliser", "adam", "--layers", "*mlp.down_proj", "--dimension", "256", "--sample", "60")
    assert call(texts, tmp_path / "sample", *options) == 0
    assert call(texts, tmp_path / "given", *options, "--second-moments", moments) == 0
    scores = [lines_of(tmp_path / name / "similar.jsonl") for name in ("sample", "given")]
    assert set(scores[0][0]) == {"line", "gradient"}
    assert scores[0] != scores[1]
    assert len(json.loads((tmp_path / "given" / "summary.json").read_text())["layers"]) == 4


def test_a_bank_by_itself_and_a_document_that_has_no_token_in_the_loss(texts, tmp_path):
    concept_bank(hook=OUTPUT_HOOK).save(tmp_path / "bank")
    lines = texts["corpus"].read_text(encoding="utf-8").split("\n")[:40]
    long = json.dumps({"prompt": "<q> " + "what is " * 40, "completion": " it ."})
    short = {**texts, "corpus": write(tmp_path / "short.jsonl", [*lines, long, "", *lines[:3], long])}
    out = tmp_path / "out"
    assert call(short, out, "--concepts", tmp_path / "bank", "--by", "concepts", "--rule", "cosine") == 0
    scores = lines_of(out / "similar.jsonl")
    assert [row["line"] for row in scores] == [*range(1, 42), 43, 44, 45, 46]
    assert [row["line"] for row in scores if row["concepts"] is None] == [41, 46]
    assert scores[0]["concepts"] == pytest.approx(scores[41]["concepts"], abs=1e-4)
    assert json.loads((out / "summary.json").read_text())["unscored"] == 2


def test_what_is_there_already_is_not_written_over(texts, found, capsys):
    before = (found / "similar.jsonl").read_bytes()
    with pytest.raises(SystemExit):
        call(texts, found)
    said = capsys.readouterr().err
    assert "holds similar.jsonl, top.jsonl, similar.html, summary.json already; name another folder" in said
    assert (found / "similar.jsonl").read_bytes() == before


def test_files_that_cannot_be_used_are_refused_with_their_lines(texts, tmp_path, capsys):
    out, empty = tmp_path / "out", write(tmp_path / "empty.jsonl", [""])
    assert "is empty: expected a JSON object a line" in refusal(capsys, {**texts, "query": empty}, out)
    assert "does not exist" in refusal(capsys, {**texts, "corpus": tmp_path / "nowhere.jsonl"}, out)
    good = texts["corpus"].read_text(encoding="utf-8").split("\n")[:3]
    broken = write(tmp_path / "broken.jsonl", [*good, "{", '{"prompt": 3, "completion": "a"}', "[]", *["{"] * 5])
    said = refusal(capsys, {**texts, "corpus": broken}, out)
    assert "8 of 11 lines of" in said
    assert "line 4: Expecting property name" in said
    assert "line 5: 'prompt' is 3, expected a text" in said
    assert "line 6: a list, expected an object" in said
    assert "; and 3 more" in said
    one = write(tmp_path / "one.jsonl", good[:1])
    assert "has 1 document, expected two or more" in refusal(capsys, {**texts, "corpus": one}, out)
    assert not out.exists()


def test_labels_that_are_not_there_are_refused(texts, tmp_path, capsys):
    out = tmp_path / "out"
    assert "line 1: no label column 'skill', found 'prompt'" in refusal(capsys, texts, out, "--label-column", "skill")
    said = refusal(capsys, texts, out, "--label-column", "is_minus", "--label", "yes")
    assert "has 'yes' in 'is_minus'; say what does (--label)" in said


def test_directions_of_another_model_are_refused(texts, tmp_path, capsys):
    wide = ConceptBank.from_directions({"any": torch.ones(64)}, hook=OUTPUT_HOOK)
    high = ConceptBank.from_directions({"any": torch.ones(128)}, hook="blocks.9.hook_resid_post")
    for name, bank in (("wide", wide), ("high", high)):
        bank.save(tmp_path / name)
    out = tmp_path / "out"
    said = refusal(capsys, texts, out, "--concepts", tmp_path / "wide")
    assert "are 64 wide but 'tiny-world' is 128; were they found in another model?" in said
    assert "has 4 blocks, counted from 0" in refusal(capsys, texts, out, "--concepts", tmp_path / "high")


def test_second_moments_of_other_layers_are_refused(texts, tmp_path, capsys):
    save_file({"x": torch.ones(2)}, tmp_path / "m.safetensors")
    options = ("--normaliser", "adam", "--second-moments", tmp_path / "m.safetensors")
    said = refusal(capsys, texts, tmp_path / "out", *options)
    assert "has nothing for 'model.layers.0.self_attn.q_proj.weight', expected [128, 128]" in said


NEEDED = {"model": "tiny-world", "query": "a", "corpus": "b", "out": "c"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"corpus": None}, "corpus is needed: --corpus"),
        ({"top": 1.5}, "top is a share between 0 and 1, found 1.5"),
        ({"batch": 0}, "batch must be at least 1, found 0"),
        ({"by": "concepts"}, "by concepts needs coordinates"),
        ({"sae": "s", "concepts": "b"}, "give one of them"),
        ({"second_moments": "m"}, "belong to --normaliser adam"),
        ({"text_column": "a", "prompt_column": "b"}, "name either a text column"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(given, says):
    with pytest.raises(ValueError, match=says):
        configured(Config, {key: value for key, value in (NEEDED | given).items() if value is not None})
