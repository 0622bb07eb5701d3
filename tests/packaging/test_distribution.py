"""The wheel and the sdist: what is in them, and that the wheel works where there is no checkout."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from interptrain._version import __version__

ROOT = Path(__file__).parents[2]
CODE = ("interptrain", "callbacks", "recipes", "csrc")
BUILD_INPUTS = ("pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the wheel and the sdist, built from a copy so that the checkout stays clean."""
    copy = tmp_path_factory.mktemp("distribution")
    for name in BUILD_INPUTS:
        shutil.copyfile(ROOT / name, copy / name)
    for name in CODE:
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return copy / "dist"


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return built / f"interptrain-{__version__}-py3-none-any.whl"


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside the checkout that holds the installed wheel alone."""
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel]
    subprocess.run(command, check=True, capture_output=True)
    return target


def python(installed: Path, *arguments: str) -> str:
    """What Python prints when the installed wheel comes first on its path."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=installed, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def shipped_files() -> set[str]:
    """What an installed package must hold: every file of the code's folders, by its place in the package."""
    paths = (path.relative_to(ROOT) for name in CODE for path in (ROOT / name).rglob("*") if path.is_file())
    inside = (path if path.parts[0] == "interptrain" else "interptrain" / path for path in paths)
    return {path.as_posix() for path in inside if "__pycache__" not in path.parts} - {"interptrain/csrc/README.md"}


def test_the_wheel_holds_every_source_and_data_file_and_nothing_else_but_its_metadata(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == shipped_files()
    assert {"interptrain/callbacks/lightning.py", "interptrain/recipes/__init__.py"} <= names


def test_the_sdist_can_be_built_from_and_brings_the_licence(built: Path):
    root = f"interptrain-{__version__}"
    with tarfile.open(built / f"{root}.tar.gz") as archive:
        names = {name.removeprefix(f"{root}/") for name in archive.getnames()}
    assert shipped_files() | set(BUILD_INPUTS) <= names


def test_the_shipped_weights_stay_under_six_megabytes():
    assert sum(path.stat().st_size for path in (ROOT / "interptrain").rglob("*.safetensors")) < 6e6


def test_the_installed_package_is_not_the_checkout_and_says_its_version(installed: Path):
    code = "import interptrain; print(interptrain.__file__, interptrain.__version__)"
    assert python(installed, "-c", code) == f"{installed / 'interptrain' / '__init__.py'} {__version__}"


def test_the_command_line_says_the_version(installed: Path):
    assert python(installed, "-m", "interptrain", "--version") == f"interptrain {__version__}"


def test_the_console_script_says_the_version(installed: Path):
    assert python(installed, str(installed / "bin" / "interptrain"), "--version") == f"interptrain {__version__}"


def test_the_installed_callbacks_and_recipes_are_importable(installed: Path):
    code = "import interptrain.callbacks.lightning as m, interptrain.recipes as r; print(m.__file__, r.__file__)"
    for file in python(installed, "-c", code).split():
        assert Path(file).is_relative_to(installed)


def test_the_installed_tiny_world_loads_its_weights(installed: Path):
    code = "from interptrain.tiny_world import load_base; print(load_base().config.model_type)"
    assert python(installed, "-c", code) == "llama"


def test_the_version_is_written_once():
    files = [*(ROOT / "interptrain").rglob("*.py"), *(ROOT / "recipes").rglob("*.py"), ROOT / "pyproject.toml"]
    assert [file.name for file in files if f'"{__version__}"' in file.read_text()] == ["_version.py"]
