"""The arrows between parts: kept by the package, and each contract breaks when its arrow is drawn."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint()"]

# contract: (file, import) that must break it
FORBIDDEN = {
    "Only the command line and its commands know the recipes": [
        ("steerer.py", "import interptrain.recipes"),
        ("callbacks/lightning.py", "import interptrain.recipes"),
        ("__init__.py", "import interptrain.recipes"),
    ],
    "Only the command line knows its commands": [
        ("steerer.py", "import interptrain.commands"),
        ("recipes/sft.py", "import interptrain.commands"),
    ],
    "Only recipes know the callbacks": [
        ("steerer.py", "from interptrain.callbacks.lightning import ConceptSteering"),
        ("cli.py", "import interptrain.callbacks.lightning"),
    ],
    "Nothing in the package imports its tests or benchmarks": [
        ("report.py", "from tests.helpers import anything"),
        ("report.py", "import benchmarks.steering"),
    ],
    "A callback knows no other callback": [
        ("callbacks/second.py", "import interptrain.callbacks.lightning"),
    ],
    "Callbacks leave the mathematics to the steerer": [
        ("callbacks/lightning.py", "from interptrain.projection.reference import project"),
    ],
    "Each trainer, model, SAE and logging library has one file of its own": [
        ("steerer.py", "import pytorch_lightning"),
        ("steerer.py", "from lightning.pytorch import Trainer"),
        ("callbacks/lightning.py", "import transformers"),
        ("sites/__init__.py", "from transformers.pytorch_utils import Conv1D"),
        ("sites/__init__.py", "import peft"),
        ("concepts/bank.py", "from sae_lens import SAE"),
        ("recorders/__init__.py", "import wandb"),
        ("report.py", "def later():\n    import wandb"),
        ("recorders/memory.py", "import wandb"),
        ("recorders/dashboard.py", "import wandb_workspaces.workspaces"),
        ("recorders/notebook.py", "from IPython.display import display"),
        ("recorders/jsonl.py", "from tensorboard.summary import Writer"),
    ],
    "Rules see coefficients, never parameters": [
        ("steering/rules.py", "import interptrain.sites"),
        ("steering/rules.py", "import interptrain.projection"),
        ("steering/rules.py", "import interptrain.steerer"),
    ],
    "Projection is mathematics alone": [
        ("projection/frame.py", "import interptrain.concepts.bank"),
        ("projection/__init__.py", "import interptrain.report"),
    ],
    "The reference does not know the kernels": [
        ("projection/reference.py", "import interptrain.projection.cuda"),
        ("projection/grouped.py", "import interptrain.projection.kernels"),
        ("projection/kernels.py", "import interptrain.projection.cuda"),
    ],
    "A bank does not know where its directions come from": [
        ("concepts/bank.py", "import interptrain.concepts.saelens"),
        ("concepts/bank.py", "import interptrain.concepts.contrast"),
    ],
    "The steerer knows recorders by their protocol only": [
        ("steerer.py", "from interptrain.recorders.memory import MemoryRecorder"),
        ("report.py", "import interptrain.recorders.jsonl"),
    ],
}


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LINT, "--no-logo", "--no-cache"], cwd=folder, capture_output=True, text=True, check=False)


def contracts(output: str, verdict: str) -> set[str]:
    return {line.partition(f" {verdict}")[0] for line in output.splitlines() if f" {verdict}" in line}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package's code that a test may spoil."""
    code = shutil.ignore_patterns("__pycache__", "data")
    shutil.copyfile(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    for folder in ("interptrain", "callbacks", "recipes"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=code)
    return tmp_path


def test_the_package_keeps_every_contract():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert contracts(done.stdout, "KEPT") == FORBIDDEN.keys()


@pytest.mark.parametrize(
    ("contract", "file", "line"),
    [(contract, file, line) for contract, arrows in FORBIDDEN.items() for file, line in arrows],
)
def test_a_forbidden_import_breaks_its_contract(copy: Path, contract: str, file: str, line: str):
    with (copy / "interptrain" / file).open("a") as source:
        source.write(f"\n{line}\n")
    done = lint(copy)
    assert done.returncode == 1, done.stdout + done.stderr
    assert contract in contracts(done.stdout, "BROKEN"), done.stdout


def test_the_linted_callbacks_and_recipes_are_the_folders_at_the_top():
    for name in ("callbacks", "recipes", "csrc"):
        link = ROOT / "interptrain" / name
        assert link.is_symlink(), f"interptrain/{name} is no symlink; was the checkout made without them?"
        assert link.resolve() == ROOT / name
