"""What observing and steering cost on the tiny recipe: the same run with and without, block by block.

    python benchmarks/overhead.py [--pairs 3] [--block 100] [--out benchmarks/results/overhead.json]

One Lightning run an arm, as the recipe `pirate-arithmetic` makes it, with its logger and its settings. The callback
is switched off and on for blocks of 100 steps in turn, each long enough for every meter's cadence at least twice
(probe sets and discovery every 50 steps). The figure is the median, over pairs of neighbouring blocks, of the time
with over the time without. Attaching, which runs the probe sets once, is timed apart.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import statistics
import subprocess
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger
from rich.console import Console
from rich.table import Table

from interptrain import ablate, gate, hold, observe, penalise, prevent, retain, route, suppress, tiny_world
from interptrain.callbacks.lightning import ConceptSteering
from interptrain.recipes.fine_tuner import FineTuner, quiet_libraries
from interptrain.recipes.pirate_arithmetic import (
    BATCH,
    EVERY,
    LEARNING_RATE,
    LOG_EVERY,
    PROBE_EVERY,
    PROBE_TEXTS,
    RETAIN,
    WORDS,
    trainable,
)
from interptrain.recipes.pirate_arithmetic import bank as recipe_bank

ARMS: dict[str, dict[str, Any]] = {
    "observe": {"rule": observe()},
    "observe every step": {"rule": observe(), "every": 1},
    "suppress the gradient": {"rule": suppress("pirate")},
    "suppress the update": {"rule": suppress("pirate"), "where": "update"},
    "suppress the update, measured every step": {"rule": suppress("pirate"), "where": "update", "every": 1},
    "gate": {"rule": gate(WORDS)},
    "gate and hold": {"rule": [gate(WORDS), hold(WORDS, tiny_world.neutral_batches(first=True))]},
    "gate and retain": {"rule": [gate(WORDS), retain(tiny_world.neutral_batches(kinds=("fact",)), RETAIN)]},
    "penalise": {"rule": penalise(WORDS, 0.1)},
    "prevent": {"rule": prevent(WORDS, 8.0)},
    "ablate": {"rule": ablate(WORDS)},
    "route": {"rule": route(WORDS)},
}

# Of full fine-tuning the recipe's own settings only.
FULL = ("observe", "suppress the update", "gate", "gate and retain")
RUNS = [*(("lora", name) for name in ARMS), *(("full", name) for name in FULL)]


class Blocks(Callback):
    """Hands every hook to the steering callback in every second block of steps, and times the blocks."""

    def __init__(self, steering: ConceptSteering, block: int) -> None:
        self.steering, self.block = steering, block
        self.seconds: dict[bool, list[float]] = {False: [], True: []}
        self.attaching: list[float] = []
        self.on, self.started = False, 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % self.block == 0:
            self.on = (batch_idx // self.block) % 2 == 1
            if self.on:
                started = time.perf_counter()
                self.steering.on_fit_start(trainer, pl_module)
                self.attaching.append(time.perf_counter() - started)
            self.started = time.perf_counter()
        if self.on:
            self.steering.on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if self.on:
            self.steering.on_before_optimizer_step(trainer, pl_module, optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.on:
            self.steering.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if (batch_idx + 1) % self.block == 0:
            self.seconds[self.on].append(time.perf_counter() - self.started)
            if self.on:
                self.steering.on_fit_end(trainer, pl_module)


def measure(name: str, tuning: str, arguments: argparse.Namespace, data: list[Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    options = {"every": EVERY, "probe_every": PROBE_EVERY, **ARMS[name]}
    steering = ConceptSteering(
        recipe_bank(), options.pop("rule"), probes=tiny_world.probe_batches(PROBE_TEXTS), summary=False, **options
    )
    blocks = Blocks(steering, arguments.block)
    steps = 2 * arguments.pairs * arguments.block
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_steps=steps, accelerator="cpu", gradient_clip_val=1.0, callbacks=[blocks], logger=CSVLogger(folder),
            log_every_n_steps=LOG_EVERY, default_root_dir=folder, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        trainer.fit(FineTuner(trainable(tuning), LEARNING_RATE[tuning]), islice(cycle(data), steps))
    ratios = [on / off for on, off in zip(blocks.seconds[True], blocks.seconds[False], strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "plain_seconds_a_step": statistics.median(blocks.seconds[False]) / arguments.block,
        "attaching_seconds": statistics.median(blocks.attaching),
    }


def commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--block", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/overhead.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    quiet_libraries()
    data = list(islice(tiny_world.finetuning_set("mixed", batch=BATCH), arguments.block))

    table = Table(title="time with the callback over time without it, median of paired blocks (range)")
    for column in ("trained", "arm", "ratio"):
        table.add_column(column, justify="right" if column == "ratio" else "left")
    results: dict[str, dict[str, Any]] = {}
    for tuning, name in RUNS:
        found = results.setdefault(tuning, {})[name] = measure(name, tuning, arguments, data)
        ratios = found["ratios"]
        table.add_row(tuning, name, f"{found['ratio']:.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    Console().print(table)
    packages = ("interptrain", "torch", "pytorch-lightning", "transformers", "peft")
    versions = {name: importlib.metadata.version(name) for name in packages}
    document = {
        "settings": {**vars(arguments), "out": str(arguments.out), "every": EVERY, "log_every": LOG_EVERY,
                     "probe_every": PROBE_EVERY, "probe_texts": PROBE_TEXTS, "batch": BATCH},
        "versions": {"python": platform.python_version(), **versions},
        "device": f"{platform.processor() or platform.machine()} CPU, {arguments.threads} threads",
        "commit": commit(),
        "results": results,
    }  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
