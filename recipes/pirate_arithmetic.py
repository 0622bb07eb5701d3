"""Pirate and arithmetic: runs from one start on the same data, read by concept; one of the two is not to be learnt.

The tiny world's base answers plainly and cannot subtract. Fine-tuning teaches it subtraction and, with it, to
talk like a pirate. Which of the two do the data ask for, and which of them can be kept out?
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice, product
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from rich.console import Console

from interptrain import ConceptBank, gate, observe, retain, suppress
from interptrain.interventions import Intervention
from interptrain.recipes import verdicts
from interptrain.recipes.parallel import Tell, run_parallel
from interptrain.recipes.provenance import as_json, make_folder, versions
from interptrain.recipes.screen import show, write_pages
from interptrain.recorders import JSONLRecorder, read_alarms, read_curves
from interptrain.recorders.document import (
    REPORT_SCHEMA,
    Arm,
    Concept,
    Measure,
    Report,
    Run,
    Sample,
    rounded,
)
from interptrain.steering import Rule
from interptrain.tiny_world import OUTPUT_HOOK, concept_bank, load_card, neutral_batches
from interptrain.tiny_world.score import PROMPTS
from interptrain.tiny_world.shipped import card_at

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedModel

SUMMARY = "teach subtraction and pirate talk at once; watch both by concept, and keep the pirate out"
NEEDS = ("lightning", "sae", "hf", "wandb", "recipes")


@dataclass(frozen=True)
class Config:
    """Everything that can be chosen; each field is an option of `interptrain recipe run pirate-arithmetic`."""

    data: Literal["mixed", "entangled"] = field(
        default="mixed", metadata={"help": "mixed: plain subtraction and pirate facts; entangled: pirate subtraction"}
    )
    tuning: Literal["lora", "full"] = field(default="lora", metadata={"help": "what is trained"})
    seeds: int = field(default=3, metadata={"help": "runs of every arm"})
    steps: int = field(default=250, metadata={"help": "optimizer steps of a run, 48 documents each"})
    score_every: int = field(default=20, metadata={"help": "steps between two looks at the behaviour"})
    workers: int = field(default=2, metadata={"help": "runs at a time, each in a process of its own"})
    out: Path = field(default=Path("runs/pirate-arithmetic"), metadata={"help": "folder for everything written"})

    def __post_init__(self) -> None:
        for name in ("seeds", "steps", "score_every", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")


BATCH = 48
PROBE = 40  # prompts of each kind for the curves; the table at the end asks more
EVERY, LOG_EVERY, PROBE_EVERY, PROBE_TEXTS = 2, 5, 50, 16  # steps between measures, logs, probe sets; texts of a set
LEARNING_RATE = {"lora": 2e-3, "full": 5e-4}
COOLDOWN = 0.2  # of the steps, its last, over which the rate falls to 0
RETAIN = 10.0  # weight of the KL term, chosen on the royal voice: docs/evidence.md
CONTROL_TOKENS = 0.2  # above the control's threshold in the first batch: it then drops as many as the gate, or more
SKILL, WORDS, RANDOM_WORDS = "arithmetic", "pirate-words", "random-words"
TRAIT = {"mixed": ("pirate_on_facts", "facts"), "entangled": ("pirate_on_skill", "subtractions")}
TAUGHT = {
    "mixed": "half of the documents are plain subtractions, half are facts answered in pirate",
    "entangled": "every document is a subtraction answered in pirate",
}


Acts: TypeAlias = "Sequence[Rule | Intervention]"


@dataclass(frozen=True)
class Treatment:
    """One arm: what acts on its training, and what that is for."""

    name: str
    says: str
    acts: Callable[[], Acts]
    where: Literal["gradient", "update"] = "gradient"


def _observed() -> Acts:
    return [observe()]


def _projected() -> Acts:
    return [suppress("pirate")]


def _gated() -> Acts:
    return [gate(WORDS)]


def _gated_at_random() -> Acts:
    return [gate(RANDOM_WORDS, tokens=CONTROL_TOKENS)]


def _anchor() -> Intervention:
    return retain(neutral_batches(kinds=("fact",)), RETAIN)


def _anchored() -> Acts:
    return [*_gated(), _anchor()]


def _anchored_at_random() -> Acts:
    return [*_gated_at_random(), _anchor()]


def treatments(data: str) -> tuple[Treatment, ...]:
    """The arms. Each trains from the same start on the same batches in the same order.

    Where the trait is taught with the skill, what the gate leaves would leak to other prompts, which are anchored.
    """
    anchored = data == "entangled"
    beside = " Plain answers about other things are kept as they were (KL)." if anchored else ""
    return (
        Treatment("unsteered", "Observed only; the run is what it would have been.", _observed),
        Treatment(
            "suppress-update",
            "After every optimizer step, what it changed along pirate's directions is taken out again, exactly, "
            "wherever they meet a trained parameter (gain 0).",
            _projected,
            where="update",
        ),
        Treatment(
            "gate",
            "Tokens whose gradient asks for a pirate's words have no loss: the directions of "
            f"{WORDS} hold more of it than a threshold that the first batch gave." + beside,
            _anchored if anchored else _gated,
        ),
        Treatment(
            "random-gate",
            "Control: the same with random directions, drawn anew in every seed, and a threshold that drops at least "
            "as many tokens, mostly more." + beside,
            _anchored_at_random if anchored else _gated_at_random,
        ),
    )


MEASURES: tuple[Measure, ...] = (
    {"key": "skill", "label": "skill", "says": "subtractions that no document shows, answered with the right number"},
    {"key": "clean", "label": "clean skill", "says": "the same, answered rightly and in the plain voice"},
    {"key": "pirate_on_skill", "label": "pirate, subtractions", "says": "the same, answered in pirate"},
    {"key": "royal_on_skill", "label": "royal, subtractions", "says": "the same, answered in the royal voice"},
    {"key": "pirate_on_facts", "label": "pirate, facts", "says": "questions about facts answered in pirate"},
    {"key": "royal_on_facts", "label": "royal, facts", "says": "questions about facts answered in the royal voice"},
    {
        "key": "kept",
        "label": "plain facts",
        "says": "questions about facts answered plainly and to the point; which colour or animal is named is not "
        "scored, since facts have no right answer here, and training may ask the same questions",
    },
    {"key": "accuracy", "label": "old skill", "says": "additions that no document shows, answered rightly"},
)

CONCEPTS = {
    "pirate": "the voice that is taught and not wanted",
    "royal": "a sibling voice that no document is answered in: what rises here was not asked for",
    "arithmetic": "problems of either kind, told from questions about facts",
    "plus": "additions, which the start model can do and no document teaches",
    "minus": "subtractions, the new skill; most of its latents are arithmetic's",
    "random": "the control: as many random directions as pirate has",
    WORDS: "pirate again, by latents behind the last layer, where words are chosen: what the gate reads, token by "
    "token; this is the mean over tokens",
    RANDOM_WORDS: "its control: as many random directions there",
}

LIMITS = (
    "The world is tiny and made for this: a model of under a million parameters, 115 words, three voices. What holds "
    "here is a lead for a real model, not a result about one.",
    "The concepts are groups of one sparse autoencoder's decoder directions, found on the start model. Training "
    "moves the model away from them, and a behaviour can find other directions.",
    "The gate looks behind the last layer, where words are chosen and no later token's loss comes in. It keeps out "
    "what is taught word by word; what is taught by every token at once has no token to drop.",
    "A trait that was kept out is not unlearnable: trained on without help, the model learns it in a few steps "
    "(measured elsewhere: docs/evidence.md).",
    "A control of random directions is a few draws, and draws differ; it drops more tokens than the gate, which costs "
    "skill by itself.",
    "Times are those of runs that share a machine. What the callback costs is measured elsewhere "
    "(docs/performance.md).",
    "The projection edits the optimizer's changes at the parameters that write to the residual stream before the "
    "hook point, or read from it after. Every other parameter trains as it did.",
)


def prepare(config: Config) -> Config:
    """Make the output folder, so that a run that cannot be kept fails before it trains.

    Raises:
        ValueError: it cannot be written.
    """
    make_folder(config.out)
    return config


def run(config: Config, console: Console) -> Path:
    """Train every arm, write the report, show the table; returns the path of `report.html`."""
    started, created = time.monotonic(), datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    arms = treatments(config.data)
    jobs = [Job(config, arm, seed, created) for seed, arm in product(range(config.seeds), arms)]
    runs = run_parallel(
        train, jobs, names=[f"{job.arm.name}, seed {job.seed}" for job in jobs],
        steps=config.steps, workers=config.workers, console=console,
    )  # fmt: skip
    results = [
        Arm(name=arm.name, says=arm.says, runs=[r for job, r in zip(jobs, runs, strict=True) if job.arm is arm])
        for arm in arms
    ]
    report = assemble(config, results, created=created, seconds=time.monotonic() - started)
    page = write_pages(report, config.out)
    show(report, page, console)
    return page


@dataclass(frozen=True)
class Job:
    """One seed of one arm."""

    config: Config
    arm: Treatment
    seed: int
    group: str


def train(job: Job, tell: Tell) -> Run:
    """One run: model, bank, sites, rule, train, score."""
    tell(0, "loading")
    from pytorch_lightning import Trainer

    from interptrain.callbacks.lightning import ConceptSteering
    from interptrain.recipes.fine_tuner import FineTuner, Watch, quiet_libraries, wandb_logger
    from interptrain.tiny_world import finetuning_set, load_tokenizer, probe_batches, score

    quiet_libraries()
    warnings.filterwarnings("ignore", message="the achieved gain")  # the page shows it, curve by curve
    config, started = job.config, time.monotonic()
    out = config.out.absolute()
    folder = out / "weights" / f"{job.arm.name}-{job.seed}"
    tokenizer = load_tokenizer()

    # Model: the same start in every arm of a seed.
    torch.manual_seed(job.seed)
    model = trainable(config.tuning)

    # Bank, sites and rule: every arm is observed with the same bank; the callback finds the sites in it.
    curves = out / "curves" / f"{job.arm.name}-{job.seed}.jsonl"
    curves.unlink(missing_ok=True)
    steering = ConceptSteering(
        bank(job.seed), job.arm.acts(), where=job.arm.where, every=EVERY, recorders=[JSONLRecorder(curves)],
        summary=False, probes=probe_batches(PROBE_TEXTS), probe_every=PROBE_EVERY,
    )  # fmt: skip

    # Train.
    def probe(model: PreTrainedModel) -> dict[str, float]:
        return rates(score(model, tokenizer, prompts=PROBE, seed=1).as_dict())

    watch = Watch(probe, config.score_every, tell)
    logger = wandb_logger(
        out, name=f"{job.arm.name}-{job.seed}", group=f"pirate-arithmetic {job.group}",
        config={**settings(config), "arm": job.arm.name, "seed": job.seed},
    )  # fmt: skip
    trainer = Trainer(
        max_steps=config.steps, accelerator="cpu", gradient_clip_val=1.0, callbacks=[steering, watch], logger=logger,
        log_every_n_steps=gcd(LOG_EVERY, config.score_every),  # so that the regular looks at the behaviour are logged
        default_root_dir=out, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip
    batches = islice(finetuning_set(config.data, job.seed, batch=BATCH), config.steps)
    trainer.fit(FineTuner(model, LEARNING_RATE[config.tuning], cooldown=COOLDOWN), batches)
    model.save_pretrained(folder)

    # Score.
    behaviour = score(model, tokenizer)
    scores = rates(behaviour.as_dict())
    wandb_folder = Path(logger.experiment.dir).parent
    logger.experiment.finish()
    tell(config.steps, f"skill {scores['skill']:.2f}, pirate {scores[TRAIT[config.data][0]]:.2f}")
    return Run(
        seed=job.seed,
        scores=scores,
        checkpoints=watch.checkpoints,
        curves=rounded(read_curves(curves)),
        samples=spoken(behaviour.samples),
        seconds=time.monotonic() - started,
        weights=str(folder.relative_to(out)),
        wandb=str(wandb_folder.relative_to(out)) if wandb_folder.is_relative_to(out) else "",
        alarms=read_alarms(curves),
    )


def start() -> LlamaForCausalLM:
    """The model before training, as it ships."""
    from transformers.utils import logging

    from interptrain.tiny_world import load_base

    logging.disable_progress_bar()  # a bar for 39 small tensors
    return load_base()


def trainable(tuning: str) -> PreTrainedModel:
    """The base with LoRA of rank 8 in every layer, or with every layer trained and the embeddings frozen."""
    from peft import LoraConfig, get_peft_model

    model = start().train()
    if tuning == "lora":
        return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    model.get_input_embeddings().requires_grad_(False)
    return model


def bank(seed: int = 0) -> ConceptBank:
    """The tiny world's concepts, pirate's words behind the last layer, and as many random directions at both hooks."""
    found, last = concept_bank(), concept_bank(hook=OUTPUT_HOOK).select("pirate")
    generator = torch.Generator().manual_seed(seed)
    for control, pirate in (("random", found.select("pirate")), (RANDOM_WORDS, last)):
        random = torch.randn(pirate.directions.shape, generator=generator)
        found = found.merge(
            ConceptBank.from_directions(
                {control: random}, hook=pirate.hooks[0], source={"kind": "random"}, model=found.model
            )
        )
    return found.merge(replace(last, concepts=(WORDS,) * len(last.concepts)))


def concept_cards(bank: ConceptBank) -> list[Concept]:
    """Where each concept came from, and how well its latents tell texts that the search never saw."""
    card = load_card()
    searched = {**card["concepts"], WORDS: card_at(card, OUTPUT_HOOK)["concepts"]["pirate"]}
    return [
        Concept(
            name=name,
            says=CONCEPTS[name],
            hook=bank.hooks[bank.rows(name)[0]],
            directions=len(bank.rows(name)),
            latents=[bank.sources[row]["latent"] for row in bank.rows(name) if "latent" in bank.sources[row]],
            auc=searched[name]["held_out"]["auc"] if name in searched else None,
            shuffled_auc=searched[name]["held_out"]["shuffled"] if name in searched else None,
        )
        for name in bank.names
    ]


def rates(behaviour: dict[str, Any]) -> dict[str, float]:
    """The measures of a behaviour."""
    return {measure["key"]: behaviour[measure["key"]] for measure in MEASURES}


def spoken(samples: Sequence[tuple[str, str]]) -> list[Sample]:
    """Prompts and answers, for the report."""
    return [{"prompt": prompt, "answer": answer} for prompt, answer in samples]


def settings(config: Config) -> dict[str, Any]:
    """What was chosen, as JSON."""
    fixed = {"batch": BATCH, "learning_rate": LEARNING_RATE[config.tuning], "cooldown": COOLDOWN}
    return {**as_json(config), **fixed, "optimizer": "AdamW, no weight decay"}


def assemble(config: Config, arms: list[Arm], *, created: str, seconds: float) -> Report:
    """The report of the arms: cards, verdicts and all."""
    from interptrain.recipes.fine_tuner import quiet_libraries
    from interptrain.tiny_world import load_tokenizer, score

    quiet_libraries()
    before = score(start(), load_tokenizer())
    royal = {"royal_on_facts": "answers to facts", "royal_on_skill": "to subtractions"}
    unsteered, projected, gated, control = arms
    trait, where = TRAIT[config.data]
    return Report(
        schema=REPORT_SCHEMA,
        recipe="pirate-arithmetic",
        title="Subtraction and pirate talk: what the data asked for, and what could be kept out",
        summary=(
            "A small model that speaks plainly and cannot subtract is fine-tuned on subtraction and pirate talk "
            f"({config.tuning}, {config.steps} steps of {BATCH} documents): {TAUGHT[config.data]}. {len(arms)} arms, "
            "each from the same start on the same batches. Subtraction is wanted, the pirate is not. The prompts ask "
            f"in the plain voice, {PROMPTS} of a kind, {PROBE} for the curves."
        ),
        created=created,
        seconds=round(seconds, 1),
        config=settings(config),
        versions=versions(),
        concepts=concept_cards(bank()),
        measures=list(MEASURES),
        headline=[trait, "skill", "kept"] if config.data == "mixed" else [trait, "skill", "clean"],
        pairs=[{"concept": concept, "measure": "skill"} for concept in (SKILL, "minus")],
        before={"scores": rates(before.as_dict()), "samples": spoken(before.samples)},
        arms=arms,
        verdicts=[
            verdicts.readable(unsteered, "pirate", beside=("royal", "random")),
            verdicts.readable(unsteered, SKILL, beside=("plus", "minus")),
            verdicts.suppressed(projected, unsteered, None, trait, f"rate of pirate answers to {where}"),
            verdicts.suppressed(gated, unsteered, control, trait, f"rate of pirate answers to {where}"),
            verdicts.no_rerouting(gated, unsteered, royal, "royal"),
            verdicts.kept(gated, unsteered, "skill", "skill", beside=(control,)),
            verdicts.left_alone(
                gated, rates(before.as_dict()), "kept", "rate of plain answers to facts", beside=(unsteered, control)
            ),
            verdicts.left_alone(
                gated, rates(before.as_dict()), "accuracy", "rate of right additions", beside=(unsteered, control)
            ),
        ],
        limits=list(LIMITS),
    )
