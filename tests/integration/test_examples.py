"""Every script in examples/ runs by the command in its docstring, from anywhere, and shows the curves of its run."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
CONCEPTS = ("pirate", "royal", "arithmetic", "plus", "minus")
COMMAND = re.compile(r"^ +(python|torchrun)( .*)? examples/(\w+\.py)$", re.MULTILINE)


def command_of(script):
    """What the docstring says, with this interpreter and the script's own path."""
    program, options, name = COMMAND.search(ast.get_docstring(ast.parse(script.read_text()), clean=False)).groups()
    assert name == script.name
    run = [sys.executable] if program == "python" else [str(Path(sys.executable).with_name(program))]
    return [*run, *(options or "").split(), str(script)]


def test_there_is_one_for_every_loop():
    assert {script.stem for script in SCRIPTS} == {
        "fsdp2",
        "hugging_face",
        "lightning_trainer",
        "plain_torch",
        "trl_sft",
    }


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_it_is_short_and_marks_what_to_swap(script):
    text = script.read_text()
    assert len(text.splitlines()) <= 40
    assert all(len(re.findall(f"# your {what}", text)) == 1 for what in ("model", "data"))
    assert not re.search(r"^(from|import) (tests|benchmarks|examples)\b", text, re.MULTILINE)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_it_runs_by_its_own_command_and_shows_its_curves(script, tmp_path):
    here, temporary = tmp_path / "here", tmp_path / "temporary"
    here.mkdir()
    temporary.mkdir()
    before = set(EXAMPLES.iterdir())
    settings = {"TMPDIR": str(temporary), "PYTHONUTF8": "1", "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command_of(script), cwd=here, env=os.environ | settings, capture_output=True, encoding="utf-8", timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"interptrain: demand over \d+ reports", done.stdout)) == 1
    for concept in CONCEPTS:
        assert re.search(rf"│ {concept} +│ [▁▂▃▄▅▆▇█]{{20,}} +│", done.stdout), concept
    assert not list(here.iterdir())
    assert set(EXAMPLES.iterdir()) == before
