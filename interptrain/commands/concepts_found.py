"""`found.json`, what `concepts find` measured: how it is made, read back and shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from interptrain.commands.concepts_reading import printable
from interptrain.concepts.candidates import Candidate, HeldOut
from interptrain.concepts.trials import RULE, Answers, Trial, best_trial, gain, recommended

SCHEMA = 1
PLACE = {"throughout": "all", "start": "start"}  # in the table


@dataclass(frozen=True, eq=False)
class Found:
    """What one method found, or why it found nothing.

    Args:
        candidate: its directions.
        tested: how it does on held-out texts.
        trials: what adding it does.
        refused: why it found nothing.
    """

    candidate: Candidate | None
    tested: HeldOut | None
    trials: list[Trial]
    refused: str = ""


def document_of(found: Mapping[str, Found], before: Answers) -> dict[str, Any]:
    """Every method's figures as JSON, and which to take."""
    bests = {method: best_trial(each.trials, before) for method, each in found.items()}
    gains = {method: gain(best, before) for method, best in bests.items() if best is not None}
    aucs = {method: each.tested.auc for method, each in found.items() if each.tested is not None}
    entries = {}
    for method, each in found.items():
        best = bests[method]
        entries[method] = {
            "directions": 0 if each.candidate is None else len(each.candidate.directions),
            "latents": [] if each.candidate is None else list(each.candidate.latents),
            "refused": each.refused,
            "held_out": None if each.tested is None else asdict(each.tested),
            "gain": gains.get(method),
            "best": None if best is None else asdict(best),
            "trials": [asdict(trial) for trial in each.trials],
        }
    return {
        "schema": SCHEMA,
        "before": asdict(before),
        "methods": entries,
        "rule": RULE,
        "recommended": recommended(gains, aucs),
    }


def read_found(folder: Path) -> dict[str, Any]:
    """Read a folder's `found.json`.

    Raises:
        ValueError: it is missing, is not JSON or has another schema.
    """
    path = folder / "found.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ValueError(f"'{path}' cannot be read; `interptrain concepts find --out {folder}` writes it") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"'{path}' is not JSON ({error}); was it truncated?") from error
    found = document.get("schema") if isinstance(document, dict) else None
    if found != SCHEMA:
        raise ValueError(f"'{path}' has schema {found!r}, this version reads {SCHEMA}")
    return dict(document)


def found_table(document: dict[str, Any]) -> Table:
    """One line a method: what it tells apart, and what adding it does at its best."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0)
    heads = ("method", "rows", "AUC", "shuffled", "random", "added", "shows", "both", "control", "gain")
    for head in heads:
        table.add_column(head, no_wrap=True, justify="left" if head in ("method", "added") else "right")
    for name, each in document["methods"].items():
        label = f"[bold]{name}[/]" if name == document["recommended"] else name
        if each["held_out"] is None:
            table.add_row(label, "-", *[""] * 8)
            continue
        auc, best = each["held_out"], each["best"]
        cells = [f"{each['directions']}", f"{auc['auc']:.3f}", _spread(auc["shuffled"]), _spread(auc["random"])]
        if best is not None:
            said = best["answers"]
            cells += [
                f"{PLACE[best['place']]} {best['scale']:g}", _short(said["shown"]), _short(said["both"]),
                _spread(best["control"]), f"{each['gain']:+.2f}",
            ]  # fmt: skip
        table.add_row(label, *cells)
    return table


def print_found(document: dict[str, Any], folder: Path, console: Console) -> None:
    """The table, some answers, and which method to take."""

    def say(text: str) -> None:
        console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    markers, before = document["markers"], document["before"]
    say(f"{document['concept']} at {document['hook']}")
    say(
        f"words that mark it: {', '.join(markers['words']) or 'none were found'} (in "
        f"{markers['held_out_shown']:.2f} of the held-out texts that show it, {markers['held_out_other']:.2f} of the "
        "others)"
    )
    if not markers["words"]:
        say("without such words no answer counts as showing it: name some with --words")
    elif not markers["held_out_shown"]:
        say("the held-out texts that show it have none of these words, so the rates below say little: try --words")
    say(f"unsteered answers: {before['shown']:.2f} show it, {before['well_formed']:.2f} are well-formed")
    console.print(found_table(document))
    say(
        "AUC on held-out texts, and of the same search with shuffled labels, and of random directions. Added: at all "
        "tokens or at the start of the answer, and how many gaps, at its best; shows: share of the answers that show "
        "it; both: that are well-formed too; control: both, with random directions of that length."
    )
    for name, each in document["methods"].items():
        if each["refused"]:
            say(f"{name}: {each['refused']}")
    recommended = document["recommended"]
    shown = recommended or max(
        (name for name, each in document["methods"].items() if each["best"]),
        key=lambda name: document["methods"][name]["gain"], default=None,
    )  # fmt: skip
    if shown:
        best = document["methods"][shown]["best"]
        say(f"answers with {shown} added ({best['place']}, {best['scale']:g}):")
        for prompt, first, then in zip(
            document["prompts"], before["samples"], best["answers"]["samples"], strict=False
        ):
            say(f"  {prompt.strip()}\n    before: {first.strip()}\n    added:  {then.strip()}")
    if recommended:
        console.print(f"take [bold]{escape(recommended)}[/]: ", end="")
        say(f"interptrain concepts save {folder} --method {recommended} --to BANK")
    else:
        say("none of the methods does what its name says when it is added: take them for reading alone, if at all")
    say(f"the rule: {document['rule']}")
    say(f"written to {folder}")


def _spread(pair: list[float] | tuple[float, float]) -> str:
    return f"{_short(pair[0])}±{_short(pair[1])}"


def _short(share: float) -> str:
    """A share in three characters."""
    return f"{share:.2f}".removeprefix("0")
