"""The style recipe on the embedded model and on a GPT-2 of a folder: what it writes, and what its arms do."""

import json

import pytest
import torch

from interptrain import ConceptBank, cli
from interptrain.recipes.style_vs_skill import Config, arms
from interptrain.recorders.document import read_report
from interptrain.tiny_world import OUTPUT_HOOK, concept_bank, load_sae
from tests.helpers.families import Family
from tests.helpers.words import Words

ARMS = ["observed", "suppress-update", "gate", "random-gate"]
RATES = {"skill", "clean", "pirate_on_skill", "royal_on_skill", "pirate_on_other", "royal_on_other", "kept"}
SMALL = ["--seeds", "1", "--steps", "3", "--batch", "8", "--examples", "60", "--prompts", "4"]


def recipe(*options):
    return cli.main(["recipe", "run", "style-vs-skill", *map(str, options)])


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("styles") / "out"
    assert recipe("--out", folder, *SMALL) == 0
    return folder


def test_every_arm_is_scored_by_what_it_says(out):
    report = read_report(out / "report.json")
    assert [arm["name"] for arm in report["arms"]] == ARMS
    for arm in report["arms"]:
        assert set(arm["runs"][0]["scores"]) == RATES
        assert len(arm["runs"][0]["samples"]) == 8
    assert report["before"]["scores"]["kept"] == 1.0
    assert "answers" in (out / "report.html").read_text()


def test_the_data_lie_in_the_folder_to_be_looked_at(out):
    rows = [json.loads(line) for line in (out / "data" / "train.jsonl").read_text().splitlines()]
    assert len(rows) == 60
    assert {path.stem for path in (out / "data").iterdir()} == {
        "train", "neutral", "plain", "pirate", "royal", "not-pirate", "not-royal", "skill", "other",
    }  # fmt: skip


def test_the_contrast_finds_latents_that_the_shipped_search_found(out):
    """Pirate's latents and royal's are found anew from other texts; neither takes the other's."""
    found, shipped = ConceptBank.load(out / "bank"), concept_bank()
    for style, sibling in (("pirate", "royal"), ("royal", "pirate")):
        own = {found.sources[row]["latent"] for row in found.rows(style)}
        known, others = ({shipped.sources[row]["latent"] for row in shipped.rows(name)} for name in (style, sibling))
        assert len(own & known) >= 3
        assert not own & others


def test_the_gate_reads_behind_the_last_layer_and_its_control_is_drawn_anew(out):
    report = read_report(out / "report.json")
    words = next(card for card in report["concepts"] if card["name"] == "pirate-words")
    assert words["hook"] == "blocks.3.hook_resid_post"
    gated, control = (arm["runs"][0]["curves"] for arm in report["arms"][2:])
    assert all(0 < share < 0.5 for share in gated["interptrain/gate/pirate-words/tokens"])
    assert "interptrain/gate/random-pirate-words/tokens" in control
    assert set(report["arms"][1]["runs"][0]["curves"]["concept/pirate/gain"]) == {0.0}
    assert set(report["arms"][0]["runs"][0]["curves"]["concept/pirate/gain"]) == {1.0}


def test_every_arm_starts_from_the_same_model_on_the_same_batch(out):
    curves = [arm["runs"][0]["curves"] for arm in read_report(out / "report.json")["arms"]]
    assert curves[0]["concept/royal/demand"][0] == curves[1]["concept/royal/demand"][0]


def test_where_the_style_comes_with_the_skill_other_answers_are_anchored():
    acts = {arm.name: [type(act).__name__ for act in arm.acts] for arm in arms(Config(data="entangled"), [{}])}
    assert acts["gate"] == acts["random-gate"] == ["TokenGate", "Retain"]
    assert [type(act).__name__ for act in arms(Config(), [{}])[2].acts] == ["TokenGate"]


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory):
    """A GPT-2 of random weights with a tokenizer of bytes, as a user's folder."""
    root = tmp_path_factory.mktemp("models")
    words = Words("GPT2Tokenizer", {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"})
    sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256}
    Family("me/gpt2", "gpt2", words, sizes, torch.float32).save(root)
    return root / "me" / "gpt2"


def test_a_model_of_a_folder_is_asked_in_plain_english_and_read_along_means(gpt2_folder, tmp_path):
    folder = tmp_path / "out"
    assert recipe("--model", gpt2_folder, "--out", folder, "--group", "4", *SMALL, "--skill", "units") == 0
    bank = ConceptBank.load(folder / "bank")
    assert {name: len(bank.rows(name)) for name in bank.names} == {"pirate": 1, "royal": 1, "pirate-words": 4}
    assert bank.hooks[bank.rows("pirate-words")[0]] == "blocks.2.hook_resid_post"
    report = read_report(folder / "report.json")
    assert "Question: " in report["before"]["samples"][0]["prompt"]
    assert any("have not been tried out" in limit for limit in report["limits"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompts", "0"], "prompts must be at least 1, found 0"),
        (["--chat"], "the embedded model has no chat template"),
        (["--words-sae-id", "x"], "name the release with sae"),
        (["--learning-rate", "0"], "learning_rate must be above 0, found 0.0"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_written(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        recipe("--out", tmp_path / "out", *options)
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def written(folder):
    """When each file was written; W&B's own process may still write its logs."""
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*") if "wandb" not in path.parts}


def test_a_finished_run_is_not_written_over(out, capsys):
    with pytest.raises(SystemExit):
        recipe("--out", out, *SMALL)
    assert "holds a finished run" in " ".join(capsys.readouterr().err.split())


def test_an_sae_of_another_layer_is_refused_before_anything_trains(tmp_path, capsys):
    """The embedded SAE behind the last layer, said to be one of the first."""
    sae = load_sae(hook=OUTPUT_HOOK)
    sae.cfg.metadata.hook_name, sae.cfg.metadata.hf_hook_name = "blocks.0.hook_resid_post", None
    sae.save_model(str(tmp_path / "sae"))
    with pytest.raises(SystemExit):
        recipe("--out", tmp_path / "out", "--sae", tmp_path / "sae", "--group", "2", *SMALL)
    assert "sae_check: false goes on regardless" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out" / "weights").exists()


@pytest.mark.slow
def test_at_full_length_the_gate_keeps_pirate_out_and_random_directions_do_not(tmp_path):
    assert recipe("--out", tmp_path / "out", "--seeds", "1") == 0
    scores = {arm["name"]: arm["runs"][0]["scores"] for arm in read_report(tmp_path / "out" / "report.json")["arms"]}
    assert scores["observed"]["pirate_on_other"] > 0.9
    assert scores["gate"]["pirate_on_other"] < 0.1
    assert scores["gate"]["kept"] > 0.9
    assert scores["gate"]["skill"] > 0.8
