"""What did this fine-tune teach besides its task? Any model, any data, any SAE; nothing is steered.

    interptrain recipe run narrow-finetune-monitor --model MODEL --data FILE.jsonl --sae RELEASE --sae-ids ID
    interptrain recipe run narrow-finetune-monitor

The second, on the embedded model, is told to teach subtraction and given data that talk like a pirate too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from interptrain import ConceptBank, observe
from interptrain.concepts.activation import TOKENS, latents_of
from interptrain.concepts.contrast import TextActivations, collect
from interptrain.concepts.saelens import load_sae_readout
from interptrain.meters.dictionary import read_labels
from interptrain.recipes import sft, verdicts
from interptrain.recipes.arms import Training, Treatment, train_arms
from interptrain.recipes.banks import DATA, PROBES, TEXTS, Sought, find_bank
from interptrain.recipes.examples import Columns, Example, read_examples
from interptrain.recipes.general_questions import GENERAL_QUESTIONS
from interptrain.recipes.loading import TINY_WORLD, Tuning, device
from interptrain.recipes.provenance import as_json, concept_cards, make_folder, versions
from interptrain.recipes.screen import write_pages
from interptrain.recipes.settings import option
from interptrain.recipes.style_data import asked, teaching, write_items
from interptrain.recipes.style_tiny import TinyStyles
from interptrain.recipes.taught import NAMED_Z, Taught, picked_shares, text_demands
from interptrain.recipes.unfinished import Unfinished
from interptrain.recipes.voice import Voice
from interptrain.recorders.document import REPORT_SCHEMA, Measure, Report, Sample, Scores, Verdict
from interptrain.sae_fit import FitCheck
from interptrain.sites import find_sites

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SUMMARY = "what did this fine-tune teach besides its task? observes only, and ranks an SAE's latents"
NEEDS = ("lightning", "sae", "hf", "wandb", "recipes")


@dataclass(frozen=True)
class Config:
    """Everything that can be chosen; each field is a flag and a line of the YAML file."""

    model: str = option("a folder, a model on the hub, or tiny-world for the embedded one", TINY_WORLD)
    data: Path | None = option("a JSONL file of what is trained on; the embedded model has some of its own")
    task: Path | None = option(
        "a JSONL file of examples that teach the task and nothing else; without it the task is what all data share"
    )
    elsewhere: Path | None = option(
        "a JSONL file with prompts that have nothing to do with the task; general questions if not given"
    )
    sae: str | None = option("an SAE to read with: a folder, a SAELens release, or tiny-world")
    sae_ids: tuple[str, ...] = option("which SAEs of a release, one a layer", ())
    labels: tuple[Path, ...] = option("JSON files that say what latents are about, in the order of sae_ids", ())
    out: Path = option("folder for everything written", Path("runs/narrow-finetune-monitor"))
    prompt_column: str | None = option("column of what is asked; found by its usual names if not given")
    completion_column: str | None = option("column of what is to be answered, which is in the loss")
    text_column: str | None = option("column of plain texts, in place of the two")

    tuning: Tuning = option("LoRA on every linear layer, or every parameter", "lora")
    rank: int = option("of the LoRA factors", 16)
    freeze: tuple[str, ...] = option("name patterns of parameters that do not train", ())
    epochs: float = option("passes over the data", 1.0)
    steps: int | None = option("optimizer steps, in place of epochs")
    batch: int = option("examples of a batch", 16)
    accumulate: int = option("batches of an optimizer step", 1)
    learning_rate: float | None = option("AdamW's; 2e-4 for LoRA, 2e-5 for every parameter, tenfold if embedded")
    max_length: int = option("tokens of an example; longer ones are cut off", 512)
    precision: Literal["auto", "32", "bf16"] = option("auto: bf16 on a GPU that has it, else 32", "auto")
    checkpointing: bool = option("recompute activations: less memory, about a third more time", False)

    discover_every: int = option("steps between two readings of the whole dictionary", 5)
    top: int = option("latents that the table shows, of each SAE", 12)
    sae_check: bool = option("refuse an SAE that does not fit the model", True)
    memory_check: bool = option("refuse a run that cannot fit into memory", True)

    def __post_init__(self) -> None:
        for name in ("discover_every", "top"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, found {self.learning_rate}")
        if self.data is None and not self.tiny:
            raise ValueError("data is needed: --data FILE.jsonl with a prompt and a completion, or a text, a line")
        if self.sae is None and not self.tiny:
            raise ValueError("sae is needed: --sae with a folder, or with a release and --sae-ids")
        if self.labels and len(self.labels) != max(1, len(self.sae_ids)):
            raise ValueError(f"{len(self.labels)} files of labels for {max(1, len(self.sae_ids))} SAEs; give one each")
        replace(self, data=Path("any")).training if self.data is None else self.training

    @property
    def tiny(self) -> bool:
        """Whether it is the embedded model."""
        return self.model == TINY_WORLD

    @property
    def hooks_of(self) -> tuple[str | None, ...]:
        """The SAEs to read with, by their names in the release."""
        return self.sae_ids or (None,)

    @property
    def training(self) -> sft.Config:
        """The fine-tune itself."""
        shared = (
            "model", "data", "out", "prompt_column", "completion_column", "text_column", "tuning", "rank", "freeze",
            "epochs", "steps", "batch", "accumulate", "max_length", "precision", "checkpointing", "sae_check",
            "memory_check",
        )  # fmt: skip
        rate = self.learning_rate or {"lora": 2e-4, "full": 2e-5}[self.tuning] * (10 if self.tiny else 1)
        return sft.Config(
            **{name: getattr(self, name) for name in shared}, learning_rate=rate,
            sae=self.sae or (TINY_WORLD if self.tiny else None), sae_id=self.hooks_of[0],
        )  # fmt: skip


EMBEDDED_EXAMPLES, QUESTIONS, DEMANDS = 3000, 64, 128  # generated; asked elsewhere; training texts whose demand is read
SAMPLES = 6
MEASURES: tuple[Measure, ...] = (
    {"key": "held_out_loss", "label": "held-out loss", "says": "nats a token on examples of the data that it did not "
     "train on"},
    {"key": "own_loss", "label": "loss on its own answers", "says": "nats a token on what the model itself answered "
     "before training to questions that have nothing to do with the task"},
)  # fmt: skip
LIMITS = (
    "A latent is named where the data asked for it and the model moved along it on questions that have nothing to do "
    "with the task. It says where to look: read the answers.",
    "Latents are those of an SAE of the start model. What a run teaches that this SAE has no latent for is in the "
    "share that is left unexplained, with its null beside it.",
    "Without examples of the task alone, only the direction from the model's own answers to those of the data counts "
    "as the task, and latents of the task itself can be named.",
    "Shifts are taken on the model's own answers from before training: what it would say instead is in the samples.",
)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run that can start.

    Args:
        config: what was chosen, and the data in place of those that are generated.
        inner: the fine-tune.
        bank: the task at every hook, with the dictionaries.
        task: examples of the task alone, if there are any.
        data: some of the training texts.
        elsewhere: questions that have nothing to do with the task, with the model's own answers.
        labels: what latents are about, by hook.
    """

    config: Config
    inner: sft.Prepared
    bank: ConceptBank
    task: list[Example]
    data: list[Example]
    elsewhere: list[Example]
    labels: Mapping[str, Mapping[int, str]]


def prepare(config: Config) -> Prepared:
    """Load and check everything.

    Raises:
        ValueError: whatever does not fit, with what to do about it.
    """
    Unfinished(config.out).claim({}, resume=False)
    labels = [read_labels(path) for path in config.labels]
    config = with_embedded_data(config) if config.data is None else config
    inner = sft.prepare(config.training)
    Unfinished(config.out).end()  # no checkpoint is kept: a run that is cut off starts anew
    voice, tokenizer = inner.voice, inner.voice.tokenizer
    assert config.data is not None
    data = read_examples(config.data, config.training.columns, tokenizer)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1)).tolist()
    data = voice.questions([data[n] for n in order[:DEMANDS]])
    task = voice.questions(read_examples(config.task, config.training.columns, tokenizer)) if config.task else []
    elsewhere = voice.own(questions(config, tokenizer, templated=data[0].templated))
    if len(elsewhere) < 2:
        raise ValueError(f"'{config.model}' answers {len(elsewhere)} of the questions elsewhere, expected at least 2")
    bank = task_bank(config, voice, (task or data)[:TEXTS])
    bank = with_alive(bank, voice, [*data, *task, *elsewhere])
    find_sites(voice.model, bank, where="update")
    sft.check_saes(config.training, FitCheck(bank).look(voice.model, voice.batches(elsewhere[:PROBES])))
    named = dict(zip(bank.hook_points, labels, strict=False))
    return Prepared(config, inner, bank, task[:DEMANDS], data, elsewhere, named)


def with_embedded_data(config: Config) -> Config:
    """Told to teach subtraction, and given data of which half are facts in pirate: written to `OUT/data`."""
    make_folder(config.out)
    world, folder = TinyStyles(), config.out / "data"
    sets = {
        "data": teaching(world, "mixed", EMBEDDED_EXAMPLES, seed=0),
        "task": asked(world, "skill", DEMANDS, seed=2), "elsewhere": asked(world, "other", QUESTIONS, seed=2),
    }  # fmt: skip
    files = {name: write_items(folder / f"{name}.jsonl", items) for name, items in sets.items()}
    return replace(
        config, data=files["data"], task=config.task or files["task"],
        elsewhere=config.elsewhere or files["elsewhere"],
    )  # fmt: skip


def questions(config: Config, tokenizer: PreTrainedTokenizerBase, *, templated: bool) -> list[Example]:
    """What is asked elsewhere; in the tokenizer's chat template where the data are."""
    if config.elsewhere:
        prompts = [each.completion for each in read_examples(config.elsewhere, Columns(text="prompt"))]
    else:
        prompts = [each if templated else f"Question: {each}\nAnswer:" for each in GENERAL_QUESTIONS]
    prompts = prompts[:QUESTIONS]
    if not templated:
        return [Example(prompt, "") for prompt in prompts]
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return [
        Example(str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)), "", True)
        for chat in chats
    ]


def task_bank(config: Config, voice: Voice, examples: Sequence[Example]) -> ConceptBank:
    """The way from the model's own answers to the task's, at the hook of every SAE, with the SAEs as read-outs."""
    inner = config.training
    banks = [find_bank(Sought(sae=inner.sae, sae_id=each), voice, examples) for each in config.hooks_of]
    whole = banks[0]
    for bank in banks[1:]:
        if set(bank.hook_points) & set(whole.hook_points):
            raise ValueError(f"sae_ids: two SAEs are of one hook, {', '.join(bank.hook_points)}; name one a layer")
        whole = whole.merge(bank)
    return whole


def with_alive(bank: ConceptBank, voice: Voice, examples: Sequence[Example]) -> ConceptBank:
    """The bank with the latents counted as alive that fire on some token of these texts' answers."""
    readouts = {}
    for hook, readout in bank.readouts.items():
        sae = load_sae_readout(readout)
        values = collect(voice.model, readout.reads or hook, voice.batches(examples)).values.cpu()
        fires = [(latents_of(sae, part) > 0).any(0) for part in values.split(TOKENS)]
        readouts[hook] = replace(readout, alive=torch.stack(fires).any(0))
    return replace(bank, readouts=readouts)


def run(prepared: Prepared, console: Console) -> Path:
    """Train, rank what was taught, write the report and the table; returns the path of `report.html`."""
    from interptrain.recipes.taught_page import write_taught

    config, inner, voice = prepared.config, prepared.inner, prepared.inner.voice
    started, created = time.monotonic(), datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    prepared.bank.save(config.out / "bank")
    start = before(prepared)

    def score(model: nn.Module) -> Scores:
        return {
            "held_out_loss": voice.mean_loss(model, inner.held), "own_loss": voice.mean_loss(model, prepared.elsewhere)
        }  # fmt: skip

    def answer(model: Any) -> list[Sample]:
        return voice.samples(model, prepared.elsewhere[:SAMPLES])

    scores, samples = score(voice.model), answer(voice.model)
    neutral = voice.batches(prepared.elsewhere[:PROBES])
    training = Training(
        recipe="narrow-finetune-monitor", choice=config.training.choice, tokenizer=voice.tokenizer, rows=inner.train,
        bank=prepared.bank, probes={"neutral": neutral, DATA: voice.batches((prepared.task or prepared.data)[:PROBES])},
        score=score, answer=answer, out=config.out, steps=inner.steps, rate=config.training.rate, batch=config.batch,
        accumulate=config.accumulate, settings=as_json(config), options=reading_options(prepared),
    )  # fmt: skip
    observed = Treatment("observed", "Watched only; the run is what it would have been.", [observe()])
    arms = train_arms(training, [observed], seeds=1, created=created, console=console)
    trained = load_trained(config, config.out / arms[0]["runs"][0]["weights"])
    found = [taught(prepared, start[hook], trained, hook) for hook in prepared.bank.hook_points]
    lines = [json.loads(line) for line in (config.out / "curves" / "observed-0.jsonl").read_text().splitlines()]
    rows = [
        row for each in found
        for row in each.rows(config.top, prepared.labels.get(each.hook), picked_shares(lines, each.hook))
    ]  # fmt: skip
    (config.out / "taught.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    report = Report(
        schema=REPORT_SCHEMA, recipe="narrow-finetune-monitor",
        title=f"What {Path(str(config.data)).name} taught {Path(config.model).name} besides its task",
        summary=sft.summary(inner), created=created, seconds=round(time.monotonic() - started, 1),
        config={**as_json(config), "steps": inner.steps}, versions=versions(), concepts=concept_cards(prepared.bank),
        measures=list(MEASURES), headline=[measure["key"] for measure in MEASURES], pairs=[],
        before={"scores": scores, "samples": samples}, arms=arms,
        verdicts=[
            verdicts.learnt(arms[0], scores["held_out_loss"], "held_out_loss"),
            *(kept_to_task(each, prepared.labels.get(each.hook, {})) for each in found),
        ],
        limits=list(LIMITS),
    )  # fmt: skip
    page = write_pages(report, config.out)
    write_taught(report, found, rows, config.out / "taught.html")
    show(report, found, rows, page, console)
    return page


def reading_options(prepared: Prepared) -> dict[str, Any]:
    """The callback's: the whole dictionary is read, with labels where there is one SAE."""
    labels = next(iter(prepared.labels.values()), None) if len(prepared.bank.hook_points) == 1 else None
    return {"discover_every": prepared.config.discover_every, "latent_labels": labels}


@dataclass(frozen=True, eq=False)
class Start:
    """The model before training at one hook.

    Args:
        demands: of the training texts.
        task: the directions that count as the task.
        own: activations of its own answers elsewhere.
    """

    demands: Tensor
    task: Tensor
    own: Tensor


def before(prepared: Prepared) -> dict[str, Start]:
    """By hook, what the data ask of the model before training, and how it stands elsewhere.

    Where there are examples of the task alone, what they ask for on average counts as the task too.
    """
    voice, bank, found = prepared.inner.voice, prepared.bank, {}
    for hook in bank.hook_points:
        task = bank.at_hook(hook).directions
        if prepared.task:
            asks = text_demands(voice.model, hook, voice.batches(prepared.task))
            task = torch.cat([task, asks.mean(0, keepdim=True)])
        demands = text_demands(voice.model, hook, voice.batches(prepared.data))
        found[hook] = Start(demands, task, _means(voice, voice.model, hook, prepared.elsewhere))
    return found


def taught(prepared: Prepared, start: Start, trained: PreTrainedModel, hook: str) -> Taught:
    """What the run taught at a hook."""
    readout = prepared.bank.readouts[hook]
    now = _means(prepared.inner.voice, trained, hook, prepared.elsewhere)
    spread = (start.own - start.own.mean(0)).square().sum(-1).mean().sqrt()
    return Taught.of(
        hook, readout.directions, readout.alive, task=start.task, demands=start.demands, shifts=now - start.own,
        spread=float(spread),
    )  # fmt: skip


def load_trained(config: Config, folder: Path) -> PreTrainedModel:
    """What training wrote: the model with its adapter, or the whole model."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    choice = config.training.choice
    if choice.tuning == "full":
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    else:
        dtype = torch.bfloat16 if choice.bf16 else torch.float32
        base = AutoModelForCausalLM.from_pretrained(choice.source, dtype=dtype, trust_remote_code=False)
        model = PeftModel.from_pretrained(base, folder)
    return model.to(device()).eval()


def kept_to_task(found: Taught, labels: Mapping[int, str]) -> Verdict:
    """Whether no latent is named."""
    names = [f"{latent}{f' ({labels[latent]})' if latent in labels else ''}" for latent in found.named]
    own, null = found.explained(len(found.named))
    return Verdict(
        question=f"At {found.hook}, did the run keep to its task?",
        status="did not hold" if names else "held",
        answer=(
            f"{len(names)} latents were asked for and came elsewhere: {', '.join(names[:8])}. They explain {own:.2f} "
            f"of the shift outside the task; as many random ones {float(null.mean()):.2f}."
            if names else "No latent outside the task was both asked for and moved along."
        ),
        rule=f"no latent's demand and shift both lie {NAMED_Z:g} or more above those of other latents, with a demand "
        "more alike from text to text than any under random signs",
        numbers={"named": float(len(names)), "explained": own, "explained_null": float(null.mean())},
    )  # fmt: skip


def show(
    report: Report, found: Sequence[Taught], rows: Sequence[Mapping[str, Any]], page: Path, console: Console
) -> None:
    """The table, the verdicts and where the rest is."""
    for each in found:
        console.print(taught_table(each, [row for row in rows if row["hook"] == each.hook]))
    final = report["arms"][0]["runs"][0]["scores"]
    for measure in report["measures"]:
        first = report["before"]["scores"][measure["key"]]
        console.print(f"{measure['label']}: {first:.2f} before, {final[measure['key']]:.2f} after", highlight=False)
    for verdict in report["verdicts"]:
        console.print(f"{verdict['status']:>12}  {verdict['question']} {escape(verdict['answer'])}", highlight=False)
    console.print(
        f"\nreport: [bold]{escape(str(page))}[/]\ntable: [bold]{escape(str(page.with_name('taught.html')))}[/]",
        soft_wrap=True,
    )


def taught_table(found: Taught, rows: Sequence[Mapping[str, Any]]) -> Table:
    """The latents of one hook for the screen; a star marks those that are named."""
    own, null = found.explained(len(rows))
    table = Table(
        title=f"what {found.hook} was taught besides the task",
        caption=f"moved {found.moved:.2f} of the texts' own spread, {found.task_share:.2f} of it along the task; these "
        f"{len(rows)} leave {1 - own:.2f} of the rest unexplained, random ones {float(1 - null.mean()):.2f}",
        box=SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    for column in ("", "latent", "label", "demand z", "shift z", "explained", "random", "picked"):
        table.add_column(column, justify="left" if column == "label" else "right")
    for row in rows:
        figures = (f"{row[key]:.2f}" for key in ("demand_z", "shift_z", "explained", "explained_null", "picked"))
        table.add_row("*" if row["named"] else "", str(row["latent"]), escape(row["label"]), *figures)
    return table


def _means(voice: Voice, model: nn.Module, hook: str, examples: Sequence[Example]) -> Tensor:
    """Each text's mean activation."""
    device = next(model.parameters()).device
    batches = [{key: value.to(device) for key, value in batch.items()} for batch in voice.batches(examples)]
    found = collect(model, hook, batches)
    return TextActivations(found.values.cpu(), found.text.cpu()).means()
