"""Ranks a corpus by how much its documents would teach what a handful of examples teaches.

    interptrain similar --model MODEL --query few.jsonl --corpus corpus.jsonl --sae SAE --out DIR

The corpus is read three times, line by line, and never held: to check it and draw a sample of it, to score it, and to
copy its first rows. What grows with it is the list of the first rows' numbers, about a hundred bytes each.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from interptrain.concepts.bank import ConceptBank
from interptrain.recipes.banks import load_sae
from interptrain.recipes.examples import Columns, collate
from interptrain.recipes.lines import Line, Lines
from interptrain.recipes.loading import (
    ModelChoice,
    device,
    estimate,
    free_memory,
    in_bf16,
    load_config,
    load_model,
    load_tokenizer,
    positions_of,
)
from interptrain.recipes.provenance import as_json, make_folder, versions
from interptrain.recipes.settings import add_options, configured, option
from interptrain.recipes.voice import Voice
from interptrain.recorders.similar import show_similar, write_similar
from interptrain.similarity import (
    ConceptDemands,
    Reader,
    Reservoir,
    Scales,
    SecondMoments,
    Sketch,
    Top,
    cosine,
    linear_layers,
    rank_correlation,
    read_gradients,
    similar,
    whitened,
)
from interptrain.sites.hooks import HookPoint

NEEDS = ("sae", "hf", "recipes")
SCHEMA = 1
FILES = ("similar.jsonl", "top.jsonl", "similar.html", "summary.json")
SHOWN, CHARACTERS = 20, 600  # documents of a ranking on the page, and of each text
PAIRS = 2048  # documents drawn for the rank correlation
RULES = {"whitened": whitened, "cosine": cosine}


@dataclass(frozen=True)
class Config:
    """Everything that can be chosen."""

    model: str = option("a folder, a model on the hub, or tiny-world for the embedded one", "")
    query: Path | None = option("a JSONL file: a handful of examples of the skill")
    corpus: Path | None = option("a JSONL file: the documents to rank")
    out: Path | None = option("folder for everything written")
    by: Literal["concepts", "gradient", "both"] | None = option(
        "what is compared; both where concepts or an SAE are given, else the gradient"
    )
    concepts: Path | None = option("a saved concept bank, whose directions are the coordinates")
    sae: str | None = option("an SAE, whose whole dictionary gives them: a folder, a SAELens release, or tiny-world")
    sae_id: str | None = option("which SAE of a release")
    top: float = option("share of the corpus that is copied to top.jsonl", 0.05)
    dimension: int = option("numbers that an example's gradient is projected to, at most", 4096)
    layers: tuple[str, ...] = option("name patterns of the linear layers to compare; those of the blocks", ())
    normaliser: Literal["none", "adam"] = option(
        "adam divides by the root of the second moment, by rows and columns", "none"
    )
    second_moments: Path | None = option(
        "for adam, an optimizer's exp_avg_sq by parameter name (safetensors); without, of the sample's examples"
    )
    rule: Literal["whitened", "cosine"] = option("whether what most of the corpus asks for is discounted", "whitened")
    sample: int = option("documents drawn from the corpus to know what is usual in it", 512)
    batch: int = option("documents of a batch", 8)
    max_length: int = option("tokens of a document; longer ones are cut off", 512)
    precision: Literal["auto", "32", "bf16"] = option("auto: bf16 on a GPU that has it, else 32", "auto")
    prompt_column: str | None = option("column of what is asked; found by its usual names if not given")
    completion_column: str | None = option("column of what is to be answered, which is in the loss")
    text_column: str | None = option("column of plain texts, in place of the two")
    label_column: str | None = option("column of the corpus that says which documents show the skill")
    label: str = option("what stands in it where they do", "true")
    pad_token: str | None = option("for a tokenizer with neither a padding nor an end token")
    seed: int = option("of the sample and of the projections", 0)
    memory_check: bool = option("refuse a model that cannot fit into memory", True)

    def __post_init__(self) -> None:
        for name in ("model", "query", "corpus", "out"):
            if not getattr(self, name):
                raise ValueError(f"{name} is needed: --{name}")
        for name, least in (("dimension", 1), ("sample", 2), ("batch", 1), ("max_length", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, found {getattr(self, name)}")
        if not 0 < self.top < 1:
            raise ValueError(f"top is a share between 0 and 1, found {self.top}")
        if self.concepts and self.sae:
            raise ValueError("concepts names a bank and sae a dictionary; give one of them")
        if self.by in ("concepts", "both") and not (self.concepts or self.sae):
            raise ValueError(f"by {self.by} needs coordinates: --concepts BANK, or --sae SAE")
        if self.second_moments and self.normaliser != "adam":
            raise ValueError("second_moments belong to --normaliser adam")
        self.columns  # noqa: B018  they check themselves

    @property
    def columns(self) -> Columns:
        """Where the texts are."""
        return Columns(self.prompt_column, self.completion_column, self.text_column)

    @property
    def files(self) -> tuple[Path, Path, Path]:
        """The examples, the corpus and the folder."""
        assert self.query is not None
        assert self.corpus is not None
        assert self.out is not None
        return self.query, self.corpus, self.out

    @property
    def methods(self) -> tuple[str, ...]:
        """What is compared."""
        by = self.by or ("both" if self.concepts or self.sae else "gradient")
        return ("gradient", "concepts") if by == "both" else (by,)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A search that can start.

    Args:
        config: what was chosen.
        corpus: the documents.
        voice: the model and its tokenizer.
        query: the examples.
        sample: documents drawn from the corpus.
        documents: how many the corpus has.
        labelled: how many of them show the skill; None without labels.
        layers: whose gradients are compared, by name.
        directions: coordinates by hook; empty without concepts.
        second_moments: of an optimizer, by parameter name.
    """

    config: Config
    corpus: Lines
    voice: Voice
    query: Sequence[Line]
    sample: Sequence[Line]
    documents: int
    labelled: int | None
    layers: Mapping[str, nn.Module]
    directions: Mapping[str, Tensor]
    second_moments: Mapping[str, Tensor]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    add_options(parser, Config)


def prepare(options: argparse.Namespace) -> Prepared:
    """Check everything, and load what is needed.

    Raises:
        ValueError: a file cannot be read or has lines that cannot be used, the model or concepts cannot be loaded or do
            not go together, or the folder holds a search already.
    """
    config = configured(Config, vars(options))
    query_file, corpus, out = config.files
    _check_unwritten(out)
    choice = ModelChoice(config.model, tuning="full", pad_token=config.pad_token)
    tokenizer = load_tokenizer(choice)
    most = min(config.max_length, positions_of(load_config(choice)) or config.max_length)
    query = [line for line, row in Lines(query_file, config.columns, tokenizer, most).encoded() if row is not None]
    if not query:
        raise ValueError(f"no example of '{query_file}' has a token in the loss within {most} tokens")
    lines = Lines(corpus, config.columns, tokenizer, most)
    sample, labelled = _look_at(lines, config)
    if sample.seen < 2:
        raise ValueError(f"'{corpus}' has {sample.seen} document, expected two or more")
    if config.memory_check:
        _check_memory(choice, config.batch, most)
    model = load_model(choice).eval()
    model.to(device(), torch.bfloat16 if in_bf16(config.precision) else torch.float32)
    layers = linear_layers(model, config.layers) if "gradient" in config.methods else {}
    directions = _directions(config, model) if "concepts" in config.methods else {}
    moments = _second_moments(config.second_moments, layers)
    make_folder(out)
    voice = Voice(model, tokenizer, most, config.batch)
    return Prepared(config, lines, voice, query, sample.items, sample.seen, labelled, layers, directions, moments)


def run(prepared: Prepared, console: Console) -> int:
    """Score the corpus and write what was found."""
    config = prepared.config
    query, _, out = config.files
    names = [*config.methods, *(["both"] if len(config.methods) == 2 else [])]
    most = math.ceil(config.top * prepared.documents)
    tops, pairs, unscored = {name: Top(most) for name in names}, Reservoir[list[float]](PAIRS), 0
    start = time.perf_counter()
    with (out / FILES[0]).open("x", encoding="utf-8") as written, _progress(console) as bar:
        for row, scores in bar.track(_scores(prepared), total=prepared.documents, description="documents"):
            written.write(json.dumps({"line": row.number, **dict.fromkeys(names), **scores}) + "\n")
            if not scores:
                unscored += 1
                continue
            pairs.add([scores[name] for name in config.methods])
            for name in names:
                tops[name].add(row.number, scores[name])
    seconds = time.perf_counter() - start
    ranked = {name: dict(top.ranked()) for name, top in tops.items()}
    shown, labelled = _copy(prepared, ranked, names[-1])
    summary = {
        "schema": SCHEMA, "query": query.name, "examples": len(prepared.query), "documents": prepared.documents,
        "unscored": unscored, "rankings": names, "seconds": seconds,
        "documents_per_second": prepared.documents / seconds, "peak_memory": peak_memory(),
        "layers": list(prepared.layers),
        "directions": {hook: len(rows) for hook, rows in prepared.directions.items()}, "top": most,
        "labelled": prepared.labelled, **_compared(config, ranked, pairs.items),
        "precision": {name: labelled[name] / max(1, len(ranked[name])) for name in names}
        if prepared.labelled is not None else None,
        "config": as_json(vars(config)), "versions": versions(),
    }  # fmt: skip
    (out / FILES[3]).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    columns = {
        name: [_shown(shown[n], config, score) for n, score in list(ranked[name].items())[:SHOWN]] for name in names
    }
    asked = [_shown(row, config) for row in prepared.query[:SHOWN]]
    page = write_similar(out / FILES[2], summary, asked, columns)
    show_similar(summary, page, console)
    return 0


def _scores(prepared: Prepared) -> Iterator[tuple[Line, dict[str, float]]]:
    """Each document with its scores; without any where no token of it is in the loss, or its gradient overflows."""
    config, voice, waiting = prepared.config, prepared.voice, deque[list[tuple[Line, bool]]]()

    def corpus() -> Iterator[dict[str, Tensor]]:
        rows, ready = list[tuple[Line, bool]](), list[dict[str, list[int]]]()
        for line, tokens in prepared.corpus.encoded():
            rows.append((line, tokens is not None))
            ready += [] if tokens is None else [tokens]
            if len(ready) == config.batch:
                waiting.append(rows)
                yield collate(ready, int(voice.tokenizer.pad_token_id))
                rows, ready = [], []
        waiting.append(rows)
        if ready:
            yield collate(ready, int(voice.tokenizer.pad_token_id))

    query, sample = (voice.batches([row.example for row in rows]) for rows in (prepared.query, prepared.sample))
    readers = _readers(prepared, sample)
    for scores in similar(voice.model, query, sample, corpus(), readers, rule=RULES[config.rule]):
        columns = {name: iter(each.tolist()) for name, each in scores.items()}
        if len(scores) == 2:
            columns["both"] = iter(torch.stack([*scores.values()]).mean(0).tolist())
        for row, scored in waiting.popleft():
            own = {name: next(each) for name, each in columns.items()} if scored else {}
            yield row, own if all(map(math.isfinite, own.values())) else {}
    for rows in waiting:
        yield from ((row, {}) for row, _ in rows)


def _readers(prepared: Prepared, sample: Sequence[Mapping[str, Tensor]]) -> dict[str, Reader[Any]]:
    config, found = prepared.config, dict[str, Reader[Any]]()
    if prepared.layers:
        scales: dict[str, Scales] | None = None
        if prepared.second_moments:
            scales = {name: _scales(prepared.second_moments, name, each) for name, each in prepared.layers.items()}
        elif config.normaliser == "adam":
            moments = SecondMoments(prepared.layers)
            for batch in sample:
                read_gradients(prepared.voice.model, batch, [moments])
            scales = moments.read()
        found["gradient"] = Sketch(prepared.layers, math.isqrt(config.dimension), seed=config.seed, scales=scales)
    if prepared.directions:
        found["concepts"] = ConceptDemands(prepared.directions, most=config.dimension, seed=config.seed)
    return found


def _scales(kept: Mapping[str, Tensor], name: str, layer: nn.Module) -> Scales:
    moments = kept[f"{name}.weight"].float()
    moments = moments if isinstance(layer, nn.Linear) else moments.T  # Conv1D keeps its weight the other way round
    return Scales.of(moments.sum(1), moments.sum(0))


def _copy(
    prepared: Prepared, ranked: Mapping[str, Mapping[int, float]], name: str
) -> tuple[dict[int, Line], dict[str, int]]:
    """Write the rows of a ranking's top, in the order of the corpus; those to show, and the labelled ones counted."""
    config, out = prepared.config, prepared.config.files[2]
    wanted = {number for each in ranked.values() for number in list(each)[:SHOWN]}
    shown, labelled = dict[int, Line](), dict.fromkeys(ranked, 0)
    with (out / FILES[1]).open("xb") as written:
        for row in prepared.corpus:
            if row.number in ranked[name]:
                written.write(row.raw)
            if row.number in wanted:
                shown[row.number] = row
            for each, numbers in ranked.items():
                labelled[each] += row.number in numbers and _shows(row, config)
    return shown, labelled


def _compared(
    config: Config, ranked: Mapping[str, Mapping[int, float]], pairs: Sequence[Sequence[float]]
) -> dict[str, float | None]:
    """How far two methods agree."""
    if len(config.methods) < 2 or len(pairs) < 2:
        return {"rank_correlation": None, "overlap": None}
    one, other = (set(ranked[name]) for name in config.methods)
    return {"rank_correlation": rank_correlation(*torch.tensor(pairs).T), "overlap": len(one & other) / len(one)}


def _look_at(lines: Lines, config: Config) -> tuple[Reservoir[Line], int | None]:
    """Read the corpus once: every line is checked, some are drawn, and the labelled ones counted."""
    column = config.label_column
    sample, labelled = Reservoir[Line](config.sample, seed=config.seed), 0
    for row in lines:
        if column is not None and column not in row.fields:
            found = ", ".join(map(repr, row.fields))
            raise ValueError(f"'{lines.path}', line {row.number}: no label column '{column}', found {found}")
        labelled += _shows(row, config)
        sample.add(row)
    if column is None:
        return sample, None
    if labelled == 0:
        raise ValueError(f"no document of '{lines.path}' has '{config.label}' in '{column}'; say what does (--label)")
    return sample, labelled


def _shows(row: Line, config: Config) -> bool:
    if config.label_column is None:
        return False
    found = row.fields.get(config.label_column)
    return (found if isinstance(found, str) else json.dumps(found)) == config.label


def _shown(row: Line, config: Config, score: float = 0.0) -> dict[str, Any]:
    texts = {"prompt": row.example.prompt, "completion": row.example.completion}
    cut = {name: text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]} …" for name, text in texts.items()}
    return {"line": row.number, "score": score, "labelled": _shows(row, config), **cut}


def _directions(config: Config, model: Any) -> dict[str, Tensor]:
    if config.concepts:
        bank = ConceptBank.load(config.concepts)
        found = {hook: bank.directions[[at == hook for at in bank.hooks]] for hook in bank.hook_points}
    else:
        from interptrain.concepts.saelens import from_saelens

        assert config.sae is not None
        whole = from_saelens(load_sae(config.sae, config.sae_id), {"any": [0]}, model=model)
        found = {hook: readout.directions for hook, readout in whole.readouts.items()}
    width = int(model.config.get_text_config().hidden_size)
    for hook, rows in found.items():
        HookPoint.parse(hook).locate(model)
        if rows.shape[1] != width:
            raise ValueError(
                f"the directions at '{hook}' are {rows.shape[1]} wide but '{config.model}' is {width}; were they found "
                "in another model?"
            )
    return found


def _second_moments(file: Path | None, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    if file is None:
        return {}
    try:
        found = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read the second moments '{file}': {error}; only safetensors are read") from None
    for name, module in layers.items():
        expected, kept = module.get_parameter("weight").shape, found.get(f"{name}.weight")
        if kept is None or kept.shape != expected:
            raise ValueError(
                f"'{file}' has {'nothing' if kept is None else list(kept.shape)} for '{name}.weight', expected "
                f"{list(expected)}: save exp_avg_sq of every layer that is compared under its parameter's name"
            )
    return found


def _check_unwritten(folder: Path) -> None:
    if there := [name for name in FILES if (folder / name).exists()]:
        raise ValueError(f"'{folder}' holds {', '.join(there)} already; name another folder (--out)")


def _check_memory(choice: ModelChoice, batch: int, tokens: int) -> None:
    needed, (free, where) = estimate(choice, batch, tokens), free_memory()
    if (least := needed.weights + needed.activations) > free:
        raise ValueError(
            f"'{choice.name}' needs at least {decimal(least)}: {decimal(needed.weights)} weights, "
            f"{decimal(needed.activations)} activations of a batch; {where} has {decimal(free)} free. Try a smaller "
            "batch or max_length, or a smaller model; --no-memory-check goes on regardless"
        )


def peak_memory() -> int | None:
    """The most memory that this process has held, in bytes; None where the system does not say."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _progress(console: Console) -> Progress:
    bars = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*bars, console=console, transient=True)
