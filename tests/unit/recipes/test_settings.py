"""Settings from a file, from flags, and what is said of a mistake in either."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import yaml

from interptrain.recipes import RECIPES, settings
from interptrain.recipes.settings import (
    add_options,
    configured,
    default_text,
    option,
    read_settings,
    ready_configurations,
    ready_settings,
)


@dataclass(frozen=True)
class Config:
    model: str = option("a model", "")
    steps: int | None = option("how many")
    rate: float = option("how fast (100 % is all)", 0.5)
    tuning: Literal["lora", "full"] = option("what trains", "lora")
    gate: tuple[str, ...] = option("concepts", ())
    latents: dict[str, tuple[int, ...]] = option("by concept", factory=dict)
    amplify: dict[str, float] = option("by concept", factory=dict)
    control: bool = option("also a control", False)
    out: Path = option("a folder", Path("runs"))
    files: dict[str, tuple[Path, Path]] = option("by concept", factory=dict)

    def __post_init__(self):
        if self.rate <= 0:
            raise ValueError(f"rate must be above 0, found {self.rate}")


def parsed(*arguments):
    parser = argparse.ArgumentParser()
    add_options(parser, Config)
    return vars(parser.parse_args(arguments))


def test_flags_and_a_file_of_the_same_settings_give_the_same_configuration(tmp_path):
    flags = parsed(
        "--model", "gpt2", "--steps", "3", "--tuning", "full", "--gate", "pirate", "royal", "--latents", "pirate=12,55",
        "sums=7", "--amplify", "sums=2", "--control", "--out", "here",
    )  # fmt: skip
    file = tmp_path / "settings.yaml"
    file.write_text(
        "recipe: mine\nmodel: gpt2\nsteps: 3\ntuning: full\ngate: [pirate, royal]\n"
        "latents: {pirate: [12, 55], sums: [7]}\namplify: {sums: 2}\ncontrol: true\nout: here\n"
    )
    expected = Config(
        "gpt2",
        3,
        0.5,
        "full",
        ("pirate", "royal"),
        {"pirate": (12, 55), "sums": (7,)},
        {"sums": 2.0},
        True,
        Path("here"),
    )
    assert configured(Config, flags) == configured(Config, read_settings(file, "mine")) == expected
    assert configured(Config, read_settings(file, "mine"), parsed("--steps", "9", "--no-control")).steps == 9
    assert configured(Config, parsed()) == Config()


def test_the_defaults_that_are_shown_are_the_defaults(tmp_path):
    file = tmp_path / "defaults.yaml"
    file.write_text(default_text("mine", Config, "what it does"))
    assert configured(Config, read_settings(file, "mine")) == Config()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stepps": 1}, "unknown setting 'stepps'; did you mean 'steps'"),
        ({"zzz": 1}, "unknown setting 'zzz'; there are model, steps"),
        ({"steps": "many"}, "steps: input should be a valid integer.*found 'many'"),
        ({"tuning": "half"}, "tuning: input should be 'lora' or 'full', found 'half'"),
        ({"latents": {"pirate": ["x"]}}, r"latents.pirate.0: .*found 'x'"),
        ({"gate": "pirate"}, r"gate: expected a list, such as \[a, b\], found 'pirate'"),
        ({"amplify": 3}, r"amplify: expected a mapping, such as \{name: value\}, found 3"),
        ({"files": {"pirate": ["one"]}}, r"files.pirate: expected 2 values or more, found \['one'\]"),
        ({"rate": 0}, "^rate must be above 0, found 0"),
    ],
)
def test_a_mistaken_setting_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        configured(Config, given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: [", "is not YAML"),
        ("- steps", "holds no settings"),
        ("recipe: other\n", "configures the recipe 'other', not 'mine'"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, text, message):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_settings(file, "mine")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot read the configuration"):
        read_settings(tmp_path / "none.yaml", "mine")


def test_a_pair_without_a_value_is_refused(capsys):
    with pytest.raises(SystemExit):
        parsed("--latents", "pirate")
    assert "expected NAME=VALUE,..., found 'pirate'" in capsys.readouterr().err


READY = [(recipe, name) for recipe in RECIPES for name in ready_configurations(recipe)]


@pytest.mark.parametrize(("recipe", "name"), READY)
def test_every_ready_configuration_is_one_of_its_recipe(recipe, name):
    import importlib

    module = importlib.import_module(RECIPES[recipe])
    data = {"data": "mine.jsonl"} if recipe in ("sft", "narrow-finetune-monitor") else {}
    assert configured(module.Config, ready_settings(recipe, name), data)
    text = settings.ready_text(recipe, name)
    assert yaml.safe_load(text)["recipe"] == recipe
    assert max(map(len, text.splitlines())) <= 120
