"""One fine-tuning run in each of the three loops: the same model, data, optimizer and number of steps."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from interptrain.callbacks import lightning, transformers
from interptrain.callbacks.torch import attach
from interptrain.recorders import MemoryRecorder
from tests.helpers.models import Sentences, Tuning, loader, trainer, weights

LOOPS = ("lightning", "hugging face", "torch")
STEPS = 5


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3)


@dataclass
class Run:
    """What a run came to."""

    weights: dict[str, torch.Tensor]
    curves: dict[str, list[float | None]]


def run(loop: str, model: nn.Module, folder: Path, *steering: Any, **options: Any) -> Run:
    """Train a model in a loop, steered by a bank and a rule, or not at all.

    Args:
        loop: one of `LOOPS`.
        model: trained in place.
        folder: for what the loop writes.
        steering: nothing, or the bank and the rule.
        options: the callback's; and of the loop `steps`, `make_optimizer`, `clip` (its own clipping), `accumulate`.
    """
    recorder = MemoryRecorder()
    settings = {key: options.pop(key) for key in ("steps", "make_optimizer", "clip", "accumulate") if key in options}
    if steering:
        options |= {"recorders": [recorder], "summary": False}
    _LOOPS[loop](model, folder, steering, options, **settings)
    return Run({_bare(name): value for name, value in weights(model).items()}, recorder.curves())


def largest_difference(one: Run, other: Run) -> float:
    """Of any weight."""
    assert one.weights.keys() == other.weights.keys()
    return max(float((value - other.weights[name]).abs().max()) for name, value in one.weights.items())


def _bare(name: str) -> str:
    return name.removeprefix("model.") if name.startswith("model.model") else name


def _in_lightning(model, folder, steering, options, steps=STEPS, make_optimizer=adamw, clip=None, accumulate=1):
    callbacks = [lightning.ConceptSteering(*steering, **options)] if steering else []
    run = trainer(folder, *callbacks, steps=steps, gradient_clip_val=clip, accumulate_grad_batches=accumulate)
    run.fit(Tuning(model, make_optimizer), loader())


def hugging_face(model, folder, *callbacks, make_optimizer=adamw, data=None, **settings):
    """A quiet Hugging Face trainer on the CPU."""
    settings = {"max_steps": STEPS, "max_grad_norm": 0.0, "save_strategy": "no", "report_to": []} | settings
    arguments = TrainingArguments(
        str(folder), train_sampling_strategy="sequential", use_cpu=True, seed=0,
        **({"per_device_train_batch_size": 8, "disable_tqdm": True} | settings),
    )  # fmt: skip
    optimizers = (None, None)
    if make_optimizer is not None:
        optimizer = make_optimizer([parameter for parameter in model.parameters() if parameter.requires_grad])
        optimizers = (optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _step: 1.0))
    return Trainer(
        model, arguments, train_dataset=Sentences() if data is None else data, optimizers=optimizers,
        callbacks=list(callbacks),
    )  # fmt: skip


def _in_hugging_face(model, folder, steering, options, steps=STEPS, make_optimizer=adamw, clip=None, accumulate=1):
    callbacks = [transformers.ConceptSteering(*steering, **options)] if steering else []
    hugging_face(
        model, folder, *callbacks, make_optimizer=make_optimizer, max_steps=steps, max_grad_norm=clip or 0.0,
        gradient_accumulation_steps=accumulate,
    ).train()  # fmt: skip


def _in_torch(model, folder, steering, options, steps=STEPS, make_optimizer=adamw, clip=None, accumulate=1):
    optimizer = make_optimizer([parameter for parameter in model.parameters() if parameter.requires_grad])
    handle = attach(model, optimizer, *steering, **options) if steering else None
    model.train()
    for number, batch in enumerate(DataLoader(Sentences(), batch_size=8)):
        (model(**batch).loss / accumulate).backward()
        if (number + 1) % accumulate:
            continue
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        if (number + 1) // accumulate == steps:
            break
    if handle is not None:
        handle.detach()


_LOOPS = dict(zip(LOOPS, (_in_lightning, _in_hugging_face, _in_torch), strict=True))
