"""The recipe for a model and data of one's own, on the embedded model: what it writes, and what it refuses first."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean
from threading import Thread

import pytest
import torch
from peft import PeftModel
from sae_lens import StandardSAE, StandardSAEConfig
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from interptrain import ConceptBank, cli
from interptrain.recorders import read_curves
from interptrain.recorders.document import read_report
from interptrain.tiny_world import load_base, load_sae, load_tokenizer
from interptrain.tiny_world.corpus import document


def write_documents(file: Path, count: int, voice: str, seed: int) -> Path:
    """Questions about facts with answers in a voice, as a user's JSONL."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        prompt, answer = document(rng, "fact", voice).text.removesuffix(" <e>").split(" <a> ")
        rows.append(json.dumps({"prompt": f"{prompt} <a>", "completion": f" {answer}"}))
    file.write_text("\n".join(rows))
    return file


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    return {
        "data": write_documents(folder / "data.jsonl", 60, "pirate", 0),
        "shown": write_documents(folder / "shown.jsonl", 40, "pirate", 1),
        "absent": write_documents(folder / "absent.jsonl", 40, "plain", 2),
    }


@pytest.fixture(scope="module")
def steered(texts, tmp_path_factory):
    """A run folder: pirate from a contrast in the SAE, suppressed and gated, with controls."""
    out = tmp_path_factory.mktemp("runs") / "steered"
    status = cli.main([
        "recipe", "run", "sft", "--model", "tiny-world", "--data", str(texts["data"]), "--out", str(out),
        "--sae", "tiny-world", "--contrast", f"pirate={texts['shown']},{texts['absent']}", "--suppress", "pirate",
        "--gate", "pirate", "--controls", "--steps", "6", "--learning-rate", "2e-3", "--group", "4",
        "--probe-every", "3",
    ])  # fmt: skip
    assert status == 0
    return out


def test_every_arm_is_written_and_reported(steered):
    report = read_report(steered / "report.json")
    assert [arm["name"] for arm in report["arms"]] == ["observed", "steered", "random"]
    assert report["config"]["steps"] == 6
    assert [concept["name"] for concept in report["concepts"]] == ["pirate", "random-pirate"]
    assert len(report["concepts"][0]["latents"]) == 4
    page = (steered / "report.html").read_text()
    assert "held-out loss" in page
    assert (steered / "curves.png").stat().st_size > 10_000
    for arm in report["arms"]:
        curves = read_curves(steered / "curves" / f"{arm['name']}-0.jsonl")
        assert curves["step"] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
        written = arm["runs"][0]["curves"]
        assert written["concept/pirate/demand"] == pytest.approx(curves["concept/pirate/demand"], rel=1e-5)


def test_the_bank_is_kept_and_pirate_s_latents_are_those_that_tell_pirate_talk(steered):
    bank = ConceptBank.load(steered / "bank")
    assert bank.names == ("pirate", "random-pirate")
    assert set(bank.readouts) == {bank.hooks[0]}
    report = read_report(steered / "report.json")
    observed = report["arms"][0]["runs"][0]["curves"]
    demand = {name: mean(observed[f"concept/{name}/demand/z"]) for name in bank.names}
    assert demand["pirate"] > 2 > demand["random-pirate"]


def test_what_was_asked_of_the_steered_arm_was_achieved_and_of_the_others_not(steered):
    arms = {arm["name"]: arm["runs"][0]["curves"] for arm in read_report(steered / "report.json")["arms"]}
    assert max(map(abs, arms["steered"]["concept/pirate/achieved"])) < 1e-3
    assert max(map(abs, arms["random"]["concept/random-pirate/achieved"])) < 1e-3
    assert "interptrain/gate/pirate/tokens" in arms["steered"]
    assert "interptrain/gate/pirate/tokens" not in arms["observed"]


def test_the_trained_adapter_loads_on_the_base_and_is_what_was_scored(steered):
    report = read_report(steered / "report.json")
    run = report["arms"][1]["runs"][0]
    model = PeftModel.from_pretrained(load_base(), steered / run["weights"]).eval()
    tokenizer, sample = load_tokenizer(), run["samples"][0]
    asked = tokenizer(sample["prompt"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        said = model.generate(input_ids=asked, max_new_tokens=48, do_sample=False, pad_token_id=0)
    assert tokenizer.decode(said[0, asked.shape[1] :], skip_special_tokens=True) == sample["answer"]


def test_the_held_out_examples_are_not_trained_on(texts, steered):
    rows = [json.loads(line)["prompt"] for line in texts["data"].read_text().splitlines()]
    assert all(sample["prompt"] in rows for sample in read_report(steered / "report.json")["before"]["samples"])


def refused(capsys, out, *arguments):
    """What is said; nothing is left behind."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["recipe", "run", "sft", "--out", str(out), *map(str, arguments)])
    assert ended.value.code == 2
    assert not out.exists()
    return " ".join(capsys.readouterr().err.split()).split("error: ", 1)[1]


def an_sae(folder, *, width=128, hook="blocks.1.hook_resid_post", model=None):
    sae = StandardSAE(StandardSAEConfig(d_in=width, d_sae=64))
    sae.cfg.metadata.hook_name, sae.cfg.metadata.model_name = hook, model
    sae.save_model(folder)
    return folder


MODEL = ("--model", "tiny-world")


def test_an_sae_that_is_not_the_model_s_is_refused_before_anything_is_written(tmp_path, capsys, texts):
    given = (*MODEL, "--data", texts["data"], "--latents", "pirate=1,2", "--sae")
    out = tmp_path / "out"
    assert "have width 64 but" in refused(capsys, out, *given, an_sae(tmp_path / "narrow", width=64))
    plain = given[: -len(("--latents", "pirate=1,2", "--sae"))]
    for more in ((), ("--contrast", f"pirate={texts['shown']},{texts['absent']}")):
        said = refused(capsys, out, *plain, *more, "--sae", tmp_path / "narrow")
        assert "the SAE reads activations of width 64 but the model has 128" in said
    trained = load_sae()
    trained.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
    trained.save_model(tmp_path / "misplaced")
    said = refused(capsys, out, *given, tmp_path / "misplaced")
    assert "at blocks.2.hook_resid_post: was the SAE trained there? sae_check: false goes on regardless" in said
    deep = an_sae(tmp_path / "deep", hook="blocks.9.hook_resid_post")
    assert "is at layer 9 but 'base_model.model.model.layers' has 4 blocks" in refused(capsys, out, *given, deep)
    assert "asks for latent 99 but the SAE has 64" in refused(
        capsys, out, *given[:-2], "pirate=99", "--sae", an_sae(tmp_path / "small")
    )
    assert "cannot load the SAE" in refused(capsys, out, *given, tmp_path)
    assert "is no folder; of a release one SAE is named with sae_id" in refused(
        capsys, out, *given, "gpt2-small-res-jb"
    )


def test_data_that_cannot_be_used_are_refused_before_the_model_is_loaded(tmp_path, capsys, texts):
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n')
    out = tmp_path / "out"
    assert "line 2: Expecting value" in refused(capsys, out, *MODEL, "--data", broken)
    assert "expected 'story', found 'prompt', 'completion'" in refused(
        capsys, out, *MODEL, "--data", texts["data"], "--text-column", "story"
    )
    (tmp_path / "empty.jsonl").touch()
    assert "is empty" in refused(capsys, out, *MODEL, "--data", tmp_path / "empty.jsonl")
    assert "has 4 examples, expected at least 8" in refused(
        capsys, out, *MODEL, "--data", write_documents(tmp_path / "few.jsonl", 4, "plain", 0)
    )
    assert "leaves no answer" in refused(capsys, out, *MODEL, "--data", texts["data"], "--max-length", 2)
    assert refused(capsys, out, *MODEL).startswith("data is needed: --data FILE.jsonl")


def a_gpt2(folder, *, words):
    """A folder with a GPT-2 of 32 learnt positions and so many words, and the embedded model's tokenizer."""
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    GPT2LMHeadModel(GPT2Config(vocab_size=words, **sizes, bos_token_id=0, eos_token_id=None)).save_pretrained(folder)
    load_tokenizer().save_pretrained(folder)
    return folder


def test_texts_longer_than_the_model_was_made_for_are_cut_off_and_it_is_said(tmp_path, capsys):
    data, model = tmp_path / "long.jsonl", a_gpt2(tmp_path / "model", words=len(load_tokenizer()))
    asked = [{"prompt": "the " * 80, "completion": "river"}] * 5  # of which no answer is left
    rows = [{"prompt": "the " * length, "completion": "river " * 80} for length in range(1, 31)]
    data.write_text("\n".join(map(json.dumps, [*asked, *rows])))
    out = tmp_path / "out [red] [/b]"  # which is no markup
    given = ["--model", str(model), "--data", str(data), "--steps", "2", "--out", str(out)]
    assert cli.main(["recipe", "run", "sft", *given]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "longer examples are cut off at 32 tokens, which is all that the model was made for" in said
    assert "5 examples are not used" in said
    assert f"report: {out / 'report.html'}" in said
    report = read_report(out / "report.json")
    assert report["data"][0]["says"] == "28 trained on, 2 held out"
    data.write_text("\n".join([json.dumps({"text": "the river " * 80})] * 12))
    assert cli.main(["recipe", "run", "sft", *given[:-1], str(tmp_path / "texts")]) == 0


def test_a_tokenizer_with_words_that_the_model_does_not_have_is_refused(tmp_path, capsys, texts):
    model = a_gpt2(tmp_path / "model", words=20)
    said = refused(capsys, tmp_path / "out", "--model", model, "--data", texts["data"])
    assert "but the model has 20, counted from 0: it is another model's, or words were added" in said


def test_a_model_too_large_for_the_memory_is_refused(tmp_path, capsys, texts):
    said = refused(capsys, tmp_path / "out", *MODEL, "--data", texts["data"], "--batch", 10**9)
    assert "needs at least" in said
    assert "a smaller batch or max_length" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--suppress", "royal"), "unknown concept 'royal'; this bank has data"),
        (("--latents", "pirate=1"), "latents are of an SAE: name it with sae"),
        (("--concepts", "bank", "--sae", "tiny-world"), "concepts names a finished bank"),
        (("--concepts", "bank"), "'bank/bank.json' does not exist"),
        (("--amplify", "data=0.5"), "amplify needs a finite gain above 1, found 0.5"),
        (("--hook", "blocks.1.hook_resid"), "is not a place in the residual stream"),
        (("--held-out", "2"), "held_out is a share between 0 and 1"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, capsys, texts, arguments, message):
    assert message in refused(capsys, tmp_path / "out", *MODEL, "--data", texts["data"], *arguments)


def test_a_folder_that_cannot_be_written_is_refused_before_a_model_is_looked_for(tmp_path, texts, capsys):
    (tmp_path / "file").touch()
    said = refused(capsys, tmp_path / "file" / "out", "--model", "no-such-model", "--data", texts["data"])
    assert said.endswith(f"'{tmp_path / 'file'}' is a file; name another folder (--out)")


def test_a_run_that_is_cut_off_while_its_bank_is_written_is_started_anew(tmp_path, texts, monkeypatch):
    def interrupted(bank, folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(ConceptBank, "save", interrupted)
    given = ["--data", str(texts["data"]), "--out", str(tmp_path / "out")]
    assert cli.main(["recipe", "run", "sft", *MODEL, *given]) == 130
    assert list((tmp_path / "out").iterdir()) == []


def test_an_interrupted_run_says_how_it_goes_on(tmp_path, texts, capsys):
    out, handler = tmp_path / "out", signal.getsignal(signal.SIGINT)

    def interrupt():
        while not list(out.glob("unfinished/*/*.ckpt")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    Thread(target=interrupt, daemon=True).start()
    given = ["--data", str(texts["data"]), "--out", str(out), "--steps", "2000", "--save-every", "2"]
    try:
        assert cli.main(["recipe", "run", "sft", *MODEL, *given]) == 130
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
    assert capsys.readouterr().out.endswith("the same command with --resume goes on with this run\ninterrupted\n")


def written(folder):
    """When each file was written; W&B's own process may still write its logs."""
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*") if "wandb" not in path.parts}


def test_a_folder_that_holds_a_run_is_not_written_over(steered, texts, capsys):
    before = written(steered)
    given = ["recipe", "run", "sft", *MODEL, "--data", str(texts["data"]), "--out", str(steered)]
    for more, message in (
        ([], "holds a finished run; name another folder"),
        (["--resume"], "holds no run that was cut"),
    ):
        with pytest.raises(SystemExit):
            cli.main([*given, *more])
        assert message in " ".join(capsys.readouterr().err.split())
    assert written(steered) == before


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(tmp_path, texts):
    data = tmp_path / "data.jsonl"
    data.write_text(texts["data"].read_text())
    given = [
        *MODEL, "--data", str(data), "--steps", "8", "--save-every", "2", "--suppress", "data",
        "--learning-rate", "2e-3", "--accumulate", "2", "--probe-every", "3",
    ]  # fmt: skip
    run = [sys.executable, "-m", "interptrain", "recipe", "run", "sft", *given, "--out"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
    subprocess.run([*run, str(tmp_path / "whole")], check=True, **quiet)

    cut = tmp_path / "cut"
    process = subprocess.Popen([*run, str(cut)], **quiet)
    while not list(cut.glob("unfinished/steered-0/step=4*.ckpt")):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    said = subprocess.run([*run, str(cut), "--steps", "9", "--resume"], capture_output=True, text=True, check=False)
    assert "was begun with another steps" in " ".join(said.stderr.split())
    data.write_text(texts["data"].read_text() + "\n" + texts["data"].read_text().splitlines()[0])
    said = subprocess.run([*run, str(cut), "--resume"], capture_output=True, text=True, check=False)
    assert "is not what the run in" in " ".join(said.stderr.split())
    data.write_text(texts["data"].read_text())
    subprocess.run([*run, str(cut), "--resume"], check=True, **quiet)

    assert not (cut / "unfinished").exists()
    whole, resumed = (read_report(folder / "report.json")["arms"][0]["runs"][0] for folder in (tmp_path / "whole", cut))
    for key in ("scores", "checkpoints", "curves", "samples"):
        assert resumed[key] == whole[key]
    weights = [
        load_file(folder / "weights/steered-0/adapter_model.safetensors") for folder in (tmp_path / "whole", cut)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0] | weights[1])
