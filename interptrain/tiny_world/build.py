"""Rebuilds everything that ships: `interptrain tiny-world build`."""

from __future__ import annotations

import contextlib
import io
import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from interptrain.tiny_world.base import STEPS, train_base
from interptrain.tiny_world.concepts import find_concepts
from interptrain.tiny_world.sae import HOOK, OUTPUT_HOOK, TOKENS, activations, train_sae
from interptrain.tiny_world.score import score
from interptrain.tiny_world.shipped import SAE_FOLDERS, load_base, load_sae, load_tokenizer
from interptrain.tiny_world.tokens import build_tokenizer

CARD_SCHEMA = 1
SCORED_PROMPTS = 400


def build(out: Path, *, seed: int = 0) -> Path:
    """Train the base and its SAEs, find the concepts, score it all, and write it with a card.

    Takes seven to thirteen minutes on two cores. The same seed gives the same texts and initial weights; floating
    point differs between machines, so a rebuild equals the shipped base in its scores, not in its bits.

    Args:
        out: the folder to write.
        seed: of everything.

    Returns:
        The card's path.

    Raises:
        ValueError: the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write the tiny world to '{out}': {error}") from error
    seconds: dict[str, float] = {}
    tokenizer = build_tokenizer()
    with _stage("base", STEPS, seconds) as advance:
        model = train_base(tokenizer, seed=seed, progress=lambda loss: advance(1))
    model.save_pretrained(out / "base")
    tokenizer.save_pretrained(out / "base")
    for name, hook in (("SAE", HOOK), ("output SAE", OUTPUT_HOOK)):
        with _stage(name, TOKENS, seconds) as advance, contextlib.redirect_stderr(io.StringIO()):
            sae = train_sae(model, tokenizer, hook=hook, seed=seed, progress=advance)
        sae.save_inference_model(out / SAE_FOLDERS[hook])
    card = out / "card.json"
    card.write_text(json.dumps({**measure(out, seed=seed), "seconds": seconds}, indent=1))
    return card


def measure(folder: Path, *, seed: int = 0) -> dict[str, Any]:
    """What the card says of a base and its SAEs: scores, concepts, seeds and versions."""
    model = load_base(folder)
    behaviour = score(model, load_tokenizer(folder), prompts=SCORED_PROMPTS)
    return {
        "schema": CARD_SCHEMA,
        "seed": seed,
        "base": {
            "parameters": model.num_parameters(),
            "scored_prompts": SCORED_PROMPTS,
            "scores": {name: getattr(behaviour, name) for name in behaviour.measures()},
        },
        **measure_sae(folder, HOOK, seed=seed),
        "output": measure_sae(folder, OUTPUT_HOOK, seed=seed),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "transformers", "sae-lens")},
        },
    }


def measure_sae(folder: Path, hook: str, *, seed: int = 0) -> dict[str, Any]:
    """What the card says of the SAE at one hook, and of the concepts found in it."""
    model, tokenizer, sae = load_base(folder), load_tokenizer(folder), load_sae(folder, hook)
    found, alive = find_concepts(model, tokenizer, sae, hook, seed=seed)
    held_out = torch.cat(list(islice(activations(model, tokenizer, seed=seed + 2, hook=hook), 10)))
    with torch.no_grad():
        rest = (held_out - sae(held_out)).square().sum() / (held_out - held_out.mean(0)).square().sum()
    return {
        "sae": {
            "hook": hook,
            "architecture": sae.cfg.architecture(),
            "latents": sae.cfg.d_sae,
            "explained_variance": 1 - float(rest),
            "dead": (~alive).nonzero()[:, 0].tolist(),
        },
        "concepts": {name: each.as_dict() for name, each in found.items()},
    }


@contextmanager
def _stage(name: str, total: int, seconds: dict[str, float]) -> Iterator[Callable[[int], None]]:
    """A progress bar for one stage, which also notes how long the stage took."""
    columns = (TextColumn("{task.description:>10}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    started = time.monotonic()
    with Progress(*columns) as progress:
        task = progress.add_task(name, total=total)
        yield lambda done: progress.advance(task, done)
    seconds[name] = round(time.monotonic() - started, 1)
