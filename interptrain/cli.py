"""The command line: `interptrain --version`, `recipe list`, `recipe run NAME`, `tiny-world build`."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rich.console import Console
from rich.table import Table

from interptrain._version import __version__

# What tells that an extra is installed: the package that `pip install 'interptrain[extra]'` brings.
EXTRAS = {
    "lightning": ("pytorch_lightning",),
    "sae": ("sae_lens",),
    "hf": ("transformers", "peft"),
    "wandb": ("wandb",),
    "recipes": ("matplotlib", "jinja2"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 2 for a mistake in the request, 130 when interrupted."""
    parser = _parser()
    options = parser.parse_args(arguments)
    console = Console()
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

    recipe = commands.add_parser("recipe", help="list or run an experiment").add_subparsers(
        required=True, metavar="COMMAND"
    )
    listing = recipe.add_parser("list", help="the recipes and what each shows")
    listing.set_defaults(command=_list_recipes)
    run = recipe.add_parser("run", help="run one; `recipe run NAME --help` shows its options")
    run.add_argument("name", metavar="NAME")
    run.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="the recipe's own options")
    run.set_defaults(command=_run_recipe, parser=run)

    tiny = commands.add_parser("tiny-world", help="the embedded model, its SAE and its concepts").add_subparsers(
        required=True, metavar="COMMAND"
    )
    build = tiny.add_parser("build", help="pretrain the base model and its SAE again, from a seed")
    build.add_argument("--out", type=Path, default=Path("tiny-world"), help="folder to write (default: %(default)s)")
    build.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    build.set_defaults(command=_build_tiny_world, parser=build)
    return parser


def _list_recipes(_: argparse.Namespace, console: Console) -> int:
    from interptrain.recipes import RECIPES

    table = Table("recipe", "what it shows", box=None, header_style="bold")
    for name, module in RECIPES.items():
        table.add_row(name, importlib.import_module(module).SUMMARY)
    console.print(table)
    return 0


def _run_recipe(options: argparse.Namespace, console: Console) -> int:
    from interptrain.recipes import RECIPES

    if options.name not in RECIPES:
        options.parser.error(f"unknown recipe '{options.name}'; there are: {', '.join(RECIPES)}")
    recipe = importlib.import_module(RECIPES[options.name])
    parser = argparse.ArgumentParser(prog=f"interptrain recipe run {options.name}", description=recipe.SUMMARY)
    _add_options(parser, recipe.Config)
    given = parser.parse_args(options.options)
    _require_extras(parser, recipe.NEEDS)
    try:
        config = recipe.Config(**vars(given))
        recipe.prepare(config)
    except ValueError as mistake:
        parser.error(str(mistake))
    recipe.run(config, console)
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


def _add_options(parser: argparse.ArgumentParser, config: type) -> None:
    """One option for every field of a configuration dataclass; its help and default come from the field."""
    hints = get_type_hints(config)
    for field in dataclasses.fields(config):
        hint = hints[field.name]
        choice: dict[str, Any] = (
            {"choices": get_args(hint)}
            if get_origin(hint) is Literal
            else {"type": hint, "metavar": field.name.upper()}
        )
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            default=field.default,
            help=f"{field.metadata['help']} (default: %(default)s)",
            **choice,
        )


def _require_extras(parser: argparse.ArgumentParser, extras: Sequence[str]) -> None:
    missing = [extra for extra in extras if not all(map(_installed, EXTRAS[extra]))]
    if missing:
        packages = ", ".join(p for extra in missing for p in EXTRAS[extra] if not _installed(p))
        parser.error(f"needs {packages}: pip install 'interptrain[{','.join(missing)}]'")


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
