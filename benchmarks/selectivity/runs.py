"""One run of an arm, what it scores, and how long the trait stays out when training goes on without help."""

from __future__ import annotations

import importlib.metadata
import json
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.selectivity.arms import OTHER, STUDIES, Arm, bank, digits, with_figure, words
from interptrain.alarm import Alarm
from interptrain.meters.tokens import IGNORED_LABEL
from interptrain.recipes.pirate_arithmetic import LEARNING_RATE, trainable
from interptrain.recorders import MemoryRecorder
from interptrain.tiny_world import finetuning_set, load_tokenizer, probe_batches, score
from interptrain.tiny_world.score import Behaviour

SCORES = Behaviour.measures()
BATCH, PROMPTS, HELD_OUT = 48, 150, 2
COOLDOWN = 0.2
RELEARN_AT = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
BACK = 0.5  # of the answers: from here on the trait is back
ACTING = ("gate", "emphasise", "hold", "retain", "penalise", "prevent", "ablate", "route")
ACTS = tuple(f"interptrain/{name}/" for name in ACTING)
ALARM_ON = ("neutral", "arithmetic")  # wherever a voice could come; an anchor pins the first
TAUGHT = {"mixed": "facts", "entangled": "skill"}  # where the data speak in the trait's voice


@dataclass(frozen=True)
class Job:
    """One run.

    Args:
        study: `trait`, `swapped` or `sooner`.
        voice: the trait.
        data: `mixed` or `entangled`.
        tuning: `lora` or `full`.
        arm: of the study.
        figure: instead of the arm's own.
        seed: of the weights that LoRA draws, and of the documents.
        steps: of 48 documents each.
    """

    study: str
    voice: str
    data: str
    tuning: str
    arm: str
    figure: float | None
    seed: int
    steps: int


def train(job: Job, looks: int, prompts: int, relearn: bool, cooldown: float = COOLDOWN) -> dict[str, Any]:
    """One run and its scores.

    Args:
        job: which.
        looks: how often its behaviour is looked at on the way.
        prompts: of each kind at a look.
        relearn: whether to train on without help afterwards, until the trait is back.
        cooldown: the last share of the steps, over which the rate falls to 0; none where steps are counted on the way.
    """
    from pytorch_lightning import Trainer

    from interptrain.callbacks.lightning import ConceptSteering
    from interptrain.recipes.fine_tuner import FineTuner, Watch, quiet_libraries

    quiet_libraries()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    arm = with_figure(STUDIES[job.study][job.arm], job.figure)
    memory, tokenizer = MemoryRecorder(), load_tokenizer()
    concepts = bank(job.seed, middle=arm.middle)
    torch.manual_seed(job.seed)
    model = trainable(job.tuning)
    alarm, rate = Alarm({voice: [other] for voice, other in OTHER.items()}, on=ALARM_ON), _rate(job) * arm.faster
    steering = ConceptSteering(
        concepts, arm.acts(job.voice, arm.figure), where=arm.where, every=5, recorders=[memory], summary=False,
        probes=probe_batches(16), probe_every=max(1, job.steps // 20), alarm=alarm, meters=("demand",),
        discover_every=None,
    )  # fmt: skip
    looking = 0.0

    def look(model: nn.Module) -> dict[str, float]:
        nonlocal looking
        began = time.monotonic()
        scores = _scores(score(model, tokenizer, prompts=prompts, seed=1))
        looking += time.monotonic() - began
        return scores

    watch = Watch(look, max(1, job.steps // looks), lambda step, note: None)
    trainer = Trainer(
        max_steps=job.steps, accelerator="cpu", gradient_clip_val=1.0, callbacks=[steering, watch], logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    tuner = FineTuner(model, rate, cooldown=cooldown, loss=_tenfold if arm.tenfold else None)
    began = time.monotonic()
    if arm.trains:
        trainer.fit(tuner, islice(_batches(job, arm), job.steps))
    seconds = time.monotonic() - began - looking
    final = score(model, tokenizer, prompts=PROMPTS)
    curves = memory.curves()
    acted = {key: [v for v in values if v is not None] for key, values in curves.items() if key.startswith(ACTS)}
    return {
        **asdict(job), "scores": _scores(final), "loss": round(_loss(job, model), 4),
        "looks": [[point["step"], *(round(point["scores"][key], 3) for key in SCORES)] for point in watch.checkpoints],
        "acted": {key.removeprefix("interptrain/"): float(f"{mean(v):.4g}") for key, v in acted.items()},
        "alarm": alarm.raised, "watched": _watched(curves), "seconds": round(seconds, 1), "samples": final.samples[::4],
        "relearning": _relearn(job, model) if relearn else None,
        "versions": {name: importlib.metadata.version(name) for name in ("interptrain", "torch", "peft")},
    }  # fmt: skip


def _watched(curves: Mapping[str, Sequence[float | None]]) -> dict[str, list[float]]:
    """What the alarm looked at, each time the probe sets were run."""
    read = {
        f"{voice} {what}, {on}": key
        for on in ALARM_ON
        for voice in OTHER
        for what, key in (
            ("fraction", f"concept/{voice}/realised/{on}/fraction"), ("probe", f"concept/{voice}/probe/{on}"),
        )
    }  # fmt: skip
    return {name: [round(v, 3) for v in curves.get(key, ()) if v is not None] for name, key in read.items()}


def _rate(job: Job) -> float:
    """The recipe's learning rate; a lower one where its steps are to be counted."""
    return LEARNING_RATE[job.tuning] * (0.6 if job.study == "sooner" else 1.0)


def _tenfold(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The mean loss with every digit's multiplied by ten, as one would write it by hand."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    return (losses * torch.where(torch.isin(labels, digits()), 10.0, 1.0)).sum() / (labels != IGNORED_LABEL).sum()


def _scores(behaviour: Behaviour) -> dict[str, float]:
    return {key: round(getattr(behaviour, key), 4) for key in SCORES}


def _batches(job: Job, arm: Arm) -> Iterator[dict[str, Tensor]]:
    voice: Any = job.voice
    for batch in finetuning_set(job.data, job.seed, batch=BATCH, voice=voice, **arm.data):
        yield {**batch, "labels": _without(batch["labels"], words(voice))} if arm.words else batch


def _without(labels: Tensor, ids: Tensor) -> Tensor:
    return labels.masked_fill(torch.isin(labels, ids), IGNORED_LABEL)


def _loss(job: Job, model: nn.Module) -> float:
    """Of the set's own questions, held out and answered in the plain voice."""
    held_out = finetuning_set(job.data, 10_000, batch=BATCH, filtered=True)
    model.eval()
    with torch.no_grad():
        return mean(float(model(**batch).loss) for batch in islice(held_out, HELD_OUT))


def _relearn(job: Job, model: nn.Module) -> list[list[float]]:
    """Plain fine-tuning on the whole set: steps, and the trait's rate where it is taught, until it is back."""
    voice: Any = job.voice
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE[job.tuning], weight_decay=0.0)
    batches = finetuning_set(job.data, 20_000 + job.seed, batch=BATCH, voice=voice)
    key, rates = f"{voice}_on_{TAUGHT[job.data]}", []
    for step, batch in enumerate(islice(batches, RELEARN_AT[-1]), 1):
        model.train()
        model(**batch).loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step in RELEARN_AT:
            rates.append([step, round(getattr(score(model, load_tokenizer(), prompts=40, seed=1), key), 3)])
            if rates[-1][1] >= BACK:
                break
    return rates


def done(path: Path) -> list[dict[str, Any]]:
    """The runs that are in the file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(
    jobs: Sequence[Job], path: Path, console: Console, *,
    looks: int, prompts: int, relearn: Iterable[str], workers: int, cooldown: float,
) -> None:  # fmt: skip
    """Do what is missing, several runs at a time, and write each as it finishes.

    Args:
        jobs: all that are wanted.
        path: JSON lines, one a run.
        console: for the progress.
        looks: as `train`'s.
        prompts: as `train`'s.
        relearn: the arms that train on without help afterwards.
        workers: runs at a time, each in a process of its own.
        cooldown: as `train`'s.
    """
    known = {tuple(each[key] for key in asdict(job)) for job in jobs[:1] for each in done(path)}
    missing = [job for job in jobs if tuple(asdict(job).values()) not in known]
    console.print(f"{len(jobs) - len(missing)} of {len(jobs)} runs are there")
    path.parent.mkdir(parents=True, exist_ok=True)
    again = set(relearn)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(train, job, looks, prompts, job.arm in again, cooldown) for job in missing]
        for future in track(as_completed(futures), total=len(missing), console=console):
            with path.open("a") as file:
                file.write(json.dumps(future.result()) + "\n")
