"""The command line: `interptrain --version`, `doctor`, `recipe list|show|init|run`, `export`, `tiny-world build`."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table

from interptrain._version import __version__
from interptrain.commands import COMMANDS, GROUPS

# What tells that an extra is installed: the package that `pip install 'interptrain[extra]'` brings.
EXTRAS = {
    "lightning": ("pytorch_lightning",),
    "sae": ("sae_lens",),
    "hf": ("transformers", "peft"),
    "wandb": ("wandb",),
    "dashboard": ("wandb_workspaces",),
    "recipes": ("matplotlib", "jinja2", "pydantic", "yaml", "psutil", "datasets"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0; 1 where `doctor` finds something broken; 2 for a mistake in the request; 130 when interrupted.
    """
    parser = _parser()
    options, more = parser.parse_known_args(arguments)
    if more and "words" not in options:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    options.more, console = more, Console()
    try:
        status: int = options.command(options, console)
    except KeyboardInterrupt:
        console.print("[red]interrupted[/]")
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="interptrain", description="Read and steer what a fine-tuning run teaches, concept by concept."
    )
    parser.add_argument("--version", action="version", version=f"interptrain {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    groups: dict[str, Any] = {}

    doctor = commands.add_parser("doctor", help="what is installed, missing or broken, and what mends it")
    doctor.add_argument("--json", action="store_true", help="the same as JSON")
    doctor.add_argument("--no-self-test", action="store_true", help="do not import the packages and train a few steps")
    doctor.set_defaults(command=_doctor)

    recipe = commands.add_parser("recipe", help="list or run an experiment").add_subparsers(
        required=True, metavar="COMMAND"
    )
    listing = recipe.add_parser("list", help="the recipes and what each shows")
    listing.set_defaults(command=_list_recipes)
    show = recipe.add_parser("show", help="print a recipe's settings, or those of a ready configuration")
    show.add_argument("name", metavar="NAME", help="RECIPE or RECIPE/CONFIGURATION")
    show.set_defaults(command=_show_recipe, parser=show)
    init = recipe.add_parser("init", help="copy them to a YAML file, to be edited and run")
    init.add_argument("name", metavar="NAME", help="RECIPE or RECIPE/CONFIGURATION")
    init.add_argument("--to", type=Path, help="file to write (default: NAME.yaml)")
    init.set_defaults(command=_init_recipe, parser=init)
    run = recipe.add_parser("run", help="run one; `recipe run NAME --help` shows its options")
    run.add_argument("name", metavar="NAME", help="RECIPE or RECIPE/CONFIGURATION")
    run.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="the recipe's own options")
    run.set_defaults(command=_run_recipe, parser=run)

    export = commands.add_parser("export", help="a run's adapter or model as a folder for a hub, with a model card")
    export.add_argument("run", type=Path, metavar="RUN", help="folder that a recipe wrote")
    export.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to write; new or empty")
    export.add_argument("--arm", help="which arm (default: the steered one, or the only one)")
    export.add_argument("--seed", type=int, help="which of its runs (default: the first)")
    export.set_defaults(command=_export, parser=export)

    tiny = commands.add_parser("tiny-world", help="the embedded model, its SAE and its concepts").add_subparsers(
        required=True, metavar="COMMAND"
    )
    build = tiny.add_parser("build", help="pretrain the base model and its SAE again, from a seed")
    build.add_argument("--out", type=Path, default=Path("tiny-world"), help="folder to write (default: %(default)s)")
    build.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    build.set_defaults(command=_build_tiny_world, parser=build)

    for words, (_, summary) in COMMANDS.items():
        above = commands
        for word in words[:-1]:
            if word not in groups:
                groups[word] = above.add_parser(word, help=GROUPS[word]).add_subparsers(
                    required=True, metavar="COMMAND"
                )
            above = groups[word]
        # Its own parser is made when it is called: its options, `--help` among them, stay unread here.
        above.add_parser(words[-1], help=summary, add_help=False).set_defaults(command=_run_command, words=words)
    return parser


def _run_command(options: argparse.Namespace, console: Console) -> int:
    module, summary = COMMANDS[options.words]
    command = importlib.import_module(module)
    parser = argparse.ArgumentParser(prog=f"interptrain {' '.join(options.words)}", description=summary)
    command.arguments(parser)
    given = parser.parse_args(options.more)
    _require_extras(parser, command.NEEDS)
    try:
        prepared = command.prepare(given)
    except ValueError as mistake:
        _refuse(parser, mistake)
    status: int = command.run(prepared, console)
    return status


def _doctor(options: argparse.Namespace, console: Console) -> int:
    from interptrain.doctor import report

    return report(console, self_test=not options.no_self_test, document=options.json)


def _list_recipes(_: argparse.Namespace, console: Console) -> int:
    from interptrain.recipes import RECIPES
    from interptrain.recipes.settings import ready_configurations

    table = Table("recipe", "what it is for", box=None, header_style="bold")
    for name, module in RECIPES.items():
        table.add_row(name, importlib.import_module(module).SUMMARY)
        for ready in ready_configurations(name):
            table.add_row(f"  {name}/{ready}", "")
    console.print(table)
    return 0


def _show_recipe(options: argparse.Namespace, console: Console) -> int:
    console.print(_settings_text(options), markup=False, highlight=False, soft_wrap=True, end="")
    return 0


def _init_recipe(options: argparse.Namespace, console: Console) -> int:
    text, file = _settings_text(options), options.to or Path(f"{options.name.replace('/', '-')}.yaml")
    try:
        with file.open("x", encoding="utf-8") as new:
            new.write(text)
    except OSError as error:  # also where it is there already: nothing of the user's is written over
        options.parser.error(f"cannot write '{file}': {error.strerror}; name another file (--to)")
    console.print(f"written to [bold]{file}[/]; run it: interptrain recipe run {_split(options)[0]} --config {file}")
    return 0


def _settings_text(options: argparse.Namespace) -> str:
    """A recipe's defaults, or a ready configuration, as YAML."""
    from interptrain.recipes.settings import default_text, ready_text

    name, ready = _split(options)
    recipe = _recipe(name, options.parser)
    if not ready:
        return default_text(name, recipe.Config, recipe.SUMMARY)
    try:
        return ready_text(name, ready)
    except ValueError as mistake:
        raise SystemExit(options.parser.error(str(mistake))) from None


def _run_recipe(options: argparse.Namespace, console: Console) -> int:
    from interptrain.recipes.settings import add_options, configured, read_settings, ready_settings

    name, ready = _split(options)
    recipe = _recipe(name, options.parser)
    parser = argparse.ArgumentParser(prog=f"interptrain recipe run {options.name}", description=recipe.SUMMARY)
    parser.add_argument("--config", type=Path, metavar="FILE", help="a YAML file of settings; the flags below win")
    add_options(parser, recipe.Config)
    given = vars(parser.parse_args(options.options))
    _require_extras(parser, recipe.NEEDS)
    file = given.pop("config")
    try:
        settings = [*([ready_settings(name, ready)] if ready else []), *([read_settings(file, name)] if file else [])]
        prepared = recipe.prepare(configured(recipe.Config, *settings, given))
    except ValueError as mistake:
        _refuse(parser, mistake)
    try:
        recipe.run(prepared, console)
    except KeyboardInterrupt:
        if hasattr(recipe.Config, "resume"):
            console.print("the same command with --resume goes on with this run")
        raise
    return 0


def _refuse(parser: argparse.ArgumentParser, mistake: ValueError) -> NoReturn:
    """End with what is wrong, and without the usage, which in a recipe pushes it off the screen."""
    parser.exit(2, f"{parser.prog}: error: {mistake}\n")


def _split(options: argparse.Namespace) -> tuple[str, str]:
    name, _, ready = options.name.partition("/")
    return name, ready


def _recipe(name: str, parser: argparse.ArgumentParser) -> Any:
    from interptrain.recipes import RECIPES

    if name not in RECIPES:
        parser.error(f"unknown recipe '{name}'; there are: {', '.join(RECIPES)}")
    return importlib.import_module(RECIPES[name])


def _export(options: argparse.Namespace, console: Console) -> int:
    from interptrain.export import export

    try:
        written = export(options.run, options.to, arm=options.arm, seed=options.seed)
    except ValueError as mistake:
        _refuse(options.parser, mistake)
    if written.left_out:
        console.print(f"left out: {', '.join(written.left_out)}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"written to {written.folder}: {', '.join(written.files)}", markup=False, highlight=False,
                  soft_wrap=True)  # fmt: skip
    return 0


def _build_tiny_world(options: argparse.Namespace, console: Console) -> int:
    _require_extras(options.parser, ("sae", "hf"))
    from interptrain.tiny_world.build import build

    try:
        build(options.out, seed=options.seed)
    except ValueError as mistake:
        options.parser.error(str(mistake))
    console.print(f"written to [bold]{options.out}[/]")
    return 0


def _require_extras(parser: argparse.ArgumentParser, extras: Sequence[str]) -> None:
    missing = [extra for extra in extras if not all(map(_installed, EXTRAS[extra]))]
    if missing:
        packages = ", ".join(p for extra in missing for p in EXTRAS[extra] if not _installed(p))
        parser.error(f"needs {packages}: pip install 'interptrain[{','.join(missing)}]'")


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
