from __future__ import annotations

import pytest

from interptrain import __version__, cli
from interptrain.recipes import RECIPES


def test_the_version_is_the_package_s_own(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"interptrain {__version__}\n"


def test_listing_shows_every_recipe_with_one_line(capsys):
    assert cli.main(["recipe", "list"]) == 0
    listed = capsys.readouterr().out
    for name in RECIPES:
        assert name in listed
    assert "pirate" in listed.split("pirate-arithmetic")[1]


def test_an_unknown_recipe_is_refused_with_the_names_there_are(capsys):
    assert _refused(["recipe", "run", "pirate-calculus"], capsys) == (
        f"unknown recipe 'pirate-calculus'; there are: {', '.join(RECIPES)}"
    )


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--data", "mingled", "invalid choice: 'mingled'"),
        ("--steps", "many", "invalid int value: 'many'"),
        ("--seeds", "0", "seeds must be at least 1, found 0"),
        ("--score-every", "-1", "score_every must be at least 1, found -1"),
    ],
)
def test_a_bad_option_is_refused_before_anything_is_written(tmp_path, capsys, option, value, message):
    folder = tmp_path / "out"
    said = _refused(["recipe", "run", "pirate-arithmetic", "--out", str(folder), option, value], capsys)
    assert message in said
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_is_an_error_before_training(tmp_path, capsys):
    file = tmp_path / "taken"
    file.write_text("a file, not a folder")
    said = _refused(["recipe", "run", "pirate-arithmetic", "--out", str(file / "run")], capsys)
    assert said.startswith(f"cannot write to '{file / 'run'}':")


def test_a_tiny_world_folder_that_cannot_be_written_is_an_error_before_pretraining(tmp_path, capsys):
    file = tmp_path / "taken"
    file.write_text("a file, not a folder")
    said = _refused(["tiny-world", "build", "--out", str(file / "world")], capsys)
    assert said.startswith(f"cannot write the tiny world to '{file / 'world'}':")


def test_a_missing_extra_is_named_with_the_command_that_installs_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(cli.EXTRAS, "wandb", ("a_package_that_nobody_has",))
    said = _refused(["recipe", "run", "pirate-arithmetic", "--out", str(tmp_path)], capsys)
    assert said == "needs a_package_that_nobody_has: pip install 'interptrain[wandb]'"


def test_a_mistake_in_a_setting_is_one_line_and_not_behind_the_usage(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["recipe", "run", "sft"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "interptrain recipe run sft: error: model is needed: --model FOLDER, a name on the hub, or tiny-world\n"
    )


def test_a_recipe_s_help_shows_its_options_and_their_defaults(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["recipe", "run", "pirate-arithmetic", "--help"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for option in ("--data {mixed,entangled}", "--tuning {lora,full}", "--seeds SEEDS", "--steps STEPS", "--out OUT"):
        assert option in shown
    assert "(default: 250)" in shown


def _refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err.strip().split("error: ", 1)[1]
