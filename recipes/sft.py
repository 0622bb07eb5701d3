"""Supervised fine-tuning of a model of your own on data of your own, read and steered by concept.

    interptrain recipe run sft --model MODEL --data FILE.jsonl

Every run is measured on examples it did not see and on the model's own answers from before training: how well it learnt
what it was taught, and how far it left what it was.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from torch import Tensor, nn

from interptrain import ConceptBank, amplify, gate, observe, retain, suppress
from interptrain.recipes import verdicts
from interptrain.recipes.arms import Acts, Training, Treatment, train_arms, with_random
from interptrain.recipes.banks import DATA, PROBES, TEXTS, Sought, find_bank, probe_sets
from interptrain.recipes.examples import Columns, Example, encode, read_examples
from interptrain.recipes.loading import (
    Memory,
    ModelChoice,
    Tuning,
    check_memory,
    device,
    estimate,
    in_bf16,
    load_config,
    load_model,
    load_tokenizer,
    positions_of,
)
from interptrain.recipes.provenance import as_json, concept_cards, data_file, make_folder, versions
from interptrain.recipes.screen import scores_table, show_verdicts, write_pages
from interptrain.recipes.settings import option
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
from interptrain.recorders.tokens import TokenFile, read_tokens, write_tokens
from interptrain.sae_fit import Fit, FitCheck
from interptrain.sites import find_sites

SUMMARY = "fine-tune a model of yours on data of yours, watched and steered by concept"
NEEDS = ("lightning", "sae", "hf", "wandb", "recipes")


@dataclass(frozen=True)
class Config:
    """Everything that can be chosen; each field is a flag and a line of the YAML file."""

    model: str = option("a folder, a model on the hub, or tiny-world for the embedded one", "")
    data: Path | None = option("a JSONL file, or a folder that Dataset.save_to_disk wrote")
    out: Path = option("folder for everything written", Path("runs/sft"))
    prompt_column: str | None = option("column of what is asked; found by its usual names if not given")
    completion_column: str | None = option("column of what is to be answered, which is in the loss")
    text_column: str | None = option("column of plain texts, in place of the two")

    concepts: Path | None = option(
        "a saved concept bank; without any concept, what the data say and the model would not"
    )
    sae: str | None = option("an SAE to take concepts from: a folder, a SAELens release, or tiny-world")
    sae_id: str | None = option("which SAE of a release")
    latents: dict[str, tuple[int, ...]] = option("concepts by latents of the SAE", factory=dict)
    contrast: dict[str, tuple[Path, Path]] = option(
        "concepts by two JSONL files: texts that show it, and texts that do not", factory=dict
    )
    hook: str | None = option("where contrasts are read without an SAE; two thirds up if not given")
    group: int = option("latents of a contrasted concept", 8)

    other_model: bool = option("take an SAE of another model than the one that trains, say of its base", False)

    suppress: tuple[str, ...] = option("concepts to remove from every step", ())
    amplify: dict[str, float] = option("concepts to multiply in every step, by a gain above 1", factory=dict)
    gate: tuple[str, ...] = option("concepts whose tokens are taken out of the loss", ())
    retain: float = option("weight of a KL term that keeps the model's own answers; 0 without", 0.0)
    where: Literal["gradient", "update"] = option("what suppress and amplify edit", "update")
    controls: bool = option("also train without steering, and steered along random directions", False)

    tuning: Tuning = option("LoRA on every linear layer, or every parameter", "lora")
    rank: int = option("of the LoRA factors", 16)
    freeze: tuple[str, ...] = option("name patterns of parameters that do not train", ())
    skip: tuple[str, ...] = option("name patterns of parameters that train and are neither read nor steered", ())
    epochs: float = option("passes over the data", 1.0)
    steps: int | None = option("optimizer steps, in place of epochs")
    batch: int = option("examples of a batch", 8)
    accumulate: int = option("batches of an optimizer step", 1)
    learning_rate: float | None = option("AdamW's; 2e-4 for LoRA and 2e-5 for every parameter if not given")
    max_length: int = option("tokens of an example; longer ones are cut off", 512)
    precision: Literal["auto", "32", "bf16"] = option("auto: bf16 on a GPU that has it, else 32", "auto")
    checkpointing: bool = option("recompute activations: less memory, about a third more time", False)
    pad_token: str | None = option("for a tokenizer with neither a padding nor an end token")

    every: int = option("steps between two readings of the concepts", 1)
    probe_every: int = option("steps between two readings of the fixed texts", 50)
    held_out: float = option("share of the examples that is measured on and not trained on", 0.05)
    seeds: int = option("runs of every arm", 1)
    resume: bool = option("go on with a run that was cut off in the same folder", False)
    save_every: int = option("steps between two checkpoints to resume from", 100)
    memory_check: bool = option("refuse a run that cannot fit into memory", True)
    sae_check: bool = option("refuse an SAE that explains little of the model, or more at another layer", True)

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model is needed: --model FOLDER, a name on the hub, or tiny-world")
        if self.data is None:
            raise ValueError("data is needed: --data FILE.jsonl with a prompt and a completion, or a text, a line")
        counts = ("group", "rank", "batch", "accumulate", "max_length", "every", "probe_every", "save_every", "seeds")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name in ("epochs", "steps", "learning_rate"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, found {getattr(self, name)}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out is a share between 0 and 1, found {self.held_out}")
        if not self.retain >= 0:
            raise ValueError(f"retain is a weight of 0 or more, found {self.retain}")
        self.columns, self.sought  # noqa: B018  they check themselves

    @property
    def columns(self) -> Columns:
        """Where the texts are."""
        return Columns(self.prompt_column, self.completion_column, self.text_column)

    @property
    def sought(self) -> Sought:
        """Where the concepts come from."""
        return Sought(
            self.concepts, self.sae, self.sae_id, self.latents, self.contrast, self.hook, self.group, self.other_model
        )  # fmt: skip

    @property
    def choice(self) -> ModelChoice:
        """The model and what of it trains."""
        return ModelChoice(
            self.model, self.tuning, self.rank, self.bf16, self.freeze, self.pad_token, self.checkpointing
        )

    @property
    def bf16(self) -> bool:
        """Whether weights and products are in bfloat16."""
        return in_bf16(self.precision)

    @property
    def rate(self) -> float:
        """AdamW's learning rate."""
        return self.learning_rate or {"lora": 2e-4, "full": 2e-5}[self.tuning]

    @property
    def acts(self) -> bool:
        """Whether anything is done, or only watched."""
        return bool(self.suppress or self.amplify or self.gate or self.retain)


FREE = ("resume", "save_every", "memory_check", "sae_check")  # may differ in a run that goes on
MIN_EXAMPLES, MIN_HELD, MAX_HELD = 8, 2, 128
SAMPLES = 4
TOKENS = "tokens.json"  # the last batch, each word with what it asked for
RANDOM_TOKENS = 0.2  # of the first batch: what a gate on random directions drops

MEASURES: tuple[Measure, ...] = (
    {"key": "held_out_loss", "label": "held-out loss", "says": "nats a token on examples of the data that it did not "
     "train on: how well it learnt what it was taught"},
    {"key": "own_loss", "label": "loss on its own answers", "says": "nats a token on what the model itself answered to "
     "held-out questions before training: how far it has left what it was"},
)  # fmt: skip
LIMITS = (
    "A loss is no behaviour: read the answers. Whether a concept came or stayed away in what the model says is not "
    "scored here.",
    "The concepts are directions found on the start model. Training moves the model away from them, and a behaviour "
    "can find other directions.",
    "Projecting a concept out of every step does not keep it out by itself: a model goes around directions.",
)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run that can start: everything that a user can get wrong has been looked at.

    Args:
        config: what was chosen.
        voice: the start model, adapted, and its tokenizer.
        train: tokens and labels of the examples to train on.
        held: questions and answers that are held out.
        own: the same questions with the model's own answers.
        unused: examples of which `max_length` left no answer.
        bank: the concepts, and a random one for each that is acted on.
        probes: texts that are watched.
        arms: what is trained.
        memory: what training takes at least.
        fits: how much of the model's own answers the bank's SAEs explain.
    """

    config: Config
    voice: Voice
    train: list[dict[str, list[int]]]
    held: list[Example]
    own: list[Example]
    unused: int
    bank: ConceptBank
    probes: Mapping[str, list[dict[str, Tensor]]]
    arms: tuple[Treatment, ...]
    memory: Memory
    fits: tuple[Fit, ...]

    @property
    def steps(self) -> int:
        """Optimizer steps of a run."""
        config = self.config
        whole = config.epochs * len(self.train) / (config.batch * config.accumulate)
        return config.steps or max(1, round(whole))


def prepare(config: Config) -> Prepared:
    """Load and check everything; the output folder is made last.

    Raises:
        ValueError: whatever does not fit, with what to do about it.
    """
    from transformers.utils import logging

    from interptrain.recipes.fine_tuner import quiet_libraries

    unfinished = Unfinished(config.out)
    kept = unfinished.claim(settings(config), resume=config.resume)
    quiet_libraries()
    logging.disable_progress_bar()  # a bar for every load
    assert config.data is not None
    tokenizer = load_tokenizer(config.choice)
    examples = read_examples(config.data, config.columns, tokenizer)
    digest = data_file(config.data, "", len(examples))["sha256"]
    if kept is not None and kept["data"] != digest:
        raise ValueError(
            f"'{config.data}' is not what the run in '{config.out}' was begun with; resume it with the same"
        )
    if len(examples) < MIN_EXAMPLES:
        raise ValueError(f"'{config.data}' has {len(examples)} examples, expected at least {MIN_EXAMPLES}")
    max_length = min(config.max_length, positions_of(load_config(config.choice)) or config.max_length)
    rows = [(each, row) for each in examples for row in encode(tokenizer, [each], max_length)]
    if len(rows) < MIN_EXAMPLES:
        raise ValueError(
            f"max_length {max_length} leaves {len(rows) or 'no'} answers of '{config.data}' in the loss, expected at "
            f"least {MIN_EXAMPLES}: prompts are longer"
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    count = min(MAX_HELD, max(MIN_HELD, round(config.held_out * len(rows))))
    held, rest = [rows[n][0] for n in order[:count]], [rows[n][0] for n in order[count:]]
    train = [rows[n][1] for n in order[count:]]
    check = check_memory if config.memory_check else estimate
    memory = check(config.choice, config.batch, max(len(row["input_ids"]) for row in train))

    torch.manual_seed(0)
    model = load_model(config.choice).to(device())
    largest, words = max(max(row["input_ids"]) for _, row in rows), model.get_input_embeddings().weight.shape[0]
    if largest >= words:
        raise ValueError(
            f"the tokenizer of '{config.model}' makes token {largest} of '{config.data}' but the model has {words}, "
            "counted from 0: it is another model's, or words were added without model.resize_token_embeddings"
        )
    voice = Voice(model, tokenizer, max_length)
    held = voice.questions(held)
    own = voice.own(held[:PROBES]) if kept is None else [Example(**each) for each in kept["own"]]
    if len(own) < MIN_HELD:
        raise ValueError(
            f"'{config.model}' answers {len(own)} of the first {len(held[:PROBES])} held-out questions of "
            f"'{config.data}', expected at least {MIN_HELD}: are these its kind of texts?"
        )
    if kept is None:
        bank = with_random(find_bank(config.sought, voice, voice.questions(rest[:TEXTS])), acted_on(config))
    else:
        bank = ConceptBank.load(config.out / "bank")
    find_sites(model, bank, skip=config.skip, where=config.where)
    treatments, probes = arms(config, voice.batches(own)), probe_sets(config.sought, voice, own, held)
    fits = check_saes(config, FitCheck(bank).look(model, probes["neutral"]))
    if kept is None:
        make_folder(config.out)
        bank.save(config.out / "bank")  # first: from `begin` on there is a run to go on with
        unfinished.begin({"settings": settings(config), "data": digest, "own": [vars(each) for each in own]})
    unused = len(examples) - len(rows)
    return Prepared(config, voice, train, held, own, unused, bank, probes, treatments, memory, fits)


def check_saes(config: Config, fits: tuple[Fit, ...]) -> tuple[Fit, ...]:
    """Refuse an SAE that is not the model's, or not this layer's.

    Raises:
        ValueError: it explains little, or clearly more at another layer.
    """
    for fit in fits if config.sae_check else ():
        if fit.doubtful:
            raise ValueError(f"{fit.doubt()} sae_check: false goes on regardless")
    return fits


def settings(config: Config) -> dict[str, Any]:
    """What a run that goes on must have been begun with."""
    return {name: value for name, value in as_json(config).items() if name not in FREE}


def acted_on(config: Config) -> tuple[str, ...]:
    """The concepts that something is done to."""
    return tuple(dict.fromkeys((*config.suppress, *config.amplify, *config.gate)))


def arms(config: Config, own: Sequence[Mapping[str, Tensor]]) -> tuple[Treatment, ...]:
    """What is trained: the run itself and, as controls, one that is only watched and one steered at random.

    Args:
        config: what was chosen.
        own: batches of the model's own answers, for `retain`.
    """
    watched = Treatment("observed", "Watched only; the run is what it would have been.", [observe()], config.where)
    if not config.acts:
        return (watched,)
    anchor = [retain(own, config.retain)] if config.retain else []
    steered = Treatment("steered", said(config), [*acts(config), *anchor], config.where)
    if not config.controls:
        return (steered,)
    random = Treatment(
        "random", "Control: the same along as many random directions.", [*acts(config, random=True), *anchor],
        config.where,
    )  # fmt: skip
    return (watched, steered, random) if acted_on(config) else (watched, steered)


def acts(config: Config, *, random: bool = False) -> Acts:
    """The rules and gates that were asked for, or the same along random directions."""
    name = "random-{}".format if random else str
    return [
        *(suppress(name(concept)) for concept in config.suppress),
        *(amplify(name(concept), gain) for concept, gain in config.amplify.items()),
        *(gate(name(concept), tokens=RANDOM_TOKENS if random else None) for concept in config.gate),
    ]


def said(config: Config) -> str:
    """What is done, in words."""
    parts = [
        *(f"the concept '{concept}' is removed from every {config.where}" for concept in config.suppress),
        *(
            f"the concept '{concept}' is multiplied by {gain:g} in every {config.where}"
            for concept, gain in config.amplify.items()
        ),
        *(f"tokens that ask for the concept '{concept}' have no loss" for concept in config.gate),
        *([f"the model's own answers are kept (KL, weight {config.retain:g})"] if config.retain else []),
    ]
    return f"{'; '.join(parts)[:1].upper()}{'; '.join(parts)[1:]}."


def run(prepared: Prepared, console: Console) -> Path:
    """Train every arm, write the report, show the table; returns the path of `report.html`."""
    config, started, created = prepared.config, time.monotonic(), datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    introduce(prepared, console)
    voice, held, own = prepared.voice, prepared.held, prepared.own
    total = len(prepared.train) + prepared.unused + len(held)
    data = data_file(Path(str(config.data)), f"{len(prepared.train)} trained on, {len(held)} held out", total)

    def score(model: nn.Module) -> Scores:
        return {"held_out_loss": voice.mean_loss(model, held), "own_loss": voice.mean_loss(model, own)}

    def answer(model: Any) -> list[Sample]:
        return voice.samples(model, held[:SAMPLES])

    before, said_before = score(voice.model), answer(voice.model)
    voice.rest()
    training = Training(
        recipe="sft", choice=config.choice, tokenizer=voice.tokenizer, rows=prepared.train, bank=prepared.bank,
        probes=prepared.probes, score=score, answer=answer, out=config.out, steps=prepared.steps, rate=config.rate,
        batch=config.batch, accumulate=config.accumulate, every=config.every, probe_every=config.probe_every,
        skip=config.skip, save_every=config.save_every, settings=as_json(config),
        options={"check_saes": False, "token_view": TokenFile(config.out / TOKENS, voice.tokenizer)},
    )  # fmt: skip
    results = train_arms(training, prepared.arms, seeds=config.seeds, created=created, console=console)
    report = Report(
        schema=REPORT_SCHEMA, recipe="sft", title=f"{Path(config.model).name} trained on {Path(str(config.data)).name}",
        summary=summary(prepared), created=created, seconds=round(time.monotonic() - started, 1),
        config={**as_json(config), "steps": prepared.steps, "memory": prepared.memory.as_json()},
        versions=versions(), concepts=concept_cards(prepared.bank), measures=list(MEASURES),
        headline=[measure["key"] for measure in MEASURES], pairs=[],
        before={"scores": before, "samples": said_before}, arms=results, verdicts=judged(results, before),
        limits=list(LIMITS), data=[data],
    )  # fmt: skip
    page = write_pages(report, config.out)
    if (config.out / TOKENS).exists():  # not where every run was done before
        write_tokens(read_tokens(config.out / TOKENS), config.out / "tokens.html")
    Unfinished(config.out).end()
    show(report, page, console)
    return page


def judged(results: Sequence[Arm], before: Scores) -> list[Verdict]:
    """The answers that follow from the numbers."""
    found = [verdicts.learnt(arm, before["held_out_loss"], "held_out_loss") for arm in results]
    if len(results) > 1:
        observed, steered, *control = results
        found.append(verdicts.cost(steered, observed, "held_out_loss", beside=control))
    return found


def summary(prepared: Prepared) -> str:
    """What was run, in words."""
    config = prepared.config
    return (
        f"{config.model} ({prepared.memory.parameters / 1e6:.3g} million parameters, {config.tuning}) trained on "
        f"{len(prepared.train)} examples of {config.data} for {prepared.steps} steps of "
        f"{config.batch * config.accumulate}; {len(prepared.held)} are held out. Concepts: "
        f"{', '.join(prepared.bank.names)}."
    )


def introduce(prepared: Prepared, console: Console) -> None:
    """Say what is about to run and what was decided on the user's behalf."""
    config = prepared.config
    console.print(summary(prepared), highlight=False, markup=False)
    console.print(f"memory needed, at least: {decimal(prepared.memory.total)}", highlight=False)
    for fit in prepared.fits:
        console.print(str(fit), highlight=False)
    longest = prepared.voice.max_length
    if longest < config.max_length and any(len(row["input_ids"]) == longest for row in prepared.train):
        console.print(
            f"[yellow]longer examples are cut off at {longest} tokens, which is all that the model was made for[/]"
        )
    if prepared.unused:
        console.print(f"[yellow]{prepared.unused} examples are not used: max_length cut off their whole answer[/]")
    if DATA in prepared.bank.names and not config.concepts:
        console.print(
            f"no concept was named; '{DATA}' is the way from the model's own answers to those of the data, which the "
            "data ask for by construction", highlight=False,
        )  # fmt: skip


def show(report: Report, page: Path, console: Console) -> None:
    """The losses and where the rest is."""
    console.print(scores_table(report))
    show_verdicts(report, console)
    trained = next((arm for arm in report["arms"] if arm["name"] == "steered"), report["arms"][0])
    weights = page.parent / trained["runs"][0]["weights"]
    console.print(f"\nreport: [bold]{escape(str(page))}[/]\nmodel: [bold]{escape(str(weights))}[/]", soft_wrap=True)
