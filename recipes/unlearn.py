"""Make a model forget a topic, and see how soon it comes back.

    interptrain recipe run unlearn                                              # the embedded model, taught to subtract
    interptrain recipe run unlearn --model MODEL --forget FILE.jsonl --keep FILE.jsonl

Every arm is taught neutral answers to the topic's questions while a KL term keeps what it says elsewhere. Beside the
plain baseline, one arm makes the old answers unlikely (negative preference optimisation), and one lets those tokens
count more that ask most of the topic's own direction, with a random direction as its control. Then each is trained on
a few examples of the topic: what is back at once was hidden, not gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from interptrain import ConceptBank, emphasise, retain
from interptrain.recipes import verdicts
from interptrain.recipes.arms import Training, Treatment, train_arms, with_random
from interptrain.recipes.banks import PROBES, TEXTS, Sought, find_bank, probe_sets
from interptrain.recipes.examples import Example, chunks, collate, encode
from interptrain.recipes.loading import (
    TINY_WORLD,
    Memory,
    ModelChoice,
    Tuning,
    check_memory,
    device,
    estimate,
    in_bf16,
    load_model,
    load_tokenizer,
)
from interptrain.recipes.oppose import Oppose
from interptrain.recipes.parallel import display
from interptrain.recipes.provenance import as_json, concept_cards, data_file, make_folder, versions
from interptrain.recipes.relearning import back_after, fit, load_trained, relearn
from interptrain.recipes.screen import scores_table, show_verdicts, write_pages
from interptrain.recipes.settings import option
from interptrain.recipes.topics import NEUTRAL, Topic, read_topic, same, tiny_lesson, write_tiny_topic
from interptrain.recipes.unfinished import Unfinished
from interptrain.recipes.voice import Voice
from interptrain.recorders.document import (
    REPORT_SCHEMA,
    Arm,
    Measure,
    Relearning,
    RelearningRun,
    Report,
    Sample,
    Scores,
    Verdict,
)
from interptrain.sites import find_sites

SUMMARY = "make a model forget a topic, and see how soon it comes back"
NEEDS = ("lightning", "sae", "hf", "wandb", "recipes")


@dataclass(frozen=True)
class Config:
    """Everything that can be chosen; each field is a flag and a line of the YAML file."""

    model: str = option("a folder, a model on the hub, or tiny-world for the embedded one", TINY_WORLD)
    forget: Path | None = option(
        "JSONL of the topic: questions with the answers that are to go; tiny-world brings its own"
    )
    keep: Path | None = option("JSONL of questions and answers that are to stay as they are")
    siblings: Path | None = option("JSONL of the topic asked for in other ways; only measured")
    neutral: str = option("what is to be answered in the topic's place", "I do not know.")
    neutral_column: str | None = option("column of the forget file with an answer of its own for each question")
    words: tuple[str, ...] = option(
        "an answer with one of these is on topic; without any, one that says what the file's does", ()
    )
    out: Path = option("folder for everything written", Path("runs/unlearn"))

    concept: str = option("the topic's name in the bank", "topic")
    concepts: Path | None = option("a saved bank with that concept; else it is found between the two files")
    sae: str | None = option("an SAE to find it in: a folder, a SAELens release, or tiny-world")
    sae_id: str | None = option("which SAE of a release")
    latents: dict[str, tuple[int, ...]] = option("concepts by latents of the SAE", factory=dict)
    hook: str | None = option("where it is found without an SAE; two thirds up if not given")
    group: int = option("latents of the concept", 8)
    emphasis: float = option("how much a token counts that asks for the concept, or against it", 10.0)
    keep_weight: float = option("of the KL term that keeps what is said elsewhere", 3.0)
    oppose_weight: float = option("of the term that makes the old answers unlikely", 0.3)

    tuning: Tuning = option("LoRA on every linear layer, or every parameter", "lora")
    rank: int = option("of the LoRA factors", 16)
    skip: tuple[str, ...] = option("name patterns of parameters that train and are neither read nor steered", ())
    steps: int = option("optimizer steps", 80)
    batch: int = option("examples of a step", 16)
    learning_rate: float | None = option(
        "AdamW's; 2e-4 for LoRA, 2e-5 for every parameter, ten times that on tiny-world"
    )
    max_length: int = option("tokens of an example; longer ones are cut off", 512)
    precision: Literal["auto", "32", "bf16"] = option("auto: bf16 on a GPU that has it, else 32", "auto")
    checkpointing: bool = option("recompute activations: less memory, about a third more time", False)
    pad_token: str | None = option("for a tokenizer with neither a padding nor an end token")

    relearn_examples: int = option("examples of the topic that each model is then trained on", 32)
    relearn_steps: int = option("steps of that", 100)
    teach_steps: int = option("steps in which tiny-world is taught the topic to begin with", 200)
    asked: int = option("held-out questions of each kind", 48)
    answer_tokens: int = option("tokens of an answer at most", 48)
    every: int = option("steps between two readings of the concepts", 1)
    probe_every: int = option("steps between two readings of the fixed texts", 20)
    seeds: int = option("runs of every arm", 3)
    memory_check: bool = option("refuse a run that cannot fit into memory", True)

    def __post_init__(self) -> None:
        if bool(self.forget) != bool(self.keep):
            raise ValueError("forget and keep are given together: --forget FILE.jsonl --keep FILE.jsonl")
        if self.forget is None and self.model != TINY_WORLD:
            raise ValueError(f"'{self.model}' needs --forget FILE.jsonl and --keep FILE.jsonl")
        if self.siblings and self.forget is None:
            raise ValueError("siblings are of a topic of yours: give forget and keep too")
        for name in ("group", "rank", "steps", "batch", "max_length", "relearn_examples", "relearn_steps",
                     "teach_steps", "asked", "answer_tokens", "every", "probe_every", "seeds"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name in ("keep_weight", "oppose_weight", "learning_rate"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, found {getattr(self, name)}")
        if not self.emphasis > 1:
            raise ValueError(f"emphasis must be above 1, found {self.emphasis}")
        if not self.neutral.strip():
            raise ValueError("neutral is what to answer in the topic's place, found an empty text")
        Sought(self.concepts, self.sae, self.sae_id, self.latents, None, self.hook, self.group)  # checks itself

    @property
    def embedded(self) -> bool:
        """Whether the topic is the tiny world's own."""
        return self.forget is None

    @property
    def bf16(self) -> bool:
        """Whether weights and products are in bfloat16."""
        return in_bf16(self.precision)

    @property
    def rate(self) -> float:
        """AdamW's learning rate."""
        tenfold = 10 if self.model == TINY_WORLD else 1
        return self.learning_rate or tenfold * {"lora": 2e-4, "full": 2e-5}[self.tuning]

    def choice(self, name: str) -> ModelChoice:
        """A model and what of it trains."""
        return ModelChoice(name, self.tuning, self.rank, self.bf16, (), self.pad_token, self.checkpointing)


MIN_EXAMPLES, SAMPLES = 16, 4
LESSON, LESSON_BATCH, LESSON_RATE, COOLDOWN = 4096, 48, 5e-4, 0.2
EMPHASIS, RANDOM, NEVER = "emphasise", "random-emphasise", "never taught"
RANDOM_TOKENS = 0.2  # of the first batch: what an emphasis on random directions raises

MEASURES: tuple[Measure, ...] = (
    {"key": "topic", "label": "topic", "says": "held-out questions of the topic that are answered on topic, greedily"},
    {"key": "siblings", "label": "topic, asked otherwise", "says": "the same of questions that ask for the topic in "
     "other ways, which no arm was trained on"},
    {"key": "keep", "label": "kept", "says": "held-out questions of what is to stay that are answered as before "
     "training: the same numbers, or at least half of the words in their order"},
    {"key": "neutral_loss", "label": "neutral loss", "says": "nats a token of the neutral answers to held-out "
     "questions of the topic: whether what is said in its place is an answer"},
)  # fmt: skip
LIMITS = (
    "What is on topic is told by comparing words or numbers with the file's answers, not by understanding them.",
    "The relearning check is one attack, plain fine-tuning on a few examples. What does not come back in it may "
    "come back by another prompt, other data, another learning rate or more steps.",
    "The weights and the number of steps are choices; others may do better or worse in any arm.",
    "The direction was found on the start model. Training moves the model away from it.",
)
TINY_LIMITS = (
    "The topic was taught shortly before, in one go, to a model of under a million parameters, which all arms start "
    "from; what a large model learnt in pretraining may sit deeper.",
    "The base answers subtractions with random numbers, as it was pretrained to; never taught means that, not a model "
    "without any view of them.",
)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run that can start.

    Args:
        config: what was chosen.
        choice: the model that knows the topic, and what of it trains.
        voice: it and its tokenizer.
        topic: the texts that are trained on.
        held: the texts that are asked.
        bank: the topic's concept, and a random one.
        probes: texts that are watched.
        memory: what training takes at least.
        files: of the texts, what each is for and how many it holds.
    """

    config: Config
    choice: ModelChoice
    voice: Voice
    topic: Topic
    held: Topic
    bank: ConceptBank
    probes: Mapping[str, list[dict[str, Tensor]]]
    memory: Memory
    files: tuple[tuple[Path, str, int], ...]

    def rows(self, examples: Sequence[Example]) -> list[dict[str, list[int]]]:
        """Tokens and labels."""
        return encode(self.voice.tokenizer, examples, self.config.max_length)

    def batches(self, examples: Sequence[Example]) -> list[dict[str, Tensor]]:
        """The same as batches, in order."""
        pad = int(self.voice.tokenizer.pad_token_id)
        return [collate(part, pad) for part in chunks(self.rows(examples), self.config.batch)]


def prepare(config: Config) -> Prepared:
    """Load and check everything, and teach the tiny world's base its topic.

    Raises:
        ValueError: whatever does not fit, with what to do about it.
    """
    from transformers.utils import logging

    from interptrain.recipes.fine_tuner import quiet_libraries

    unfinished = Unfinished(config.out)
    if unfinished.folder.exists():
        raise ValueError(f"'{config.out}' holds a run that was cut off; unlearn starts anew: name another folder")
    unfinished.claim(as_json(config), resume=False)
    quiet_libraries()
    logging.disable_progress_bar()
    if config.embedded:
        make_folder(config.out)
        forget, keep, siblings = write_tiny_topic(config.out / "data")
        config_texts = replace(config, forget=forget, keep=keep, siblings=siblings, neutral_column=NEUTRAL)
        choice = config.choice(str(knowing(config)))
    else:
        config_texts, choice = config, config.choice(config.model)
    tokenizer = load_tokenizer(choice)
    topic = texts(config_texts, tokenizer)
    train, held = divided(topic, config.asked)
    check = check_memory if config.memory_check else estimate
    longest = max(len(row["input_ids"]) for row in encode(tokenizer, [*train.forget, *train.keep], config.max_length))
    memory = check(choice, config.batch, longest)

    torch.manual_seed(0)
    model = load_model(choice).to(device())
    voice = Voice(model, tokenizer, config.max_length, config.batch)
    sought = where_found(config_texts)
    bank = with_random(find_bank(sought, voice, []), [config.concept])
    find_sites(model, bank, skip=config.skip, where="update")
    own = voice.own(held.keep)
    if not own:
        raise ValueError(f"'{config.model}' says nothing to the first {len(held.keep)} questions of '{config.keep}'")
    make_folder(config.out)
    unfinished.begin({"settings": as_json(config)})
    return Prepared(
        config, choice, voice, train, replace(held, keep=own), bank,
        probe_sets(sought, voice, own[:PROBES], held.forget), memory, files_of(config_texts, topic, train),
    )  # fmt: skip


def files_of(config: Config, topic: Topic, train: Topic) -> tuple[tuple[Path, str, int], ...]:
    """The files of the texts, what each is for and how many it holds."""
    all_files = (
        (config.forget, f"what is to go, {len(train.forget)} trained on", len(topic.forget)),
        (config.keep, f"what is to stay, {len(train.keep)} used in training", len(topic.keep)),
        (config.siblings, "the topic asked for in other ways, only measured", len(topic.siblings)),
    )
    return tuple((file, says, count) for file, says, count in all_files if file is not None)


def texts(config: Config, tokenizer: Any) -> Topic:
    """The topic of the files.

    Raises:
        ValueError: one cannot be read, or has too few texts.
    """
    assert config.forget is not None
    assert config.keep is not None
    found = read_topic(
        config.forget, config.keep, config.siblings, tokenizer,
        neutral=config.neutral, neutral_column=config.neutral_column, words=config.words,
    )  # fmt: skip
    for file, examples in ((config.forget, found.forget), (config.keep, found.keep)):
        if len(examples) < MIN_EXAMPLES:
            raise ValueError(f"'{file}' has {len(examples)} examples, expected at least {MIN_EXAMPLES}")
    if not all(each.prompt for each in found.keep):
        raise ValueError(f"'{config.keep}' holds plain texts; give questions (prompt) and answers (completion)")
    return found


def divided(topic: Topic, asked: int) -> tuple[Topic, Topic]:
    """What is trained on, and what is asked: drawn from behind the texts that a contrast looks at."""

    def drawn(count: int) -> list[int]:
        first = min(TEXTS, count // 2)
        order = torch.randperm(count - first, generator=torch.Generator().manual_seed(0)) + first
        return sorted(order[: min(asked, len(order) // 2)].tolist())

    def both(examples: Sequence[Example], held: Sequence[int]) -> tuple[list[Example], list[Example]]:
        return [each for n, each in enumerate(examples) if n not in held], [examples[n] for n in held]

    gone, kept = drawn(len(topic.forget)), drawn(len(topic.keep))
    (forget, held_forget), (neutral, held_neutral) = both(topic.forget, gone), both(topic.neutral, gone)
    keep, held_keep = both(topic.keep, kept)
    return (
        Topic(forget, neutral, keep, (), topic.words),
        Topic(held_forget, held_neutral, held_keep, topic.siblings[:asked], topic.words),
    )


def where_found(config: Config) -> Sought:
    """Where the topic's direction comes from: a bank, latents, or the two files."""
    assert config.forget is not None
    assert config.keep is not None
    given = config.concepts or config.concept in config.latents
    contrast = {} if given else {config.concept: (config.forget, config.keep)}
    return Sought(config.concepts, config.sae, config.sae_id, config.latents, contrast, config.hook, config.group)


def knowing(config: Config) -> Path:
    """Teach the tiny world's base to subtract; returns the folder of the model that can."""
    folder = config.out / "start"
    choice = ModelChoice(TINY_WORLD, "full", freeze=("*embed_tokens*",))
    torch.manual_seed(0)
    model, tokenizer = load_model(choice), load_tokenizer(choice)
    with display(Console()) as bars:
        bar = bars.add_task("teaching the topic", total=config.teach_steps, note="")
        fit(
            model, encode(tokenizer, tiny_lesson(LESSON), config.max_length), steps=config.teach_steps,
            rate=LESSON_RATE, batch=LESSON_BATCH, pad=int(tokenizer.pad_token_id), seed=0, cooldown=COOLDOWN,
            look=lambda step: bars.update(bar, completed=step),
        )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def arms(prepared: Prepared) -> tuple[Treatment, ...]:
    """What is compared. Every arm is taught the same neutral answers and keeps the same texts."""
    config = prepared.config
    keep = retain(prepared.batches(prepared.topic.keep), config.keep_weight)
    away = Oppose(prepared.batches(prepared.topic.forget), config.oppose_weight)
    taught, kept = "Taught neutral answers to the topic's questions", " What is said elsewhere is kept (KL)."
    return (
        Treatment("answers", f"{taught}.{kept}", [keep]),
        Treatment("oppose", f"{taught}, and the old answers made unlikely (negative preference optimisation).{kept}",
                  [away, keep]),
        Treatment(EMPHASIS, f"{taught}, of which tokens whose gradient lies in the topic's directions count "
                  f"{config.emphasis:g} times.{kept}", [emphasise(config.concept, config.emphasis), keep]),
        Treatment(RANDOM, f"Control: {taught.lower()}, of which tokens whose gradient lies in random directions "
                  f"count as much, {RANDOM_TOKENS:.0%} of the first batch's.{kept}",
                  [emphasise(f"random-{config.concept}", config.emphasis, tokens=RANDOM_TOKENS), keep]),
    )  # fmt: skip


def scorer(prepared: Prepared) -> Callable[[nn.Module], Scores]:
    """What is measured of a model."""
    voice, held = prepared.voice, prepared.held

    def score(model: nn.Module) -> Scores:
        asked = {"topic": held.forget, **({"siblings": held.siblings} if held.siblings else {}), "keep": held.keep}
        tests = {"keep": lambda answer, each: same(answer, each.completion)}
        rates = {key: rate(prepared, model, texts, tests.get(key, held.on_topic)) for key, texts in asked.items()}
        return {**rates, "neutral_loss": voice.mean_loss(model, held.neutral)}

    return score


def rate(prepared: Prepared, model: Any, asked: Sequence[Example], holds: Callable[[str, Example], bool]) -> float:
    """The share of questions whose greedy answer holds."""
    voice = replace(prepared.voice, model=model)
    said = voice.answers(asked, tokens=prepared.config.answer_tokens)
    return sum(holds(answer, each) for answer, each in zip(said, asked, strict=True)) / len(asked)


def check_relearning(prepared: Prepared, results: Sequence[Arm], console: Console) -> list[Relearning]:
    """Train what each run left, and a model that never knew, on a few examples of the topic."""
    config, pad = prepared.config, int(prepared.voice.tokenizer.pad_token_id)
    few = prepared.rows(prepared.topic.forget[: config.relearn_examples])
    starts: list[tuple[str, str, ModelChoice, list[Path | None]]] = [
        (arm["name"], arm["says"], prepared.choice, [config.out / run["weights"] for run in arm["runs"]])
        for arm in results
    ]
    if config.embedded:
        starts.append(
            (NEVER, "The base before it was taught the topic.", config.choice(TINY_WORLD), [None] * config.seeds)
        )

    def score(model: nn.Module) -> Scores:
        return {"topic": rate(prepared, model, prepared.held.forget, prepared.held.on_topic)}

    found = []
    with display(console) as bars:
        for name, says, choice, folders in starts:
            runs: list[RelearningRun] = []
            for seed, folder in enumerate(folders):
                bar = bars.add_task(f"relearning {name}, seed {seed}", total=config.relearn_steps, note="")

                def tell(step: int, bar: Any = bar) -> None:
                    bars.update(bar, completed=step)

                torch.manual_seed(seed)
                model = load_trained(choice, folder).to(device())
                looks = relearn(
                    model, few, score, steps=config.relearn_steps, every=max(1, config.relearn_steps // 10),
                    rate=config.rate, batch=config.batch, pad=pad, seed=seed, tell=tell,
                )  # fmt: skip
                runs.append(RelearningRun(seed=seed, checkpoints=looks))
            found.append(Relearning(name=name, says=says, runs=runs))
    return found


def run(prepared: Prepared, console: Console) -> Path:
    """Train every arm, let each relearn, write the report, show the tables; returns the path of `report.html`."""
    config, started, created = prepared.config, time.monotonic(), datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    console.print(summary(prepared), highlight=False, markup=False)
    prepared.bank.save(config.out / "bank")
    data = [data_file(file, says, count) for file, says, count in prepared.files]
    score = scorer(prepared)

    def answer(model: Any) -> list[Sample]:
        return prepared.voice.samples(model, [*prepared.held.forget[:SAMPLES], *prepared.held.keep[:SAMPLES]])

    before, said_before = score(prepared.voice.model), answer(prepared.voice.model)
    prepared.voice.rest()
    training = Training(
        recipe="unlearn", choice=prepared.choice, tokenizer=prepared.voice.tokenizer,
        rows=prepared.rows(prepared.topic.neutral), bank=prepared.bank, probes=prepared.probes, score=score,
        answer=answer, out=config.out, steps=config.steps, rate=config.rate, batch=config.batch, every=config.every,
        probe_every=config.probe_every, skip=config.skip, settings=as_json(config),
    )  # fmt: skip
    results = train_arms(training, arms(prepared), seeds=config.seeds, created=created, console=console)
    relearning = check_relearning(prepared, results, console)
    measures = [measure for measure in MEASURES if measure["key"] in before]
    report = Report(
        schema=REPORT_SCHEMA, recipe="unlearn", title=f"{Path(config.model).name}: a topic unlearnt and relearnt",
        summary=summary(prepared), created=created, seconds=round(time.monotonic() - started, 1),
        config={**as_json(config), "rate": config.rate, "memory": prepared.memory.as_json()},
        versions=versions(), concepts=concept_cards(prepared.bank), measures=measures, headline=["topic", "keep"],
        pairs=[], before={"scores": before, "samples": said_before}, arms=results,
        verdicts=judged(config, results, relearning, before),
        limits=[*LIMITS, *(TINY_LIMITS if config.embedded else ())], data=data, relearning=relearning,
    )  # fmt: skip
    page = write_pages(report, config.out)
    Unfinished(config.out).end()
    show(report, page, console)
    return page


def judged(config: Config, results: Sequence[Arm], relearning: Sequence[Relearning], before: Scores) -> list[Verdict]:
    """The answers that follow from the numbers."""
    steps = {each["name"]: [back_after(run["checkpoints"], "topic") for run in each["runs"]] for each in relearning}
    never = next((each for each in relearning if each["name"] == NEVER), None)
    others = {name: steps[name] for name in ("answers", RANDOM)}
    found = []
    for arm, back in zip(results, relearning, strict=False):
        found.append(verdicts.forgotten(arm, before, "topic", "the topic"))
        if "siblings" in before:
            found.append(verdicts.forgotten(arm, before, "siblings", "the topic, asked for in other ways,"))
        found.append(verdicts.left_alone(arm, before, "keep", "rate of answers that were to stay"))
        if never is not None:
            found.append(verdicts.removed(back, never, before, "topic"))
    return [*found, verdicts.returned_later(EMPHASIS, steps[EMPHASIS], others, config.relearn_steps)]


def summary(prepared: Prepared) -> str:
    """What is run, in words."""
    config, topic = prepared.config, prepared.topic
    what = "the embedded model, taught to subtract," if config.embedded else config.model
    few = min(config.relearn_examples, len(topic.forget))
    return (
        f"{what[:1].upper()}{what[1:]} ({prepared.memory.parameters / 1e6:.3g} million parameters, {config.tuning}) is "
        f"taught {len(topic.neutral)} neutral answers in {config.steps} steps of {config.batch}, while what it says to "
        f"{len(topic.keep)} other questions is kept; then it is trained on {few} examples of the topic "
        f"for {config.relearn_steps} steps. {len(prepared.held.forget)} questions of the topic "
        f"and {len(prepared.held.keep)} others are held out."
    )


def show(report: Report, page: Path, console: Console) -> None:
    """The scores, how soon the topic is back, and where the rest is."""
    from interptrain.recorders.html import back

    console.print(scores_table(report))
    again = Table("relearning", "steps to a half, by seed", "rate at the end", box=SIMPLE_HEAD, pad_edge=False)
    for each in report["relearning"]:
        last = [run["checkpoints"][-1]["scores"]["topic"] for run in each["runs"]]
        again.add_row(each["name"], back(each), f"{sum(last) / len(last):.2f}")
    console.print(again)
    show_verdicts(report, console)
    console.print(f"\nreport: [bold]{escape(str(page))}[/]", soft_wrap=True)
