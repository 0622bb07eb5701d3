"""What the documents show can be run: their Python compiles and imports what there is, their commands are taken."""

import argparse
import ast
import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from interptrain.cli import _parser
from interptrain.commands import COMMANDS
from interptrain.recipes import RECIPES
from interptrain.recipes.settings import add_options, ready_configurations

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[str]:
    fenced = re.compile(rf"^```{language}\n(.*?)^```", re.DOTALL | re.MULTILINE)
    return [block for file in DOCUMENTS for block in fenced.findall(file.read_text(encoding="utf-8"))]


def commands() -> list[list[str]]:
    """Every call of `interptrain` in a shell block, in words."""
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in dict.fromkeys(lines) if line.startswith("interptrain ")]


def names_in(module: str) -> set[str]:
    """What can be imported from a module, read from its source: importing a trainer takes seconds."""
    spec = importlib.util.find_spec(module)
    found = set()
    for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.alias(name=name, asname=None):
                found.add(name)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
    return found | {file.stem for folder in spec.submodule_search_locations or () for file in Path(folder).iterdir()}


@pytest.mark.parametrize("block", blocks("python"))
def test_python_compiles_and_imports_what_there_is(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "interptrain":
            assert {each.name for each in node.names} <= names_in(node.module)


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_is_there_and_takes_its_options(words):
    options, more = _parser().parse_known_args(words)
    own = argparse.ArgumentParser()
    if words[:2] == ["recipe", "run"]:
        recipe, _, ready = options.name.partition("/")
        own.add_argument("--config")
        add_options(own, importlib.import_module(RECIPES[recipe]).Config)
        assert not ready or ready in ready_configurations(recipe)
        more = options.options
    elif "words" in options:
        importlib.import_module(COMMANDS[options.words].module).arguments(own)
    own.parse_args(more)


def test_the_maths_says_what_the_code_does():
    text = (ROOT / "docs" / "maths.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    exec(compile(example, "maths.md", "exec"), {})  # the document is ours
    named = re.findall(r"`(interptrain(?:\.\w+)+)`", text)
    assert len(named) > 8
    for name in named:
        module, _, last = name.rpartition(".")
        assert hasattr(importlib.import_module(module), last) or importlib.util.find_spec(name), name
