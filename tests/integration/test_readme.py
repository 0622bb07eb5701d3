"""The README's examples run as they are written."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

from interptrain import ConceptBank, suppress
from interptrain.recipes import RECIPES
from interptrain.recipes.settings import add_options, ready_configurations
from tests.helpers.models import HOOK, WIDTH, Sentences, llama, loader

README = Path(__file__).parents[2] / "README.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_trainer_example_runs_and_is_about_ten_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = blocks("python")[0]
    assert len([line for line in example.splitlines() if line.strip()]) <= 12
    names = {}
    exec(compile(example, "README.md", "exec"), names)  # the README is ours
    assert names["trainer"].global_step == 20
    assert "concept/pirate/demand" in names["trainer"].callback_metrics


def test_the_bank_example_runs_on_a_saved_sae(tmp_path, monkeypatch):
    from sae_lens import TopKSAE, TopKSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    monkeypatch.chdir(tmp_path)
    metadata = SAEMetadata(model_name="some-model", hook_name="blocks.1.hook_resid_post")
    TopKSAE(TopKSAEConfig(d_in=16, d_sae=64, k=4, metadata=metadata)).save_model("my-sae")
    names = {}
    exec(compile(blocks("python")[1], "README.md", "exec"), names)
    assert names["ConceptBank"].load("my-bank").names == ("pirate", "arithmetic")


def test_the_other_loops_examples_run(tmp_path, capsys):
    model, arguments = llama(), TrainingArguments(str(tmp_path), max_steps=2, use_cpu=True, report_to=[])
    bank = ConceptBank.from_directions({"pirate": torch.ones(WIDTH)}, hook=HOOK)
    names = {"bank": bank, "suppress": suppress, "model": model, "Trainer": Trainer, "arguments": arguments}
    of_one_loop = {
        "transformers": {"data": Sentences()},
        "torch": {"data": loader(), "optimizer": torch.optim.AdamW(model.parameters())},
    }
    for module, own in of_one_loop.items():
        (example,) = (block for block in blocks("python") if f"interptrain.callbacks.{module}" in block)
        exec(compile(example, "README.md", "exec"), names | own)
        assert "what the last steps asked for" in capsys.readouterr().out


COMMANDS = re.findall(r"^interptrain recipe run (\S+) *([^#\n]*)", "\n".join(blocks("bash")), re.MULTILINE)


@pytest.mark.parametrize(("name", "options"), COMMANDS)
def test_every_recipe_that_is_run_is_there_and_takes_the_options(name, options):
    recipe, _, ready = name.partition("/")
    parser = argparse.ArgumentParser()
    add_options(parser, importlib.import_module(RECIPES[recipe]).Config)
    parser.parse_args(shlex.split(options))
    assert not ready or ready in ready_configurations(recipe)


@pytest.mark.parametrize("path", re.findall(r"\]\(((?!https?:)[^)#]+)\)", README.read_text()))
def test_every_link_to_a_file_leads_somewhere(path):
    assert (README.parent / path).exists()
