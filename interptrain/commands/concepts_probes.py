"""`interptrain concepts probes`: fit every probe of texts to two files, and say how well each does beside its null.

A seed splits the texts into those that fit and those that test, and draws the first weights. What is saved is of the
first seed, which is chosen before anything is measured.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich.console import Console
from rich.filesize import decimal
from rich.progress import track
from rich.table import Table
from torch import Tensor

from interptrain._version import __version__
from interptrain.commands.concepts_reading import (
    Precision,
    check_new_folder,
    is_read,
    open_tokenizer,
    open_voice,
)
from interptrain.concepts import ConceptBank, Readout
from interptrain.concepts.activation import latents_of
from interptrain.concepts.contrast import TextActivations, collect
from interptrain.concepts.labelled import Labelled, checked_texts
from interptrain.concepts.latent_probe import LatentProbe
from interptrain.concepts.placed import PlacedProbe
from interptrain.concepts.probes import (
    PROBES,
    Fitting,
    fit_labelled,
    fit_probe,
    parameters_of,
    reads_latents,
)
from interptrain.concepts.text_probe import TextProbe, probe_auc
from interptrain.meters.tokens import IGNORED_LABEL
from interptrain.recipes.banks import default_hook, load_sae
from interptrain.recipes.examples import Columns, Example, encode, read_examples
from interptrain.recipes.loading import TINY_WORLD, free_host_memory
from interptrain.recipes.provenance import as_json
from interptrain.recipes.settings import add_options, configured, option
from interptrain.recipes.voice import Voice

NEEDS = ("hf", "recipes")
SCHEMA = 1
FEWEST = 4  # texts of a class: three to fit and one to test


@dataclass(frozen=True)
class Config:
    """Settings of the command."""

    positive: Path | None = option("a file of texts that show the concept (JSONL)")
    negative: Path | None = option("one of texts that do not")
    test_positive: Path | None = option("texts that show it in other words, to test on")
    test_negative: Path | None = option("texts that do not, in other words")
    model: str = option("a folder, a name on the hub, or tiny-world", TINY_WORLD)
    sae: str | None = option("a folder or release of SAELens, or tiny-world: fits probes of its latents too")
    sae_id: str | None = option("which SAE of the release")
    hook: str | None = option("where to read; with an SAE that is where it was trained, else two thirds of the way up")
    concept: str = option("its name in the banks", "concept")
    probes: tuple[str, ...] = option("which to fit; those of latents only with an SAE", tuple(PROBES))
    seeds: int = option("splits and first weights", 5)
    held_out: float = option("share of the texts that test in the same words", 0.25)
    texts: int = option("texts of a file at most, the first ones", 256)
    heads: int = option("of the attention probes", Fitting.heads)
    sparse: int = option("latents that latents-k and latents-attention look at", Fitting.sparse)
    max_length: int = option("tokens of a text at most", 256)
    batch: int = option("texts run through the model together", 8)
    keep_bos: bool = option("count a BOS token in front of a text", False)
    precision: Precision = option("auto: bf16 on a GPU that has it, else 32", "auto")
    out: Path | None = option("a new folder for the table, the probes and a bank of each one's directions")

    def __post_init__(self) -> None:
        for name in ("positive", "negative"):
            if getattr(self, name) is None:
                raise ValueError(f"{name} is needed: --{name} FILE, a text or a prompt and a completion a line")
        if (self.test_positive is None) != (self.test_negative is None):
            raise ValueError("test_positive and test_negative go together: an AUC is of two sets of texts")
        if unknown := [name for name in self.probes if name not in PROBES]:
            raise ValueError(f"probes: unknown {', '.join(unknown)}; there are {', '.join(PROBES)}")
        if self.hook and self.sae:
            raise ValueError("hook is where to read without an SAE; with one that is where the SAE was trained")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out is a share between 0 and 1, found {self.held_out}")
        for name in ("seeds", "heads", "sparse", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if not self.chosen:
            raise ValueError(f"{', '.join(self.probes)} look at latents: name an SAE (--sae)")

    @property
    def chosen(self) -> tuple[str, ...]:
        """The probes that can be fitted."""
        return tuple(name for name in dict.fromkeys(self.probes) if self.sae or not reads_latents(name))


@dataclass(frozen=True)
class Prepared:
    """Everything that can be wrong has been looked at.

    Args:
        config: the settings.
        sets: texts by what they are: `positive`, `negative`, `test_positive`, `test_negative`.
        voice: the model.
        hook: where to read.
        sae: of SAELens, whose latents are looked at, if any.
        readout: of it.
    """

    config: Config
    sets: Mapping[str, Sequence[Example]]
    voice: Voice
    hook: str
    sae: Any = None
    readout: Readout | None = None


def arguments(parser: argparse.ArgumentParser) -> None:
    """Every setting as a flag."""
    add_options(parser, Config)


def prepare(options: argparse.Namespace) -> Prepared:
    """Read the texts, load the model and the SAE.

    Raises:
        ValueError: a setting, a file, the model, the SAE or the hook point is wrong.
    """
    config = configured(Config, vars(options))
    if config.out is not None:
        check_new_folder(config.out, "--out")
    tokenizer = open_tokenizer(config.model)
    files = {
        "positive": config.positive, "negative": config.negative,
        "test_positive": config.test_positive, "test_negative": config.test_negative,
    }  # fmt: skip
    sets = {name: read_examples(file, Columns(), tokenizer)[: config.texts] for name, file in files.items() if file}
    _check_enough(files, sets)
    voice = open_voice(
        config.model, tokenizer, max_length=config.max_length, precision=config.precision, at_once=config.batch
    )
    sets = {name: [each for each in texts if is_read(voice, each)] for name, texts in sets.items()}
    _check_enough(files, sets, f" of which a token is read within max_length ({config.max_length})")
    hook = config.hook or default_hook(voice.model)
    if config.sae is None:
        _check_hook(voice, hook)
        return Prepared(config, sets, voice, hook)
    from interptrain.concepts.saelens import from_saelens

    sae = load_sae(config.sae, config.sae_id)
    bank = from_saelens(sae, {config.concept: [0]}, model=voice.model)
    readout = bank.readouts[bank.hooks[0]]
    width = _check_hook(voice, readout.reads or bank.hooks[0])
    if width != sae.cfg.d_in:
        raise ValueError(
            f"the SAE reads activations of width {sae.cfg.d_in} but the model has {width} at "
            f"'{readout.reads or bank.hooks[0]}'; was it trained on another model?"
        )
    _check_latents(voice, sets, len(readout.alive))
    return Prepared(config, sets, voice, bank.hooks[0], sae, readout)


def run(prepared: Prepared, console: Console) -> int:
    """Fit all probes over the seeds, print the table, and save what was asked for."""
    config = prepared.config
    texts = {name: _read(prepared, examples) for name, examples in prepared.sets.items()}
    rows: list[dict[str, Any]] = []
    kept: dict[str, TextProbe] = {}
    for seed in track(range(config.seeds), "fitting", console=console, transient=True):
        for name in config.chosen:
            row, probe = _measured(prepared, texts, name, seed)
            rows.append(row)
            kept.setdefault(name, probe)
    console.print(_table(config, rows))
    if config.out is not None:
        _save(prepared, config.out, rows, kept)
        console.print(f"written to {config.out}: table.json, probes/, banks/", markup=False, soft_wrap=True)
    return 0


def _check_enough(files: Mapping[str, Path | None], sets: Mapping[str, Sequence[Example]], how: str = "") -> None:
    for name, texts in sets.items():
        fewest = 1 if name.startswith("test") else FEWEST
        if len(texts) < fewest:
            raise ValueError(f"'{files[name]}' has {len(texts)} texts{how}, expected {fewest} or more")


def _check_latents(voice: Voice, sets: Mapping[str, Sequence[Example]], latents: int) -> None:
    """Refuse texts whose latents do not fit into memory: every one of every token, and once more to fit on."""
    rows = (row for each in sets.values() for row in encode(voice.tokenizer, each, voice.max_length))
    tokens = sum(label != IGNORED_LABEL for row in rows for label in row["labels"])
    if (needed := 2 * 4 * tokens * latents) > (free := free_host_memory()):
        raise ValueError(
            f"{latents} latents of {tokens} tokens take {decimal(needed)} in memory, and {decimal(free)} are free: "
            "take fewer texts (--texts) or shorter ones (--max-length), or leave the SAE out"
        )


def _check_hook(voice: Voice, hook: str) -> int:
    """The width at a hook point by one text, so that one which is not in the model is found before anything is done."""
    (batch,) = voice.batches([Example("", "one text")])
    there = collect(voice.model, hook, [_moved(batch, voice)], keep_bos=True)
    return there.values.shape[1]


def _moved(batch: Mapping[str, Tensor], voice: Voice) -> dict[str, Tensor]:
    return {name: value.to(voice.model.device) for name, value in batch.items()}


def _read(prepared: Prepared, examples: Sequence[Example]) -> dict[bool, TextActivations]:
    """Activations, and latents where there is an SAE, on the CPU."""
    voice, keep_bos = prepared.voice, prepared.config.keep_bos
    readout = prepared.readout
    places = {False: prepared.hook} if readout is None else {False: prepared.hook, True: readout.reads or prepared.hook}
    found = {}
    for latents, place in places.items():
        batches = (_moved(batch, voice) for batch in voice.batches(examples))
        there = collect(voice.model, place, batches, keep_bos=keep_bos)
        there = replace(there, values=there.values.cpu(), text=there.text.cpu())
        found[latents] = _encoded(readout, there) if latents and readout is not None else there
    return found


def _encoded(readout: Readout, texts: TextActivations) -> TextActivations:
    from interptrain.concepts.saelens import shared_sae

    return replace(texts, values=latents_of(shared_sae(readout), texts.values))


def _measured(
    prepared: Prepared, texts: Mapping[str, Mapping[bool, TextActivations]], name: str, seed: int
) -> tuple[dict[str, Any], TextProbe]:
    """Fit one probe to one split, and the same with shuffled labels."""
    config, latents = prepared.config, reads_latents(name)
    halves = [_split(texts[which][latents], config.held_out, seed) for which in ("positive", "negative")]
    shown, absent = (fitted for fitted, _ in halves)
    held = halves[0][1], halves[1][1]
    decoder = None if prepared.readout is None else prepared.readout.decoder
    fitting = Fitting(seed=seed, heads=config.heads, sparse=config.sparse)
    start = time.perf_counter()
    probe = fit_probe(name, shown, absent, fitting=fitting, decoder=decoder)
    seconds = time.perf_counter() - start
    null = fit_labelled(name, Labelled.of(shown, absent).shuffled(seed), fitting=fitting, decoder=decoder)
    row = {
        "probe": name, "seed": seed, "auc": probe_auc(probe, *held), "auc_shuffled": probe_auc(null, *held),
        "parameters": parameters_of(probe), "directions": len(probe.directions()), "seconds": seconds,
    }  # fmt: skip
    if "test_positive" in texts:
        row["auc_other_wording"] = probe_auc(probe, texts["test_positive"][latents], texts["test_negative"][latents])
    return row, probe


def _split(texts: TextActivations, share: float, seed: int) -> tuple[TextActivations, TextActivations]:
    """Texts to fit and texts to test, at least one of the latter and two of the former."""
    count = checked_texts(texts, "a file of texts")
    tested = min(max(1, round(share * count)), count - 2)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    number = torch.empty(count, dtype=torch.long)
    number[order[:tested]], number[order[tested:]] = torch.arange(tested), torch.arange(count - tested)
    held = torch.zeros(count, dtype=torch.bool)
    held[order[:tested]] = True
    parts = [TextActivations(texts.values[at], number[texts.text[at]]) for at in (~held[texts.text], held[texts.text])]
    return parts[0], parts[1]


def _table(config: Config, rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = {"auc": "AUC", "auc_other_wording": "other words", "auc_shuffled": "shuffled"}
    shown = {key: title for key, title in columns.items() if key in rows[0]}
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("probe", no_wrap=True)
    for title in (*shown.values(), "numbers", "rows", "seconds"):
        table.add_column(title, justify="right")
    for name in config.chosen:
        own = [row for row in rows if row["probe"] == name]
        spread = (_mean_sd([row[key] for row in own]) for key in shown)
        table.add_row(name, *spread, str(own[0]["parameters"]), str(own[0]["directions"]),
                      f"{mean(row['seconds'] for row in own):.2f}")  # fmt: skip
    return table


def _mean_sd(values: Sequence[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def _save(prepared: Prepared, out: Path, rows: Sequence[Mapping[str, Any]], probes: Mapping[str, TextProbe]) -> None:
    document = {
        "schema": SCHEMA, "interptrain": __version__, "hook": prepared.hook, "settings": as_json(prepared.config),
        "rows": list(rows),
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for name, probe in probes.items():
        source = {"kind": "text probe", "probe": name, "seed": 0}
        PlacedProbe(probe, prepared.hook, name, source).save(out / "probes" / name)
        if len(probe.directions()):
            _bank(prepared, probe, source).save(out / "banks" / name)


def _bank(prepared: Prepared, probe: TextProbe, source: Mapping[str, Any]) -> ConceptBank:
    """The probe's directions as a concept; of latents with their numbers and read-out."""
    concept = prepared.config.concept
    if not isinstance(probe, LatentProbe):
        return ConceptBank.from_directions({concept: probe.directions()}, hook=prepared.hook, source=source)
    from interptrain.concepts.saelens import from_saelens

    assert prepared.sae is not None
    bank = from_saelens(prepared.sae, {concept: probe.named()}, model=prepared.voice.model)
    return replace(bank, sources=tuple({**each, "probe": source["probe"]} for each in bank.sources))
