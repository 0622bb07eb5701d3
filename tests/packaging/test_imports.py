"""`import interptrain` brings torch and the core's own dependencies: no trainer, model, SAE, logger or plots."""

import json
import subprocess
import sys

TRAINERS = ("lightning", "pytorch_lightning")
MODELS = ("transformers", "peft", "sae_lens")
HEAVY = {*TRAINERS, *MODELS, "wandb", "wandb_workspaces", "tensorboard", "IPython", "matplotlib", "jinja2", "sklearn"}


def modules_after(statement: str) -> set[str]:
    code = f"{statement}; import json, sys; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_imports_no_trainer_model_sae_logging_or_plotting_library():
    assert not modules_after("import interptrain") & HEAVY


def test_importing_the_command_line_and_the_recorders_imports_none_either():
    assert not modules_after("import interptrain.cli, interptrain.recorders") & HEAVY


def test_importing_the_tiny_world_imports_no_trainer_or_sae_library():
    assert not modules_after("import interptrain.tiny_world") & HEAVY


def test_the_package_imports_neither_its_callbacks_nor_its_recipes():
    loaded = modules_after("import interptrain")
    assert not {name for name in loaded if name.startswith(("interptrain.callbacks", "interptrain.recipes"))}
