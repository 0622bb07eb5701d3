"""What observing and steering cost on the tiny recipe: the same run with and without, block by block.

    python benchmarks/overhead.py [--pairs 3] [--block 100] [--out benchmarks/results/overhead.json]
    python benchmarks/overhead.py --loops torch "hugging face" --arms observe

One run an arm and a loop, with the settings of the recipe `pirate-arithmetic`: every arm under Lightning, a few also
under Hugging Face's Trainer and in a plain torch loop, on the same batches. The callback is switched off and on for
blocks of 100 steps in turn, each long enough for every meter's cadence at least twice (probe sets and discovery every
50 steps). The figure is the median, over pairs of neighbouring blocks, of the time with over the time without.
Attaching, which runs the probe sets once, is timed apart.

Every loop clips gradients to norm 1 and writes the loss every 5 steps to a file of Lightning's `CSVLogger`, with the
curves beside it while it is steered; Hugging Face's Trainer reports nowhere else (`report_to=[]`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytorch_lightning
import torch
import transformers
from pytorch_lightning.loggers import CSVLogger
from rich.console import Console
from rich.table import Table
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script's own path has its folder alone

from benchmarks.blocks import Blocks, save  # noqa: E402
from interptrain import ablate, gate, hold, observe, penalise, prevent, retain, route, suppress, tiny_world  # noqa: E402
from interptrain.callbacks import lightning  # noqa: E402
from interptrain.callbacks import transformers as hugging_face  # noqa: E402
from interptrain.callbacks.torch import Steering, attach  # noqa: E402
from interptrain.recipes.fine_tuner import FineTuner, quiet_libraries  # noqa: E402
from interptrain.recipes.pirate_arithmetic import (  # noqa: E402
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
from interptrain.recipes.pirate_arithmetic import bank as recipe_bank  # noqa: E402

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

# Of full fine-tuning the recipe's own settings only, and in the other loops two of them, with LoRA.
FULL = ("observe", "suppress the update", "gate", "gate and retain")
BY_LOOP = ("observe", "suppress the update")
TUNINGS = ("lora", "full")
CLIP = 1.0

Batch = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Run:
    """One arm in one loop."""

    loop: str
    tuning: str
    arm: str

    @property
    def row(self) -> str:
        """Its name among the results of its tuning."""
        return self.arm if self.loop == "lightning" else f"{self.arm}, {self.loop}"

    def steering(self) -> tuple[tuple[Any, Any], dict[str, Any]]:
        """A bank and a rule, and the options of every callback."""
        options = {"every": EVERY, "probe_every": PROBE_EVERY, "summary": False, **ARMS[self.arm]}
        return (recipe_bank(), options.pop("rule")), options | {"probes": tiny_world.probe_batches(PROBE_TEXTS)}


class LightningBlocks(pytorch_lightning.Callback):
    """Hands every hook to the steering callback while a block is steered."""

    def __init__(self, steering: lightning.ConceptSteering, blocks: Blocks) -> None:
        self.steering, self.blocks = steering, blocks

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.blocks.begin(batch_idx, lambda: self.steering.on_fit_start(trainer, pl_module))
        if self.blocks.on:
            self.steering.on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if self.blocks.on:
            self.steering.on_before_optimizer_step(trainer, pl_module, optimizer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.blocks.on:
            self.steering.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.blocks.end(batch_idx, lambda: self.steering.on_fit_end(trainer, pl_module))


class HuggingFaceBlocks(hugging_face.ConceptSteering):
    """The steering callback, which hears of its events while a block is steered.

    It looks for itself among the trainer's callbacks, so it is the one that is there. A block ends when the next one
    begins, since the trainer logs a step after `on_step_end`.
    """

    def __init__(self, blocks: Blocks, *steering: Any, **options: Any) -> None:
        super().__init__(*steering, **options)
        self.blocks = blocks

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        pass

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        begin = super().on_train_begin
        if state.global_step:
            self._end(args, state, control, **kwargs)
        self.blocks.begin(state.global_step, lambda: begin(args, state, control, **kwargs))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.blocks.on:
            super().on_pre_optimizer_step(args, state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.blocks.on:
            super().on_log(args, state, control, **kwargs)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._end(args, state, control, **kwargs)  # the only epoch

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        pass

    def _end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        end = super().on_train_end
        self.blocks.end(state.global_step - 1, lambda: end(args, state, control, **kwargs))


class ToCSV(transformers.TrainerCallback):
    """Writes what a Hugging Face trainer logs where Lightning's goes."""

    def __init__(self, logger: CSVLogger) -> None:
        self.logger = logger

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        write(self.logger, kwargs["logs"], state.global_step)


def write(logger: CSVLogger, metrics: Mapping[str, float], step: int) -> None:
    """Log figures as Lightning does: the file is written every time."""
    logger.log_metrics(dict(metrics), step)
    logger.save()


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def adamw(model: nn.Module, run: Run) -> torch.optim.AdamW:
    """The optimizer that `FineTuner` makes."""
    return torch.optim.AdamW(trained(model), lr=LEARNING_RATE[run.tuning], weight_decay=0.0)


def in_lightning(run: Run, blocks: Blocks, batches: list[Batch], folder: str) -> None:
    steering, options = run.steering()
    callback = LightningBlocks(lightning.ConceptSteering(*steering, **options), blocks)
    trainer = pytorch_lightning.Trainer(
        max_steps=len(batches), accelerator="cpu", gradient_clip_val=CLIP, callbacks=[callback],
        logger=CSVLogger(folder), log_every_n_steps=LOG_EVERY, default_root_dir=folder, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(FineTuner(trainable(run.tuning), LEARNING_RATE[run.tuning]), iter(batches))


def in_hugging_face(run: Run, blocks: Blocks, batches: list[Batch], folder: str) -> None:
    steering, options = run.steering()
    model = trainable(run.tuning)
    optimizer = adamw(model, run)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _step: 1.0)
    arguments = transformers.TrainingArguments(
        folder, max_steps=len(batches), max_grad_norm=CLIP, logging_steps=LOG_EVERY, report_to=[], save_strategy="no",
        per_device_train_batch_size=1, train_sampling_strategy="sequential", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model, arguments, train_dataset=batches, data_collator=lambda batches: dict(batches[0]),
        optimizers=(optimizer, constant),
        callbacks=[HuggingFaceBlocks(blocks, *steering, **options), ToCSV(CSVLogger(folder))],
    )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()


def in_torch(run: Run, blocks: Blocks, batches: list[Batch], folder: str) -> None:
    steering, options = run.steering()
    model, logger, attached = trainable(run.tuning), CSVLogger(folder), list[Steering]()
    optimizer = adamw(model, run)
    for step, batch in enumerate(batches):
        blocks.begin(step, lambda: attached.append(attach(model, optimizer, *steering, **options)))
        loss = model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(trained(model), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % LOG_EVERY == 0:
            curves = attached[0].metrics() if blocks.on else {}
            write(logger, {"train/loss": loss.item(), **curves}, step)
        blocks.end(step, lambda: attached.pop().detach())


LOOPS = {"lightning": in_lightning, "hugging face": in_hugging_face, "torch": in_torch}
# The loops of one arm one after another, on a machine that changes with time.
RUNS = [
    Run(loop, tuning, arm)
    for tuning, arms in zip(TUNINGS, (ARMS, FULL), strict=True)
    for arm in arms
    for loop in LOOPS
    if loop == "lightning" or (tuning == "lora" and arm in BY_LOOP)
]


def measure(run: Run, pairs: int, block: int, data: Iterable[Batch]) -> dict[str, Any]:
    """One run: the paired ratios, and the seconds that they are made of."""
    torch.manual_seed(0)
    blocks = Blocks(block)
    with tempfile.TemporaryDirectory() as folder:
        LOOPS[run.loop](run, blocks, list(islice(cycle(data), 2 * pairs * block)), folder)
    return {"loop": run.loop, **blocks.figures()}


def chosen(arguments: argparse.Namespace) -> list[Run]:
    """Those of `RUNS` that the options leave."""
    kept = (arguments.loops, arguments.tunings, arguments.arms)
    return [run for run in RUNS if all(each in some for each, some in zip(vars(run).values(), kept, strict=True))]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--block", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--loops", nargs="+", choices=LOOPS, default=list(LOOPS), metavar="LOOP")
    parser.add_argument("--tunings", nargs="+", choices=TUNINGS, default=list(TUNINGS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/overhead.json"))
    arguments = parser.parse_args(argv)
    if not chosen(arguments):
        parser.error(f"no run is left; arms in other loops than Lightning: {', '.join(BY_LOOP)}, of lora")
    torch.set_num_threads(arguments.threads)
    quiet_libraries()
    data = list(islice(tiny_world.finetuning_set("mixed", batch=BATCH), arguments.block))

    table = Table(title="time with the callback over time without it, median of paired blocks (range)")
    for column in ("trained", "loop", "arm", "ratio", "a step, ms", "added, ms"):
        table.add_column(column, justify="left" if column in ("trained", "loop", "arm") else "right")
    results: dict[str, dict[str, Any]] = {}
    for run in chosen(arguments):
        found = measure(run, arguments.pairs, arguments.block, data)
        results.setdefault(run.tuning, {})[run.row] = found
        ratio = f"{found['ratio']:.3f} ({min(found['ratios']):.3f} to {max(found['ratios']):.3f})"
        milliseconds = (f"{1e3 * found[key]:.1f}" for key in ("plain_seconds_a_step", "added_seconds_a_step"))
        table.add_row(run.tuning, run.loop, run.arm, ratio, *milliseconds)
    Console().print(table)
    settings = {"every": EVERY, "log_every": LOG_EVERY, "probe_every": PROBE_EVERY, "probe_texts": PROBE_TEXTS}
    libraries = ("torch", "pytorch-lightning", "transformers", "accelerate", "peft")
    save(arguments, libraries, settings | {"batch": BATCH}, results=results)


if __name__ == "__main__":
    main()
