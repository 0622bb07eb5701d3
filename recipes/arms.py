"""Arms of an experiment: the same start and the same batches, and in each something else that acts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from rich.console import Console
from torch import Tensor, nn

from interptrain import ConceptBank
from interptrain.concepts.bank import unit_rows
from interptrain.interventions import Intervention
from interptrain.recipes.examples import batches
from interptrain.recipes.loading import ModelChoice, load_model
from interptrain.recipes.parallel import Tell, display
from interptrain.recipes.unfinished import Unfinished
from interptrain.recorders import JSONLRecorder, read_alarms, read_curves
from interptrain.recorders.document import Arm, Run, Sample, Scores, rounded
from interptrain.steering import Rule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Acts: TypeAlias = "Sequence[Rule | Intervention]"
LOOKS = 10  # at the scores during a run
COOLDOWN = 0.2  # of the steps, its last, over which the rate falls to 0


@dataclass(frozen=True)
class Treatment:
    """One arm.

    Args:
        name: in tables and folders.
        says: what it is, in words.
        acts: what acts on its training.
        where: what rules edit.
    """

    name: str
    says: str
    acts: Acts
    where: Literal["gradient", "update"] = "update"


@dataclass(frozen=True, eq=False)
class Training:
    """All that the arms have in common.

    Args:
        recipe: its name.
        choice: the model, loaded anew for every run.
        tokenizer: kept beside the weights.
        rows: tokens and labels of the examples.
        bank: the concepts; every arm is observed with the same.
        probes: texts that are watched.
        score: what is measured of the model before, during and after training; leaves it as it was.
        answer: what the model says, for the report.
        out: folder for everything written.
        steps: optimizer steps.
        rate: AdamW's learning rate.
        batch: examples of a batch.
        accumulate: batches of a step.
        every: steps between two readings of the concepts.
        probe_every: steps between two readings of the probes.
        skip: name patterns of parameters that are neither read nor steered.
        save_every: steps between two checkpoints, from which a run that was cut off goes on; None keeps none.
        options: further ones of the callback.
        settings: for W&B.
        redraw: concepts for which every seed draws as many random directions, as `random-NAME`.
    """

    recipe: str
    choice: ModelChoice
    tokenizer: PreTrainedTokenizerBase
    rows: Sequence[Mapping[str, Sequence[int]]]
    bank: ConceptBank
    probes: Mapping[str, Sequence[Mapping[str, Tensor]]]
    score: Callable[[nn.Module], Scores]
    answer: Callable[[nn.Module], list[Sample]]
    out: Path
    steps: int
    rate: float
    batch: int = 8
    accumulate: int = 1
    every: int = 1
    probe_every: int = 50
    skip: Sequence[str] = ()
    save_every: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    redraw: Sequence[str] = ()


def train_arms(
    training: Training, treatments: Sequence[Treatment], *, seeds: int, created: str, console: Console
) -> list[Arm]:
    """Every seed of every arm, one after another, under one display."""
    arms = [Arm(name=each.name, says=each.says, runs=[]) for each in treatments]
    with display(console) as bars:
        for seed in range(seeds):
            for arm, treatment in zip(arms, treatments, strict=True):
                bar = bars.add_task(f"{treatment.name}, seed {seed}", total=training.steps, note="loading")

                def tell(step: int, note: str, bar: Any = bar) -> None:
                    bars.update(bar, completed=step, note=note)

                arm["runs"].append(train(training, treatment, seed, created, tell))
    return arms


def train(training: Training, treatment: Treatment, seed: int, created: str, tell: Tell) -> Run:
    """One run: model, sites and rule, train, score."""
    from pytorch_lightning import Trainer

    from interptrain.callbacks.lightning import ConceptSteering
    from interptrain.recipes.fine_tuner import FineTuner, Watch, wandb_logger

    started, name, out = time.monotonic(), f"{treatment.name}-{seed}", training.out.absolute()
    folder, unfinished = out / "weights" / name, Unfinished(out)
    if (earlier := unfinished.result(name)) is not None:
        tell(training.steps, "done before")
        return earlier
    checkpoint, done = unfinished.checkpoint(name)

    # Model: the same start in every arm of a seed.
    torch.manual_seed(seed)
    model = load_model(training.choice)

    # Sites and rule: the callback finds the sites of the bank in the model.
    curves = out / "curves" / f"{name}.jsonl"
    if checkpoint is None:
        curves.unlink(missing_ok=True)
    steering = ConceptSteering(
        with_random(training.bank, training.redraw, seed), treatment.acts,
        where=treatment.where, every=training.every, skip=training.skip, summary=False,
        recorders=[JSONLRecorder(curves)], probes=training.probes, probe_every=training.probe_every, **training.options,
    )  # fmt: skip

    # Train.
    watch = Watch(training.score, max(1, training.steps // LOOKS), tell)
    logger = wandb_logger(
        out, name=name, group=f"{training.recipe} {created}",
        config={**training.settings, "arm": treatment.name, "seed": seed},
    )  # fmt: skip
    keeper = [unfinished.keeper(name, training.save_every)] if training.save_every else []
    trainer = Trainer(
        max_steps=training.steps, accelerator="auto", devices=1, logger=logger,
        callbacks=[steering, watch, *keeper], enable_checkpointing=bool(keeper),
        precision="bf16-mixed" if training.choice.bf16 else "32-true", gradient_clip_val=1.0, log_every_n_steps=1,
        accumulate_grad_batches=training.accumulate, default_root_dir=out, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    pad, count = int(training.tokenizer.pad_token_id), training.steps * training.accumulate
    rest = islice(batches(training.rows, training.batch, pad, steps=count, seed=seed), done * training.accumulate, None)
    try:
        trainer.fit(FineTuner(model, training.rate, cooldown=COOLDOWN), rest, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as ended:  # Lightning's own end of an interrupted run
        raise KeyboardInterrupt from ended
    model.save_pretrained(folder)
    training.tokenizer.save_pretrained(folder)

    # Score.
    scores, samples = training.score(model), training.answer(model)
    wandb_folder = Path(logger.experiment.dir).parent
    logger.experiment.finish()
    tell(training.steps, ", ".join(f"{key} {value:.2f}" for key, value in list(scores.items())[:1]))
    run = Run(
        seed=seed, scores=scores, checkpoints=watch.checkpoints, curves=rounded(read_curves(curves)), samples=samples,
        seconds=time.monotonic() - started, weights=str(folder.relative_to(out)),
        wandb=str(wandb_folder.relative_to(out)) if wandb_folder.is_relative_to(out) else "",
        alarms=read_alarms(curves),
    )  # fmt: skip
    if keeper:
        unfinished.keep(name, run)
    return run


def with_random(bank: ConceptBank, concepts: Sequence[str], seed: int = 0) -> ConceptBank:
    """The bank and, for each of these concepts, as many random directions at its hooks, as `random-NAME`.

    Raises:
        ValueError: the bank has no such concept.
    """
    generator = torch.Generator().manual_seed(seed)
    for name in concepts:
        own = bank.select(name)
        random = replace(
            own,
            directions=unit_rows(torch.randn(own.directions.shape, generator=generator)),
            concepts=tuple(f"random-{name}" for _ in own.concepts),
            sources=tuple({"kind": "random", "seed": seed} for _ in own.concepts),
            readouts={},
        )
        bank = bank.merge(random)
    return bank
