"""Exporting a run: a real one of a few steps, and reports that somebody has meddled with."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from interptrain import ConceptBank, cli
from interptrain.card import text
from interptrain.export import EXPORT_SCHEMA, export, unplaced
from interptrain.recorders.document import read_report
from interptrain.tiny_world import load_base, load_tokenizer
from interptrain.tiny_world.corpus import document
from tests.helpers.reports import small_report

EVIL = "</script><img src=x onerror=alert(1)>\n---\nlicense: mit\n[x](javascript:alert(1)) `|` ../../up"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `sft` in three arms of two steps."""
    folder = tmp_path_factory.mktemp("export")
    rng = random.Random(0)
    rows = [document(rng, "fact", "pirate") for _ in range(16)]
    data = folder / "pirate.jsonl"
    data.write_text("".join(json.dumps({"prompt": each.prompt, "completion": each.answer}) + "\n" for each in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        status = cli.main([
            "recipe", "run", "sft", "--model", "tiny-world", "--data", str(data), "--out", str(folder / "run"),
            "--suppress", "data", "--controls", "--steps", "2", "--rank", "2", "--probe-every", "1",
            "--max-length", "64", "--held-out", "0.25",
        ])  # fmt: skip
    assert status == 0
    return folder / "run"


@pytest.fixture(scope="module")
def exported(ran: Path) -> Path:
    to = ran.parent / "hub" / "model"
    assert cli.main(["export", str(ran), "--to", str(to)]) == 0
    return to


@pytest.fixture(scope="module")
def facts(exported: Path) -> dict:
    return json.loads((exported / "interptrain.json").read_text())


def test_the_exported_adapter_says_what_the_trained_one_says(ran, exported):
    asked = load_tokenizer()(["<q> where is the crab ? <a>"], return_tensors="pt")
    asked.pop("token_type_ids", None)
    with torch.no_grad():
        found = [
            PeftModel.from_pretrained(load_base(), folder).eval()(**asked).logits
            for folder in (exported, ran / "weights" / "steered-0")
        ]
        start = load_base()(**asked).logits
    assert torch.equal(*found)
    assert not torch.allclose(found[0], start, atol=1e-4)


def test_only_weights_json_and_tokenizer_files_are_there_and_nothing_beside_the_folder(exported):
    assert sorted(path.name for path in exported.parent.iterdir()) == ["model"]
    assert sorted(path.name for path in exported.iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "bank", "interptrain.json", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip


def test_no_folder_of_this_machine_is_named(ran, exported):
    for path in exported.rglob("*.*"):
        if path.suffix in (".json", ".md"):
            found = path.read_text()
            assert str(ran.parent) not in found, path
            assert str(Path(cli.__file__).parent) not in found, path
    assert json.loads((exported / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny-world"


def test_the_front_matter_is_yaml_and_names_no_base_that_no_hub_has(exported):
    front = yaml.safe_load((exported / "README.md").read_text().split("---\n")[1])
    assert front == {"library_name": "peft", "tags": ["interptrain", "lora"]}


def test_the_card_carries_provenance_meters_and_what_the_other_arms_measured(ran, exported, facts):
    card, report = (exported / "README.md").read_text(), read_report(ran / "report.json")
    (data,) = report["data"]
    for said in (
        data["sha256"],
        "16 examples",
        ConceptBank.load(ran / "bank").digest(),
        "The concept 'data' is removed from every",
    ):
        assert said in card
    for arm in report["arms"]:
        for value in arm["runs"][0]["scores"].values():
            assert f"{value:.3g}" in card
    assert "was not measured" not in card
    assert "What the model says was not scored" in card
    for arm in report["arms"]:
        (*_, last) = arm["runs"][0]["curves"]["concept/data/realised/neutral/fraction"]
        assert f"| {last:.3g} |" in card
    demand = [value for value in report["arms"][1]["runs"][0]["curves"]["concept/data/demand"] if value is not None]
    assert facts["meters"]["data"]["demand"] == demand[-1]
    assert f"| data | demand | {demand[-1]:.3g} |" in card
    for heading in ("What acted", "What was prevented, and what it cost", "Meters at the end", "Limits"):
        assert f"## {heading}" in card


def test_the_facts_are_whole(exported, facts):
    import hashlib

    assert facts["schema"] == EXPORT_SCHEMA
    for name, digest in facts["files"].items():
        assert hashlib.sha256((exported / name).read_bytes()).hexdigest() == digest
    assert {each["kind"] for each in facts["scores"]} == {"before", "unsteered", "random", "other"}


def test_the_bank_is_exported_without_its_dictionary(ran, exported):
    bank, own = ConceptBank.load(exported / "bank"), ConceptBank.load(ran / "bank")
    assert bank.digest() == own.digest()
    assert not bank.readouts


def test_what_was_not_measured_is_said_plainly(ran, tmp_path):
    report = json.loads((ran / "report.json").read_text())
    report["arms"] = [arm for arm in report["arms"] if arm["name"] == "steered"]
    card = (export(_meddled(ran, tmp_path, report), tmp_path / "to").folder / "README.md").read_text()
    assert "what the steering prevented, and what it cost, was not measured" in card
    assert "No control along random directions was run" in card


def test_the_unsteered_arm_s_card_does_not_speak_of_steering(ran, tmp_path):
    card = (export(ran, tmp_path / "to", arm="observed").folder / "README.md").read_text()
    assert "This is the unsteered run" in card
    assert "was not measured" not in card


def test_files_of_other_kinds_and_links_are_left_out_by_name(ran, tmp_path):
    run = _meddled(ran, tmp_path, json.loads((ran / "report.json").read_text()))
    weights = run / "weights" / "steered-0"
    (weights / "pytorch_model.bin").write_bytes(b"pickle")
    (weights / "modeling_evil.py").write_text("import os")
    (weights / "vocab.json").symlink_to("/etc/hostname")
    config = json.loads((weights / "adapter_config.json").read_text())
    (weights / "adapter_config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))
    found = export(run, tmp_path / "to")
    assert found.left_out == ("modeling_evil.py", "pytorch_model.bin", "vocab.json")
    assert not any(name in found.files for name in found.left_out)
    assert "modeling\\_evil.py" in (found.folder / "README.md").read_text()
    assert "auto_map" not in json.loads((found.folder / "adapter_config.json").read_text())


def test_malicious_texts_are_harmless_in_card_and_facts(ran, tmp_path):
    report = _poisoned(json.loads((ran / "report.json").read_text()))
    folder = export(_meddled(ran, tmp_path, report), tmp_path / "to", arm="steered").folder
    card, document = (folder / "README.md").read_text(), (folder / "interptrain.json").read_text()
    assert "<" not in card
    assert "<" not in document
    assert card.count("\n---\n") == 1  # the end of the front matter
    assert "license" not in yaml.safe_load(card.split("---\n")[1])
    assert not re.search(r"(?<!\\)\]\(", card)
    assert "alert" in card
    assert json.loads(document)["title"] == EVIL
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "to"]


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("a\n\n# b", "a \\# b"),
        ("--- x", "\\--- x"),
        ("`code`", "\\`code\\`"),
        ("a|b", "a\\|b"),
        ("x\u202ey\x00z", "xyz"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
        ("@someone www.a.b http://c", "\\@someone www\\.a.b http\\://c"),
    ],
)
def test_a_text_of_the_card_is_one_line_without_markup(hostile, shown):
    assert text(hostile) == shown


@pytest.mark.parametrize("base", ['x"\ny: z', "../../etc", "a/b/c", "-rf", "x" * 200])
def test_a_base_that_is_no_hub_s_name_is_kept_out_of_the_front_matter(ran, tmp_path, base):
    report = json.loads((ran / "report.json").read_text())
    report["config"]["model"] = base
    card = (export(_meddled(ran, tmp_path, report), tmp_path / "to").folder / "README.md").read_text()
    assert set(yaml.safe_load(card.split("---\n")[1])) == {"library_name", "tags"}


def test_a_base_of_the_hub_is_named(ran, tmp_path):
    report = json.loads((ran / "report.json").read_text())
    report["config"]["model"] = "Qwen/Qwen3-1.7B"
    folder = export(_meddled(ran, tmp_path, report), tmp_path / "to").folder
    front = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    assert front["base_model"] == "Qwen/Qwen3-1.7B"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "Qwen/Qwen3-1.7B"


def test_a_whole_model_is_exported_as_one_that_transformers_loads(ran, tmp_path):
    report = json.loads((ran / "report.json").read_text())
    report["config"]["model"] = "/home/me/models/mine"
    run = _meddled(ran, tmp_path, report)
    weights, model = run / "weights" / "steered-0", load_base()
    for path in weights.iterdir():
        path.unlink()
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    model.save_pretrained(weights)
    config = json.loads((weights / "config.json").read_text())
    (weights / "config.json").write_text(json.dumps({**config, "_name_or_path": "/home/me/models/mine"}))
    folder = export(run, tmp_path / "to").folder
    found = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(found.lm_head.weight, model.lm_head.weight)
    card = (folder / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1]) == {"library_name": "transformers", "tags": ["interptrain"]}
    assert "A fine-tuned copy of mine" in card
    assert "The base model is not known to be on a hub." in card
    assert "The tokenizer is the base model's." in card
    assert "/home" not in card + (folder / "interptrain.json").read_text() + (folder / "config.json").read_text()


@pytest.mark.parametrize("weights", ["../secret", "/etc", "", ".", "weights/../../secret"])
def test_weights_outside_of_the_run_are_refused(ran, tmp_path, weights):
    (tmp_path / "secret").mkdir()
    report = json.loads((ran / "report.json").read_text())
    report["arms"][1]["runs"][0]["weights"] = weights
    with pytest.raises(ValueError, match="outside of the run"):
        export(_meddled(ran, tmp_path, report), tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_weights_behind_a_link_out_of_the_run_are_refused(ran, tmp_path):
    run = _meddled(ran, tmp_path, json.loads((ran / "report.json").read_text()))
    (run / "weights" / "steered-0").rename(tmp_path / "elsewhere")
    (run / "weights" / "steered-0").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="outside of the run"):
        export(run, tmp_path / "to")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist; a recipe writes it at its end"),
        ('{"schema": 1, "arms": [', "is not JSON"),
        ("[1, 2]", "holds a list, expected an object"),
        ('{"schema": 7}', "has schema 7"),
        ('{"schema": 1, "arms": [{"name": "steered"}]}', "not what a recipe writes"),
        ('{"schema": 1, "arms": 3}', "not what a recipe writes"),
    ],
)
def test_a_report_that_is_missing_or_corrupt_is_an_error_that_says_so(tmp_path, capsys, content, message):
    (tmp_path / "run").mkdir()
    if content is not None:
        (tmp_path / "run" / "report.json").write_text(content)
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(tmp_path / "run"), "--to", str(tmp_path / "to")])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "to").exists()


def test_truncated_weights_are_refused_and_nothing_is_left(ran, tmp_path):
    run = _meddled(ran, tmp_path, json.loads((ran / "report.json").read_text()))
    file = run / "weights" / "steered-0" / "adapter_model.safetensors"
    assert load_file(file)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        export(run, tmp_path / "to")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_export_that_fails_half_way_leaves_nothing(ran, tmp_path):
    run = _meddled(ran, tmp_path, json.loads((ran / "report.json").read_text()))
    (run / "bank" / "bank.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        export(run, tmp_path / "to")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_that_holds_something_is_not_touched_and_an_empty_one_is_taken(ran, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note").write_text("kept")
    for taken in ("mine", "mine/note"):
        with pytest.raises(ValueError, match="is there already"):
            export(ran, tmp_path / taken)
    assert (tmp_path / "mine" / "note").read_text() == "kept"
    (tmp_path / "empty").mkdir()
    assert "README.md" in export(ran, tmp_path / "empty").files


def test_an_unknown_arm_or_seed_is_refused_with_those_there_are(ran, tmp_path):
    with pytest.raises(ValueError, match="observed, steered, random; there is no 'stered'"):
        export(ran, tmp_path / "to", arm="stered")
    with pytest.raises(ValueError, match="has the seeds 0, not 3"):
        export(ran, tmp_path / "to", seed=3)


def test_a_run_without_a_bank_and_without_a_data_file_is_exported_too(ran, tmp_path):
    """As `pirate-arithmetic` writes it."""
    report = small_report()
    run = _meddled(ran, tmp_path, report)
    (run / "runs").mkdir()
    (run / "weights" / "steered-0").rename(run / "runs" / "a")
    for arm in report["arms"]:
        arm["runs"][0]["weights"] = "runs/a"
    (run / "report.json").write_text(json.dumps(report))
    for path in (run / "bank").iterdir():
        path.unlink()
    (run / "bank").rmdir()
    with pytest.raises(ValueError, match="name one with arm"):
        export(run, tmp_path / "to")
    card = (export(run, tmp_path / "to", arm="suppress-pirate").folder / "README.md").read_text()
    assert "bank: the run kept none" in card
    assert "the run does not say which file" in card
    assert "No control along random directions was run" in card
    assert "| pirate | demand |" in card


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("/home/me/data/a.jsonl", "a.jsonl"),
        ("read from '/home/me/a' twice", "read from 'a' twice"),
        ("C:\\Users\\me\\a.jsonl", "a.jsonl"),
        ("org/model and 1/2", "org/model and 1/2"),
        ("concept/pirate/demand", "concept/pirate/demand"),
    ],
)
def test_of_an_absolute_path_only_the_last_part_is_told(said, left):
    assert unplaced(said) == left


def _meddled(ran: Path, tmp_path: Path, report: dict) -> Path:
    """A copy of the run with another report."""
    import shutil

    run = tmp_path / "run"
    shutil.copytree(ran, run, ignore=shutil.ignore_patterns("wandb", "curves*", "*.html"))
    (run / "report.json").write_text(json.dumps(report))
    return run


def _poisoned(report: dict) -> dict:
    """Hostile words in every text that a user or a file can bring."""
    report |= {"title": EVIL, "summary": EVIL, "limits": [EVIL], "created": EVIL}
    report["config"] |= {"model": EVIL, "suppress": [EVIL]}
    report["versions"]["interptrain"] = EVIL
    for each in report["data"]:
        each |= {"name": EVIL, "says": EVIL, "sha256": EVIL}
    for each in report["measures"]:
        each |= {"label": EVIL, "says": EVIL}
    for each in report["concepts"]:
        each |= {"says": EVIL, "hook": EVIL, "name": EVIL}
    for each in report["verdicts"]:
        each |= {"question": EVIL, "answer": EVIL, "rule": EVIL}
    report["verdicts"] += [{"question": EVIL, "status": EVIL, "answer": EVIL, "rule": EVIL, "numbers": {}}]
    report["arms"] = [
        {**arm, "says": EVIL, "name": arm["name"] if arm["name"] == "steered" else EVIL} for arm in report["arms"]
    ]
    curves = report["arms"][1]["runs"][0]["curves"]
    for key in [key for key in curves if key.startswith("concept/data/")]:
        curves[key.replace("data", EVIL)] = curves[key]
    curves[f"interptrain/gate/{EVIL}/tokens"] = [0.5] * len(curves["step"])
    return report
