"""`interptrain attribute`: which examples of a data set teach which concept, before anything is trained."""

from __future__ import annotations

import argparse
import json
import math
from array import array
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, repeat, tee
from pathlib import Path
from textwrap import shorten
from typing import IO, Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from interptrain.attribution import ExampleDemand, attribute
from interptrain.attribution_rules import drop_above, drop_top, weights
from interptrain.attribution_said import said
from interptrain.concepts import ConceptBank
from interptrain.meters.kept_examples import last_hooks
from interptrain.recipes.banks import TEXTS, Sought, find_bank
from interptrain.recipes.examples import Columns, collate
from interptrain.recipes.lines import Encoded, Line, Lines
from interptrain.recipes.loading import (
    ModelChoice,
    device,
    in_bf16,
    load_config,
    load_model,
    load_tokenizer,
    positions_of,
    quiet_loading,
)
from interptrain.recipes.provenance import make_folder
from interptrain.recipes.settings import add_options, configured, option
from interptrain.recipes.voice import Voice
from interptrain.recorders.attribution import Histogram, Ranking, Shown, write_attribution
from interptrain.recorders.tokens import Values, pieces
from interptrain.sae_fit import Fit, FitCheck
from interptrain.sites.hooks import HookPoint

NEEDS = ("sae", "hf", "recipes")

BAR = 2.0  # z above which an example stands out: measured in docs/attribution.md
TOP, MIDDLE, BOTTOM, ROWS, SAID, CONCEPTS = 10, 4, 4, 5, 44, 8  # on the page, in the table; concepts on either
FIGURES, PAGE = "attribution.jsonl", "attribution.html"
FILTERED, REWEIGHTED, WEIGHT = "filtered.jsonl", "reweighted.jsonl", "weight"


@dataclass(frozen=True)
class Config:
    """Everything that can be chosen; each field is a flag."""

    model: str = option("a folder, a model on the hub, or tiny-world for the embedded one", "")
    data: Path | None = option("a JSONL file, or a folder that Dataset.save_to_disk wrote")
    out: Path | None = option("folder to write; nothing in it is written over")
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
    other_model: bool = option("take an SAE of another model, say of the base that this one was tuned from", False)
    concept: str | None = option("the one to rank and to drop by; needed to drop or reweight where there are several")

    drop_top: float | None = option("write the data without this share of the examples, those that ask for most")
    drop_above: float | None = option(
        "write the data without the examples whose z is above this; 2 is a good start with latents of an SAE"
    )
    reweight: bool = option("write the data with a column 'weight', min(1, 1 / z)", False)
    tokens: bool = option("write the figures of every token too", False)
    shade: Literal["demand", "said"] = option(
        "the page's words by what they ask for, or by how likely they are with the concept added against taken away",
        "demand",
    )

    batch: int = option("examples at a time; no figure depends on it", 8)
    max_length: int = option("tokens of an example; longer ones are cut off", 512)
    precision: Literal["auto", "32", "bf16"] = option("auto: bf16 on a GPU that has it, else 32", "auto")
    pad_token: str | None = option("for a tokenizer with neither a padding nor an end token")
    sae_check: bool = option("refuse an SAE that explains little of the model, or more at another layer", True)

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model is needed: --model FOLDER, a name on the hub, or tiny-world")
        if self.data is None:
            raise ValueError("data is needed: --data FILE.jsonl with a prompt and a completion, or a text, a line")
        if self.out is None:
            raise ValueError("out is needed: --out DIR, the folder to write")
        for name in ("group", "batch", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        given = [name for name in ("drop_top", "drop_above") if getattr(self, name) is not None]
        given += ["reweight"] if self.reweight else []
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: one of them at a time")
        if self.drop_top is not None and not 0 < self.drop_top < 1:
            raise ValueError(f"drop_top is a share of the examples between 0 and 1, found {self.drop_top}")
        if self.drop_above is not None and not math.isfinite(self.drop_above):
            raise ValueError(f"drop_above is a z, such as 2; found {self.drop_above}")
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
    def edits(self) -> bool:
        """Whether another data set is written."""
        return self.drop_top is not None or self.drop_above is not None or self.reweight

    @property
    def written(self) -> tuple[str, ...]:
        """Names of the files that this writes."""
        return (FIGURES, PAGE, *([REWEIGHTED] if self.reweight else [FILTERED] if self.edits else []))


@dataclass(frozen=True, eq=False)
class Prepared:
    """An attribution that can start.

    Args:
        config: what was chosen.
        out: the folder, which exists.
        lines: the data.
        voice: the model and its tokenizer.
        bank: the concepts.
        shown: those that are ranked.
        total: rows of the data.
        usable: those of which something is in the loss.
        fits: how much of the first texts the bank's SAEs explain.
    """

    config: Config
    out: Path
    lines: Lines
    voice: Voice
    bank: ConceptBank
    shown: tuple[str, ...]
    total: int
    usable: int
    fits: tuple[Fit, ...]


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    add_options(parser, Config)


def prepare(options: argparse.Namespace) -> Prepared:
    """Load and check everything, all rows of the data included; the folder is made last.

    Raises:
        ValueError: whatever does not fit, with what to do about it.
    """
    config = configured(Config, vars(options))
    assert config.data is not None
    assert config.out is not None
    if there := [name for name in config.written if (config.out / name).exists()]:
        raise ValueError(f"'{config.out}' has {' and '.join(there)} already: name another folder with --out")
    quiet_loading()
    choice = ModelChoice(config.model, tuning="full", pad_token=config.pad_token)
    tokenizer = load_tokenizer(choice)
    max_length = min(config.max_length, positions_of(load_config(choice)) or config.max_length)
    lines = Lines(config.data, config.columns, tokenizer, max_length)
    if config.reweight:
        _check_no_weights(lines)
    torch.manual_seed(0)
    model = load_model(choice).eval().requires_grad_(False)
    model = model.to(device(), torch.bfloat16 if in_bf16(config.precision) else torch.float32)
    total, usable = lines.check(model.get_input_embeddings().weight.shape[0])
    voice = Voice(model, tokenizer, max_length)
    first = [line.example for line in islice(lines, TEXTS)]
    bank = find_bank(config.sought, voice, voice.questions(first))
    shown = _shown(config, bank)
    width, found = int(model.config.get_text_config().hidden_size), bank.directions.shape[1]
    if found != width:
        raise ValueError(
            f"the bank's directions are {found} wide but '{config.model}' is {width}; were they found in another model?"
        )
    for hook in bank.hook_points:
        HookPoint.parse(hook).locate(model)
    fits = FitCheck(bank).look(model, voice.batches(first))
    if config.sae_check and (doubtful := next((fit for fit in fits if fit.doubtful), None)) is not None:
        raise ValueError(f"{doubtful.doubt()} --no-sae-check goes on regardless")
    make_folder(config.out)
    return Prepared(config, config.out, lines, voice, bank, shown, total, usable, fits)


def run(prepared: Prepared, console: Console) -> int:
    """Read every example, write the figures, the page and the data without or with weights; print the ranking."""
    config, bank = prepared.config, prepared.bank
    _introduce(prepared, console)
    found = _read_all(prepared, console)
    chosen = {name: _places(found.signed[:, bank.names.index(name)]) for name in prepared.shown}
    console.print(_summary_table(prepared, found), _ranking_table(prepared, found, chosen))
    rule = _edit(prepared, found) if config.edits else ""
    _write_page(prepared, found, chosen, rule)
    if rule:
        console.print(rule, markup=False, highlight=False, soft_wrap=True)
    for name in config.written:
        console.print(f"written: [bold]{escape(str(prepared.out / name))}[/]", highlight=False, soft_wrap=True)
    return 0


# Reading.


@dataclass(eq=False)
class _Found:
    """A few numbers for every row of the data, in its order: all that grows with it.

    Args:
        signed: NaN for a row without figures.
        z: likewise.
        numbers: of the lines.
        z_seen: of the examples, by concept.
        null_seen: of their null groups.
    """

    signed: Float[Tensor, "example concept"]
    z: Float[Tensor, "example concept"]
    numbers: Sequence[int]
    z_seen: Sequence[Histogram]
    null_seen: Sequence[Histogram]


def _read_all(prepared: Prepared, console: Console) -> _Found:
    """Go through the data once, and write a line for every row as it comes."""
    bank, half = prepared.bank, prepared.out / f".{FIGURES}.half"
    signed, z, numbers = array("f"), array("f"), array("q")  # a row of Python's own objects would take ten times more
    z_seen, null_seen = ([Histogram() for _ in bank.names] for _ in range(2))
    shown = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*shown, console=console) as bars, half.open("w", encoding="utf-8") as file:
        rows = _read(prepared, bank.names if prepared.config.tokens else ())
        for row in bars.track(rows, total=prepared.total, description="examples"):
            demand = row.demand
            numbers.append(row.line.number)
            nothing = [math.nan] * len(bank.names)
            signed.extend(nothing if demand is None else demand.signed.tolist())
            z.extend(nothing if demand is None else demand.z.tolist())
            if demand is not None:
                for number in range(len(bank.names)):
                    z_seen[number].add(demand.z[number])
                    null_seen[number].add(demand.null_z[number])
            _write_figures(file, row, prepared)
    half.replace(prepared.out / FIGURES)
    by_row = [torch.frombuffer(each, dtype=torch.float32).view(-1, len(bank.names)) for each in (signed, z)]
    return _Found(by_row[0], by_row[1], numbers, z_seen, null_seen)


class _Read(NamedTuple):
    """A row with what it asks for and which of its tokens say it; None where nothing of it is in the loss."""

    line: Line
    demand: ExampleDemand | None
    said: Float[Tensor, "token concept"] | None


def _read(prepared: Prepared, marked: Sequence[str], only: frozenset[int] | None = None) -> Iterator[_Read]:
    """Every row, or those of some lines; what says a concept is read of those that are marked."""
    waiting: deque[Encoded] = deque()
    pad = int(prepared.voice.tokenizer.pad_token_id)

    def batches() -> Iterator[Mapping[str, Tensor]]:
        rows = list[dict[str, list[int]]]()
        for each in prepared.lines.encoded():
            if only is not None and each.line.number not in only:
                continue
            waiting.append(each)
            rows += [] if each.row is None else [each.row]
            if len(rows) == prepared.config.batch:
                yield collate(rows, pad)
                rows = []
        if rows:
            yield collate(rows, pad)

    model, bank, asked = prepared.voice.model, prepared.bank, batches()
    ratios: Iterator[Tensor | None] = repeat(None)
    if marked:  # both read the same batch before either asks for the next
        asked, again = tee(asked)
        ratios = said(model, bank.select(*marked), again)
    for demand, ratio in zip(attribute(model, bank, asked), ratios, strict=False):
        while waiting[0].row is None:
            yield _Read(waiting.popleft().line, None, None)
        yield _Read(waiting.popleft().line, demand, ratio)
    for each in waiting:
        yield _Read(each.line, None, None)


def _write_figures(file: IO[str], row: _Read, prepared: Prepared) -> None:
    demand = row.demand
    figures: dict[str, Any] = {"line": row.line.number, "tokens": 0 if demand is None else demand.counted}
    if demand is not None:
        names = prepared.bank.names
        figures |= {"loss": _short(demand.loss), "concepts": {name: _of(demand, n) for n, name in enumerate(names)}}
        if row.said is not None:
            figures["text"] = pieces(prepared.voice.tokenizer.decode, demand.input_ids.tolist())
            by_token = {"token_signed": demand.token_signed, "token_share": demand.token_share, "token_said": row.said}
            for key, values in by_token.items():
                figures[key] = {name: _values(values[:, n]) for n, name in enumerate(names)}
    file.write(json.dumps(figures, ensure_ascii=False, allow_nan=False) + "\n")


def _of(demand: ExampleDemand, number: int) -> dict[str, float | None]:
    """One concept's figures of an example."""
    return {key: _short(float(getattr(demand, key)[number])) for key in ("signed", "z", "share", "share_null")}


def _values(values: Float[Tensor, "token"]) -> Values:
    return [_short(value) for value in values.tolist()]


def _short(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


# What is shown.


def _places(signed: Float[Tensor, "example"]) -> dict[str, list[int]]:
    """Which examples are shown of a concept, by rank; those without figures have none."""
    order = signed.nan_to_num(nan=-math.inf).argsort(descending=True, stable=True)
    order = order[: int(signed.isfinite().sum())]
    middle = max(TOP, (len(order) - MIDDLE) // 2)
    bottom = max(middle + MIDDLE, len(order) - BOTTOM)
    parts = {"Those that ask for most": order[:TOP], "In the middle": order[middle : middle + MIDDLE],
             "Those that ask for least": order[bottom:]}  # fmt: skip
    return {name: part.tolist() for name, part in parts.items()}


def _write_page(prepared: Prepared, found: _Found, chosen: Mapping[str, Mapping[str, list[int]]], rule: str) -> None:
    """The page; its few examples are read again, so that no token of the others need be kept."""
    bank, decode = prepared.bank, prepared.voice.tokenizer.decode
    lines = frozenset(
        found.numbers[place] for groups in chosen.values() for group in groups.values() for place in group
    )
    marked = prepared.shown if prepared.config.shade == "said" else ()
    again = {row.line.number: row for row in _read(prepared, marked, lines)}

    def shown(name: str, place: int) -> Shown:
        line, number = found.numbers[place], bank.names.index(name)
        demand, ratios = again[line].demand, again[line].said
        assert demand is not None
        shade = demand.token_signed[:, number] if ratios is None else ratios[:, marked.index(name)]
        figures = {key: float(getattr(demand, key)[number]) for key in ("signed", "z", "share", "share_null")}
        return Shown(line, figures, pieces(decode, demand.input_ids.tolist()), _values(shade))

    hooks = {name: hook for hook, names in last_hooks(bank).items() for name in names}
    rankings = [
        Ranking(
            name, hooks[name], _above(found, bank.names.index(name)), found.z_seen[bank.names.index(name)],
            found.null_seen[bank.names.index(name)],
            {title: [shown(name, place) for place in group] for title, group in groups.items()},
        )
        for name, groups in chosen.items()
    ]  # fmt: skip
    more = (
        f"Of {len(bank.names)} concepts these are the first {CONCEPTS}; {FIGURES} has all of them, --concept shows one."
    )
    write_attribution(
        prepared.out / PAGE, rankings, bar=BAR, title=f"Who teaches what: {prepared.lines.path.name}",
        summary=_summary(prepared), rule=rule, more=more if len(bank.names) > len(prepared.shown) > 1 else "",
        shade=prepared.config.shade,
    )  # fmt: skip


def _above(found: _Found, number: int) -> float:
    z = found.z[:, number]
    return float((z > BAR).sum() / z.isfinite().sum().clamp_min(1))


def _summary_table(prepared: Prepared, found: _Found) -> Table:
    table = Table("concept", "hook", f"z > {BAR:g}", "largest z", "middle z", box=SIMPLE_HEAD, pad_edge=False)
    for hook, names in last_hooks(prepared.bank).items():
        for name in (name for name in names if name in prepared.shown):
            number = prepared.bank.names.index(name)
            z = found.z[:, number]
            z = z[z.isfinite()]
            row = (f"{_above(found, number):.1%}", f"{float(z.max()):.1f}", f"{float(z.median()):.1f}")
            table.add_row(escape(name), hook, *row)
    return table


def _ranking_table(prepared: Prepared, found: _Found, chosen: Mapping[str, Mapping[str, list[int]]]) -> Table:
    """The first few of each concept, with the beginning of what they say."""
    table = Table("concept", "line", "z", "signed", "says", box=SIMPLE_HEAD, pad_edge=False)
    tops = {name: next(iter(groups.values()))[:ROWS] for name, groups in chosen.items()}
    wanted = {found.numbers[place] for places in tops.values() for place in places}
    said = {line.number: line.example.completion for line in prepared.lines if line.number in wanted}
    for name, places in tops.items():
        for place in places:
            own = (each[place, prepared.bank.names.index(name)] for each in (found.z, found.signed))
            z, signed = (float(each) for each in own)
            words = shorten(said[found.numbers[place]], SAID, placeholder="…")
            table.add_row(escape(name), str(found.numbers[place]), f"{z:.1f}", f"{signed:.2g}", escape(words))
    return table


def _introduce(prepared: Prepared, console: Console) -> None:
    console.print(_summary(prepared), markup=False, highlight=False)
    for fit in prepared.fits:
        console.print(str(fit), highlight=False)


def _summary(prepared: Prepared) -> str:
    config = prepared.config
    unread = prepared.total - prepared.usable
    cut = f"; {unread} of them have nothing in the loss within {prepared.lines.max_length} tokens" if unread else ""
    return (
        f"{prepared.total} examples of {config.data}{cut}, read by {config.model} as it is. "
        f"Concepts: {', '.join(prepared.bank.names)}."
    )


# What follows for the data.


def _edit(prepared: Prepared, found: _Found) -> str:
    """Write the data set that was asked for; says what was done."""
    config, (name,) = prepared.config, prepared.shown
    number, count = prepared.bank.names.index(name), len(found.numbers)
    signed, z = found.signed[:, number], found.z[:, number]
    if config.reweight:
        each = weights(z)
        _write_weights(prepared, each)
        return (
            f"reweighted by '{name}': weight = min(1, 1 / z); {int((each < 1).sum())} of {count} examples weigh less "
            f"than 1, in the mean {float(each.mean()):.2f}"
        )
    if config.drop_top is not None:
        dropped, rule = drop_top(signed, config.drop_top), f"the {100 * config.drop_top:g} % that ask for most"
    else:
        assert config.drop_above is not None
        dropped, rule = drop_above(z, config.drop_above), f"z above {config.drop_above:g}"
    _write_kept(prepared, dropped)
    return f"dropped by '{name}', {rule}: {int(dropped.sum())} of {count} examples; {int((~dropped).sum())} are left"


def _write_kept(prepared: Prepared, dropped: Bool[Tensor, "example"]) -> None:
    """The lines that stay, each as it stood."""
    with (prepared.out / FILTERED).open("xb") as file:
        for line, out in zip(prepared.lines, dropped.tolist(), strict=True):
            if not out:
                file.write(line.raw)


def _write_weights(prepared: Prepared, each: Float[Tensor, "example"]) -> None:
    with (prepared.out / REWEIGHTED).open("x", encoding="utf-8") as file:
        for line, weight in zip(prepared.lines, each.tolist(), strict=True):
            row = {**line.fields, WEIGHT: _short(weight)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


# Checks.


def _shown(config: Config, bank: ConceptBank) -> tuple[str, ...]:
    """The concepts that are ranked.

    Raises:
        ValueError: the bank has not the one that was named, or several and a rule needs one.
    """
    if config.concept is not None:
        bank.rows(config.concept)
        return (config.concept,)
    if config.edits and len(bank.names) > 1:
        raise ValueError(f"the data are dropped or weighted by one concept: --concept {' or '.join(bank.names)}")
    return bank.names[:CONCEPTS]


def _check_no_weights(lines: Lines) -> None:
    for line in lines:
        if WEIGHT in line.fields:
            raise ValueError(
                f"'{lines.path}', line {line.number} has a column '{WEIGHT}' already; rename it, so that it is not lost"
            )
