"""A skill that is wanted and a style that comes with it: what the data ask for, and what can be kept out, on any model.

    interptrain recipe run style-vs-skill
    interptrain recipe run style-vs-skill --model MODEL --sae RELEASE --sae-id ID

The pirate experiment with generated data: the skill (sums of a kind) is to be learnt, the pirate is not.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor

from interptrain import ConceptBank, gate, observe, retain, suppress
from interptrain.recipes import verdicts
from interptrain.recipes.arms import Training, Treatment, train_arms
from interptrain.recipes.banks import PROBES, Sought, find_bank
from interptrain.recipes.examples import Columns, Example, encode, read_examples
from interptrain.recipes.loading import (
    TINY_WORLD,
    ModelChoice,
    Tuning,
    check_memory,
    device,
    in_bf16,
    load_model,
    load_tokenizer,
)
from interptrain.recipes.loading import estimate as estimate_memory
from interptrain.recipes.provenance import as_json, concept_cards, make_folder, versions
from interptrain.recipes.screen import show, write_pages
from interptrain.recipes.settings import option
from interptrain.recipes.style_axes import style_axes
from interptrain.recipes.style_data import STYLES, Item, World, asked, rates, teaching, told, write_items
from interptrain.recipes.style_english import English, Skill
from interptrain.recipes.style_tiny import TinyStyles
from interptrain.recipes.unfinished import Unfinished
from interptrain.recipes.voice import Voice
from interptrain.recorders.document import (
    REPORT_SCHEMA,
    Arm,
    Measure,
    Report,
    Sample,
    Scores,
    Verdict,
)
from interptrain.sae_fit import Fit, FitCheck
from interptrain.sites import find_sites
from interptrain.tiny_world import OUTPUT_HOOK
from interptrain.tiny_world.probes import first_answer_token

SUMMARY = "teach a skill and a style at once, on any model with generated data; keep the style out"
NEEDS = ("lightning", "sae", "hf", "wandb", "recipes")


@dataclass(frozen=True)
class Config:
    """Everything that can be chosen; each field is a flag and a line of the YAML file."""

    model: str = option("a folder, a model on the hub, or tiny-world for the embedded one", TINY_WORLD)
    sae: str | None = option(
        "an SAE to find the styles' latents in: a folder, a SAELens release; the embedded model has its own, another "
        "is read along means without"
    )
    sae_id: str | None = option("which SAE of a release")
    words_sae_id: str | None = option(
        "which SAE of the release the gate reads, best one behind the last layer; without it the gate reads the axes "
        "along which answers in the two styles differ there"
    )
    group: int = option("latents of a style, and directions of the gate", 8)
    data: Literal["mixed", "entangled"] = option(
        "mixed: the skill plainly, and other questions in pirate; entangled: the skill in pirate", "mixed"
    )
    skill: Skill = option("what is taught, of a model other than the embedded one", "subtraction")
    examples: int = option("generated for training", 6000)
    chat: bool = option("ask through the tokenizer's chat template", False)
    out: Path = option("folder for everything written, the data included", Path("runs/style-vs-skill"))

    tuning: Tuning = option("LoRA on every linear layer, or every parameter", "lora")
    rank: int = option("of the LoRA factors", 8)
    steps: int = option("optimizer steps of a run", 250)
    batch: int = option("examples of a batch", 48)
    learning_rate: float | None = option(
        "AdamW's; if not given 2e-4 for LoRA and 2e-5 for every parameter, of the embedded model 2e-3 and 5e-4"
    )
    max_length: int = option("tokens of an example; longer ones are cut off", 128)
    precision: Literal["auto", "32", "bf16"] = option("auto: bf16 on a GPU that has it, else 32", "auto")

    seeds: int = option("runs of every arm", 3)
    prompts: int = option("questions of each kind that the behaviour is scored on", 100)
    sae_check: bool = option("refuse an SAE that does not fit the model", True)
    memory_check: bool = option("refuse a run that cannot fit into memory", True)

    def __post_init__(self) -> None:
        for name in ("group", "examples", "rank", "steps", "batch", "max_length", "seeds", "prompts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, found {self.learning_rate}")
        if self.tiny and self.chat:
            raise ValueError("chat: the embedded model has no chat template")
        if self.words_sae_id and not self.sae:
            raise ValueError("words_sae_id is one of a release's SAEs: name the release with sae")

    @property
    def tiny(self) -> bool:
        """Whether it is the embedded model."""
        return self.model == TINY_WORLD

    @property
    def world(self) -> World:
        """Where questions and answers come from."""
        return TinyStyles() if self.tiny else English(self.skill, self.chat)

    @property
    def bf16(self) -> bool:
        """Whether weights and products are in bfloat16."""
        return in_bf16(self.precision)

    @property
    def choice(self) -> ModelChoice:
        """The model and what of it trains."""
        frozen = ("*embed_tokens*",) if self.tiny and self.tuning == "full" else ()
        return ModelChoice(self.model, self.tuning, self.rank, self.bf16, frozen)

    @property
    def rate(self) -> float:
        """AdamW's learning rate."""
        usual = {"lora": 2e-3, "full": 5e-4} if self.tiny else {"lora": 2e-4, "full": 2e-5}
        return self.learning_rate or usual[self.tuning]


EVERY, PROBE_EVERY = 2, 50  # steps between two readings
TEXTS = 64  # that show a style, and questions of the anchor
RETAIN = 10.0  # weight of the KL term
CONTROL_TOKENS = 0.2  # of the first batch: what the gate on random directions drops
AT_ONCE, SAMPLES = 32, 4
WORDS = "pirate-words"
OTHER_STYLE = {"pirate": "royal", "royal": "pirate"}
TRAIT = {"mixed": ("pirate_on_other", "other questions"), "entangled": ("pirate_on_skill", "the skill's questions")}

MEASURES: tuple[Measure, ...] = (
    {"key": "skill", "label": "skill", "says": "problems that no example shows, answered with the right number"},
    {"key": "clean", "label": "clean skill", "says": "the same, answered rightly and without a word of either style"},
    {"key": "pirate_on_skill", "label": "pirate, skill", "says": "the same, answered with a pirate's word"},
    {"key": "royal_on_skill", "label": "royal, skill", "says": "the same, answered with a courtier's word"},
    {"key": "pirate_on_other", "label": "pirate, others", "says": "other questions answered with a pirate's word"},
    {"key": "royal_on_other", "label": "royal, others", "says": "other questions answered with a courtier's word"},
    {"key": "kept", "label": "plain others", "says": "other questions answered plainly and to the point"},
)  # fmt: skip

CONCEPTS = {
    "pirate": "the style that is taught and not wanted, told from plain and royal answers",
    "royal": "a sibling style that no example is answered in: what rises here was not asked for",
    WORDS: "pirate again, where the gate reads it, token by token; this is the mean over tokens",
}

LIMITS = (
    "Styles are told by their words: an answer in pirate without any of them counts as plain.",
    "The concepts are directions found on the start model. Training moves the model away from them, and a behaviour "
    "can find other directions.",
    "The gate keeps out what is taught word by word; what is taught by every token at once has no token to drop.",
    "A control of random directions is one draw a seed, and draws differ; it drops more tokens than the gate, which "
    "costs skill by itself.",
)
TINY_LIMIT = "The embedded model is tiny and made for this. What holds here is a lead for a real model, not a result."
REAL_LIMIT = (
    "The settings were chosen on the embedded model. On real ones this recipe's data, rates and thresholds have not "
    "been tried out: read the answers."
)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run that can start.

    Args:
        config: what was chosen.
        voice: the start model, adapted, and its tokenizer.
        train: tokens and labels of the examples.
        bank: pirate, royal, and pirate's words where the gate reads them.
        probes: texts that are watched.
        anchor: plain answers to other questions, for `retain`.
        asked: held-out questions by kind, with what judges an answer.
        prompts: the same, as the model is asked.
    """

    config: Config
    voice: Voice
    train: list[dict[str, list[int]]]
    bank: ConceptBank
    probes: Mapping[str, list[dict[str, Tensor]]]
    anchor: list[dict[str, Tensor]]
    asked: Mapping[str, list[Item]]
    prompts: Mapping[str, list[Example]]


def prepare(config: Config) -> Prepared:
    """Load and check everything, and write the data into the output folder.

    Raises:
        ValueError: whatever does not fit, with what to do about it.
    """
    from transformers.utils import logging

    from interptrain.recipes.fine_tuner import quiet_libraries

    Unfinished(config.out).claim({}, resume=False)
    quiet_libraries()
    logging.disable_progress_bar()
    tokenizer = load_tokenizer(config.choice)
    (check_memory if config.memory_check else estimate_memory)(config.choice, config.batch, config.max_length)
    torch.manual_seed(0)
    model = load_model(config.choice).to(device())
    voice = Voice(model, tokenizer, config.max_length, AT_ONCE)
    make_folder(config.out)
    held = {kind: asked(config.world, kind, config.prompts, seed=1) for kind in ("skill", "other")}
    files = write_data(config, held)
    texts = {name: read_examples(file, Columns(), tokenizer) for name, file in files.items()}
    bank = styles_bank(config, voice, files)
    find_sites(model, bank, where="update")
    if config.sae_check:
        refuse_doubtful(FitCheck(bank).look(model, voice.batches(texts["plain"][:PROBES])))
    shown = {"neutral": texts["plain"], "pirate": texts["pirate"], "royal": texts["royal"]}
    return Prepared(
        config, voice, encode(tokenizer, texts["train"], config.max_length), bank,
        probes={name: [first_answer_token(b) for b in voice.batches(each[:PROBES])] for name, each in shown.items()},
        anchor=voice.batches(texts["neutral"]), asked=held, prompts={kind: texts[kind] for kind in held},
    )  # fmt: skip


def refuse_doubtful(fits: Sequence[Fit]) -> None:
    """Refuse an SAE that is not the model's, or not this layer's.

    Raises:
        ValueError: it explains little, or clearly more at another layer.
    """
    for fit in fits:
        if fit.doubtful:
            raise ValueError(f"{fit.doubt()} sae_check: false goes on regardless")


def write_data(config: Config, held: Mapping[str, list[Item]]) -> dict[str, Path]:
    """The data as JSONL in `OUT/data`, by name: `train`, `neutral`, what was held out, and each style's texts.

    `not-STYLE` has the same questions with the answers of the other two styles in turn.
    """
    world = config.world
    styled: dict[str, list[Item]] = {style: told(world, style, TEXTS, seed=0) for style in STYLES}
    absent = {
        f"not-{style}": [pair[n % 2] for n, pair in enumerate(zip(styled["plain"], styled[sibling], strict=True))]
        for style, sibling in OTHER_STYLE.items()
    }
    sets: dict[str, list[Item]] = {
        "train": teaching(world, config.data, config.examples, seed=0),
        "neutral": told(world, "plain", TEXTS, seed=1), **styled, **absent, **held,
    }  # fmt: skip
    folder = config.out / "data"
    return {name: write_items(folder / f"{name}.jsonl", items, chat=config.chat) for name, items in sets.items()}


def styles_bank(config: Config, voice: Voice, files: Mapping[str, Path]) -> ConceptBank:
    """Both styles by contrast, and pirate again where the gate reads."""
    sae, words_id = config.sae, config.words_sae_id
    if config.tiny and sae is None:
        sae, words_id = TINY_WORLD, OUTPUT_HOOK
    contrast = {style: (files[style], files[f"not-{style}"]) for style in OTHER_STYLE}
    bank = find_bank(Sought(sae=sae, sae_id=config.sae_id, contrast=contrast, group=config.group), voice, [])
    if words_id is None:
        sides = (read_examples(files[name], Columns(), voice.tokenizer) for name in ("pirate", "plain"))
        return bank.merge(style_axes(voice, WORDS, *sides, count=config.group))
    sought = Sought(sae=sae, sae_id=words_id, contrast={"pirate": contrast["pirate"]}, group=config.group)
    last = find_bank(sought, voice, [])
    if last.hooks[0] in bank.readouts:  # the same SAE: one read-out of it is enough
        last = replace(last, readouts={})
    return bank.merge(replace(last, concepts=(WORDS,) * len(last.concepts)))


def arms(config: Config, anchor: Sequence[Mapping[str, Tensor]]) -> tuple[Treatment, ...]:
    """What is trained; where the style is taught with the skill, plain answers to other questions are anchored."""
    entangled = config.data == "entangled"
    kept = [retain(anchor, RETAIN)] if entangled else []
    beside = " Plain answers to other questions are kept (KL)." if entangled else ""
    return (
        Treatment("observed", "Watched only; the run is what it would have been.", [observe()]),
        Treatment("suppress-update", "Pirate is removed from every update of the optimizer.", [suppress("pirate")]),
        Treatment(
            "gate", f"Tokens whose gradient asks for {WORDS} have no loss.{beside}", [gate(WORDS), *kept], "gradient"
        ),
        Treatment(
            "random-gate",
            "Control: the same along as many random directions, drawn anew in every seed; it drops a fifth of the "
            f"first batch's tokens.{beside}",
            [gate(f"random-{WORDS}", tokens=CONTROL_TOKENS), *kept],
            "gradient",
        ),
    )


def run(prepared: Prepared, console: Console) -> Path:
    """Train every arm, write the report, show the table; returns the path of `report.html`."""
    config, voice = prepared.config, prepared.voice
    started, created = time.monotonic(), datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    warnings.filterwarnings("ignore", message="the achieved gain")  # the page shows it, curve by curve
    prepared.bank.save(config.out / "bank")

    def score(model: Any) -> Scores:
        speaking, (skill, other) = replace(voice, model=model), (prepared.asked[kind] for kind in ("skill", "other"))
        said, said_else = (speaking.answers(prepared.prompts[kind], tokens=32) for kind in ("skill", "other"))
        return rates(config.world, skill, said, other, said_else)

    def answer(model: Any) -> list[Sample]:
        return voice.samples(model, [each for kind in prepared.prompts for each in prepared.prompts[kind][:SAMPLES]])

    before, said_before = score(voice.model), answer(voice.model)
    training = Training(
        recipe="style-vs-skill", choice=config.choice, tokenizer=voice.tokenizer, rows=prepared.train,
        bank=prepared.bank, probes=prepared.probes, score=score, answer=answer, out=config.out, steps=config.steps,
        rate=config.rate, batch=config.batch, every=EVERY, probe_every=PROBE_EVERY, settings=as_json(config),
        redraw=(WORDS,),
    )  # fmt: skip
    treated = arms(config, prepared.anchor)
    results = train_arms(training, treated, seeds=config.seeds, created=created, console=console)
    report = Report(
        schema=REPORT_SCHEMA, recipe="style-vs-skill",
        title=f"A skill and a style in {Path(config.model).name}: what the data asked for, and what could be kept out",
        summary=summary(config), created=created, seconds=round(time.monotonic() - started, 1),
        config={**as_json(config), "learning_rate": config.rate}, versions=versions(),
        concepts=[
            {**card, "says": f"{CONCEPTS[card['name']]} ({card['says']})"} for card in concept_cards(prepared.bank)
        ],
        measures=list(MEASURES), headline=[TRAIT[config.data][0], "skill", "clean", "kept"], pairs=[],
        before={"scores": before, "samples": said_before}, arms=results,
        verdicts=judged(config, results, before),
        limits=[TINY_LIMIT if config.tiny else REAL_LIMIT, *LIMITS],
    )  # fmt: skip
    page = write_pages(report, config.out)
    show(report, page, console)
    return page


def judged(config: Config, results: Sequence[Arm], before: Scores) -> list[Verdict]:
    """The answers that follow from the numbers."""
    observed, projected, gated, control = results
    trait, where = TRAIT[config.data]
    rate = f"rate of pirate answers to {where}"
    royal = {"royal_on_other": "answers to other questions", "royal_on_skill": "to the skill's"}
    return [
        verdicts.readable(observed, "pirate", beside=("royal",)),
        verdicts.suppressed(projected, observed, None, trait, rate),
        verdicts.suppressed(gated, observed, control, trait, rate),
        verdicts.no_rerouting(gated, observed, royal, "royal"),
        verdicts.kept(gated, observed, "skill", "skill", beside=(control,)),
        verdicts.left_alone(
            gated, before, "kept", "rate of plain answers to other questions", beside=(observed, control)
        ),
    ]


def summary(config: Config) -> str:
    """What was run, in words."""
    taught = {
        "mixed": "half of the examples are problems answered plainly, half other questions answered in pirate",
        "entangled": "every example is a problem answered in pirate",
    }
    skill = "subtraction" if config.tiny else config.skill
    return (
        f"{config.model} is fine-tuned ({config.tuning}, {config.steps} steps of {config.batch}) on a skill "
        f"({skill}) and pirate talk: {taught[config.data]}. The skill is wanted, the pirate is not. {config.prompts} "
        "held-out questions of each kind ask in no style."
    )
