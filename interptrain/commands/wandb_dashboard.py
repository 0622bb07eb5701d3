"""`interptrain wandb-dashboard`: a W&B workspace with a section a concept, as a file and, with a login, saved."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from interptrain.recorders.dashboard import sections, usual_metrics
from interptrain.recorders.wandb_dashboard import save, specification, workspace
from interptrain.recorders.wandb_login import wandb_host, wandb_mode

NEEDS = ("wandb", "dashboard", "recipes")
SCHEMA, GENERATOR, FILE = 1, "interptrain wandb-dashboard", "wandb-dashboard.json"
STEP = {"recipe": "trainer/global_step", "bare": "Step"}  # the last is W&B's own


@dataclass(frozen=True)
class Prepared:
    """A workspace, and where it goes."""

    made: Any
    entity: str
    project: str
    to: Path
    save: bool


def arguments(parser: argparse.ArgumentParser) -> None:
    """Whose, of what, and where to."""
    parser.add_argument(
        "run", type=Path, nargs="?", metavar="RUN_DIR", help="take the concepts and metrics of its curves"
    )
    parser.add_argument("--entity", required=True, help="W&B user or team")
    parser.add_argument("--project", required=True, help="W&B project that the runs are in")
    parser.add_argument(
        "--concepts", nargs="+", default=[], metavar="NAME", help="those to show; all of the run if not given"
    )
    parser.add_argument("--name", default="interptrain", help="of the view (default: %(default)s)")
    parser.add_argument(
        "--x", help="metric of the horizontal axis (default: W&B's step; of a recipe trainer/global_step)"
    )
    parser.add_argument("--to", type=Path, metavar="FILE", help=f"JSON file to write (default: RUN_DIR/{FILE})")
    parser.add_argument("--save", action="store_true", help="also save it in W&B; needs a login")


def prepare(options: argparse.Namespace) -> Prepared:
    """Find the metrics and build the workspace; nothing is sent.

    Raises:
        ValueError: no concepts, a file that would be written over, a name that W&B refuses, or no login to save with.
    """
    from interptrain.recorders.comparison import read_side
    from interptrain.recorders.standing import concepts_of

    concepts, logged, x = list(options.concepts), set[str](), STEP["bare"]
    if options.run is not None:
        side = read_side(options.run)
        curves = [run["curves"] for arm in side.arms for run in arm["runs"]]
        logged = {key for each in curves for key in each}
        there = list(dict.fromkeys(name for each in curves for name in concepts_of(each)))
        missing = [name for name in concepts if name not in there]
        if missing:
            raise ValueError(f"'{options.run}' has no concept {', '.join(missing)}; it has {', '.join(there)}")
        concepts = concepts or there
        if side.report is not None:
            logged |= {"train/loss", *(f"behaviour/{measure['key']}" for measure in side.report["measures"])}
            x = STEP["recipe"]
    if not concepts:
        raise ValueError("no concepts to show: name a run's folder, or concepts (--concepts)")
    to: Path | None = options.to or (options.run / FILE if options.run is not None and options.run.is_dir() else None)
    if to is None:
        raise ValueError("name the file to write (--to), or a run's folder")
    _check_file(to)
    if options.save and wandb_mode(os.environ) != "online":
        raise ValueError(
            f"--save needs a login to {wandb_host(os.environ)}: `wandb login`, or WANDB_API_KEY, and no WANDB_MODE; "
            "without --save the file alone is written"
        )
    shown = sections(concepts, logged or set(usual_metrics(concepts)))
    try:
        made = workspace(options.entity, options.project, options.name, shown, x=options.x or x)
    except ValueError as error:
        raise ValueError(f"W&B refuses the view: {error}") from None
    return Prepared(made, options.entity, options.project, to, options.save)


def run(prepared: Prepared, console: Console) -> int:
    """Write the file; send it where that was asked for."""
    spec = specification(prepared.made)
    document = {
        "schema": SCHEMA, "generator": GENERATOR, "entity": prepared.entity, "project": prepared.project,
        "name": prepared.made.name, "spec": spec,
    }  # fmt: skip
    prepared.to.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    count = sum(len(section.panels) for section in prepared.made.sections)
    console.print(
        f"{count} panels in {len(prepared.made.sections)} sections: [bold]{escape(str(prepared.to))}[/]", soft_wrap=True
    )
    if not prepared.save:
        console.print("not sent anywhere; --save puts it into W&B", style="dim")
        return 0
    try:
        address = save(prepared.made)
    except ConnectionError as error:
        console.print(f"[red]{escape(str(error))}[/]")
        return 1
    console.print(f"saved: {escape(address)}", soft_wrap=True)
    return 0


def _check_file(to: Path) -> None:
    if not to.absolute().parent.is_dir():
        raise ValueError(f"cannot write '{to}': '{to.parent}' is no folder")
    if to.exists():
        try:
            ours = json.loads(to.read_text(encoding="utf-8")).get("generator") == GENERATOR
        except (OSError, ValueError, AttributeError):
            ours = False
        if not ours:
            raise ValueError(f"'{to}' is another's file and is left as it is; name another (--to)")
