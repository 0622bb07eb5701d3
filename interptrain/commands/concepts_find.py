"""Find a concept's directions by several methods, and see of each what it tells apart and what it does.

interptrain concepts find --model M --sae S --positive shown.jsonl --negative other.jsonl --name pirate --out DIR
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from interptrain.commands.concepts_found import Found, document_of, print_found
from interptrain.commands.concepts_reading import (
    Opened,
    Precision,
    check_hook,
    check_new_folder,
    open_sae,
    open_tokenizer,
    open_voice,
    origin_of,
    read_texts,
    usable,
)
from interptrain.commands.concepts_trials import Trials, bar_of
from interptrain.concepts import ConceptBank, effects
from interptrain.concepts.candidates import (
    MIN_TEXTS,
    Candidate,
    Dictionary,
    TextSet,
    held_out,
    methods,
    without_effects,
)
from interptrain.concepts.marker_words import Marker, marker_words, show_rate
from interptrain.concepts.saelens import from_saelens
from interptrain.concepts.steer_generation import PLACES, Place
from interptrain.concepts.trials import Answers
from interptrain.recipes.banks import default_hook
from interptrain.recipes.examples import Columns, Example, read_examples
from interptrain.recipes.provenance import as_json, versions
from interptrain.recipes.settings import add_options, configured, option
from interptrain.recipes.voice import Voice

NEEDS = ("sae", "hf", "recipes")
LIMITS = (
    "Answers are decoded greedily: a concept that shows only in samples is not seen.",
    "Unless words are given, an answer shows the concept where it has a word that the search's texts of it say and the "
    "others hardly ever: other ways to show it are missed, and the figures beside the words say how often.",
    "Well-formed means as likely, under the model as it was, as .95 of the texts that show the concept are behind "
    "prompts that do not ask for it, and no more repetitive: it does not mean sensible.",
    "Place and scale are the best of those swept, on the same prompts: try the choice on others.",
    "An AUC on held-out texts of the same wording can rest on single words; files of another wording test more.",
)


@dataclass(frozen=True)
class Config:
    """Everything that can be chosen."""

    model: str = field(metadata={"help": "a folder, a model on the hub, or tiny-world for the embedded one"})
    positive: Path = field(metadata={"help": "a JSONL file of texts that show the concept"})
    negative: Path = field(metadata={"help": "a JSONL file of texts that do not"})
    name: str = field(metadata={"help": "what to call the concept"})
    out: Path = field(metadata={"help": "folder to write; new or empty"})
    sae: str | None = option("an SAE to search too: a folder, a release, or tiny-world")
    sae_id: str | None = option("which SAE of a release; of tiny-world, its hook")
    hook: str | None = option("where to read without an SAE; two thirds up the stack if not given")
    test_positive: Path | None = option("held-out texts that show it, best in another wording; else some are held out")
    test_negative: Path | None = option("held-out texts that do not")
    prompts: Path | None = option(
        "a JSONL file of prompts to steer on; those of the held-out negative texts if not given"
    )
    words: tuple[str, ...] = option("words that mark the concept in an answer; found in the texts if not given", ())
    texts: int = option("texts of each file, at most", 256)
    group: int = option("latents of the group that separates the texts", 8)
    sparse: tuple[int, ...] = option("latents of each sparse probe", (1, 4, 16))
    scales: tuple[float, ...] = option(
        "how much to add, in gaps between the two sets along the direction", (1.0, 2.0, 4.0)
    )
    places: tuple[Place, ...] = option("where to add it: throughout, or at the start of the answer", PLACES)
    asked: int = option("prompts to steer on, at most", 32)
    tokens: int = option("of an answer, at most", 48)
    controls: int = option("random directions beside each trial", 3)
    max_length: int = option("tokens of a text; longer ones are cut off", 512)
    precision: Precision = option("auto: bf16 on a GPU that has it, else 32", "auto")
    seed: int = option("of the split, the shuffles and the random directions", 0)

    def __post_init__(self) -> None:
        if bool(self.test_positive) != bool(self.test_negative):
            raise ValueError("held-out texts come in two files: give test_positive and test_negative together")
        if self.sae and self.hook:
            raise ValueError("hook says where to read without an SAE; with one that is where it was trained")
        if self.sae_id and not self.sae:
            raise ValueError("sae_id names an SAE of a release: name the release with sae")
        least = {"texts": 2 * MIN_TEXTS, "group": 1, "asked": 1, "tokens": 1, "controls": 1, "max_length": 2}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, found {getattr(self, name)}")
        if not self.scales or not all(0 < scale < float("inf") for scale in self.scales):
            raise ValueError(f"scales must be finite and above 0, found {list(self.scales)}")
        if not self.places:
            raise ValueError(f"places needs one of {', '.join(PLACES)}, found none")
        if not all(count >= 1 for count in self.sparse):
            raise ValueError(f"sparse counts latents: each must be at least 1, found {list(self.sparse)}")
        if not self.name.strip():
            raise ValueError("name is empty; what is the concept called?")

    @property
    def markers(self) -> tuple[str, ...]:
        """The words that were given, apart."""
        return tuple(word.strip().lower() for given in self.words for word in given.split(",") if word.strip())


@dataclass(frozen=True, eq=False)
class Prepared:
    """A search that can start.

    Args:
        config: what was chosen.
        voice: the model.
        hook: where it is read and steered.
        opened: the SAE, if there is one.
        search: texts that show the concept, and others.
        test: the same, held out.
        prompts: what is asked.
    """

    config: Config
    voice: Voice
    hook: str
    opened: Opened | None
    search: tuple[list[Example], list[Example]]
    test: tuple[list[Example], list[Example]]
    prompts: list[Example]


def arguments(parser: argparse.ArgumentParser) -> None:
    """One flag for every field of the configuration."""
    add_options(parser, Config)


def prepare(options: argparse.Namespace) -> Prepared:
    """Read the texts, and load the model and the SAE.

    Raises:
        ValueError: whatever does not fit, with what to do about it.
    """
    config = configured(Config, vars(options))
    check_new_folder(config.out, "--out")
    tokenizer = open_tokenizer(config.model)
    given = [_read(path, config, tokenizer) for path in (config.positive, config.negative)]
    if config.test_positive and config.test_negative:
        held = [_read(path, config, tokenizer) for path in (config.test_positive, config.test_negative)]
        splits = list(zip(given, held, strict=True))
    else:
        splits = [_split(texts, config.seed) for texts in given]
    (shown, shown_held), (other, other_held) = splits
    _check_enough(config, (shown, other, shown_held, other_held))
    asked = _read(config.prompts, config, tokenizer, prompts=True) if config.prompts else None
    voice = open_voice(config.model, tokenizer, max_length=config.max_length, precision=config.precision)
    shown, other, shown_held, other_held = (usable(voice, each) for each in (shown, other, shown_held, other_held))
    _check_enough(config, (shown, other, shown_held, other_held), f" within max_length ({config.max_length})")
    opened = open_sae(config.sae, config.sae_id, voice) if config.sae else None
    hook = opened.hook if opened else config.hook or default_hook(voice.model)
    check_hook(hook, voice)
    prompts = (asked or voice.questions(other_held))[: config.asked]
    return Prepared(config, voice, hook, opened, (shown, other), (shown_held, other_held), prompts)


def run(prepared: Prepared, console: Console) -> int:
    """Search, test, steer, and write everything."""
    config, voice = prepared.config, prepared.voice
    search, test, dictionary = _readings(prepared)
    words = [each.completion for each in prepared.search[0]], [each.completion for each in prepared.search[1]]
    markers = [] if config.markers else marker_words(*words)
    chosen = config.markers or tuple(each.word for each in markers)
    bar = bar_of(voice, voice.questions(prepared.test[1]), voice.questions(prepared.test[0]))
    trials = Trials(voice, prepared.hook, prepared.prompts, chosen, bar, config.tokens)
    before = trials.answers()
    found = find_all(config, trials, search, test, dictionary, console)
    document = _document(prepared, markers, trials, before, found)
    for method, each in found.items():
        if each.candidate is not None:
            bank_of(prepared, each.candidate, method, dictionary).save(config.out / method)
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "found.json").write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print_found(document, config.out, console)
    return 0


def find_all(
    config: Config,
    trials: Trials,
    search: tuple[TextSet, TextSet],
    test: tuple[TextSet, TextSet],
    dictionary: Dictionary | None,
    console: Console,
) -> dict[str, Found]:
    """Every method's directions, tested on held-out texts and by steering."""
    nulls = without_effects(dictionary, group=config.group, sparse_counts=config.sparse)
    every = methods(dictionary, group=config.group, sparse_counts=config.sparse)
    found = {}
    for method in track(every, "searching and steering", console=console, transient=True):
        try:
            candidate = every[method](*search)
            tested = held_out(candidate, nulls[method], search, test, dictionary, seed=config.seed)
        except ValueError as error:
            found[method] = Found(None, None, [], str(error))
            continue
        tried = trials.of(
            candidate, search, places=config.places, scales=config.scales, controls=config.controls, seed=config.seed
        )
        found[method] = Found(candidate, tested, tried)
    return found


def bank_of(prepared: Prepared, candidate: Candidate, method: str, dictionary: Dictionary | None) -> ConceptBank:
    """A method's directions as a bank of one concept, with the SAE as its read-out where there is one."""
    name, opened = prepared.config.name, prepared.opened
    source = {"kind": method, "found_in": [str(prepared.config.positive), str(prepared.config.negative)]}
    if opened is None or dictionary is None:
        return ConceptBank.from_directions({name: candidate.directions}, hook=prepared.hook, source=source)
    whole = from_saelens(
        opened.sae, {name: candidate.latents or (0,)}, alive=dictionary.alive, model=prepared.voice.model
    )
    if candidate.latents:
        return replace(whole, sources=tuple({**each, "found_by": method} for each in whole.sources))
    bank = ConceptBank.from_directions({name: candidate.directions}, hook=prepared.hook, source=source)
    return replace(bank, readouts=whole.readouts, model=whole.model)


def _readings(prepared: Prepared) -> tuple[tuple[TextSet, TextSet], tuple[TextSet, TextSet], Dictionary | None]:
    voice, opened, hook = prepared.voice, prepared.opened, prepared.hook
    both = [read_texts(voice, hook, opened, texts) for texts in (*prepared.search, *prepared.test)]
    (shown, first), (other, second), (shown_held, _), (other_held, _) = both
    dictionary = None
    if opened is not None:
        assert first is not None
        assert second is not None
        asked = voice.questions(prepared.search[1])
        answered = voice.questions(prepared.search[0])
        unasked = [replace(asked[n % len(asked)], completion=each.completion) for n, each in enumerate(answered)]
        effect = effects(voice.model, hook, voice.batches(unasked), opened.readout.decoder)
        dictionary = Dictionary(opened.readout.decoder, first + second > 0, effect)
    return (shown, other), (shown_held, other_held), dictionary


def _document(
    prepared: Prepared,
    markers: Sequence[Marker],
    trials: Trials,
    before: Answers,
    found: dict[str, Found],
) -> dict[str, Any]:
    config = prepared.config
    held = [[each.completion for each in texts] for texts in prepared.test]
    files = {
        "shows the concept": config.positive,
        "does not": config.negative,
        "held out, shows it": config.test_positive,
        "held out, does not": config.test_negative,
        "prompts": config.prompts,
    }
    origin = {
        "concept": config.name,
        "hook": prepared.hook,
        "config": as_json(config),
        "versions": versions(),
        "files": [origin_of(path, says) for says, path in files.items() if path],
        "texts": {"search": [len(each) for each in prepared.search], "test": [len(each) for each in prepared.test]},
    }
    marked = {
        "words": list(trials.words),
        "given": bool(config.markers),
        "found": [asdict(each) for each in markers],
        "held_out_shown": show_rate(held[0], trials.words),
        "held_out_other": show_rate(held[1], trials.words),
    }
    asked = [each.prompt for each in prepared.prompts]
    return {
        **document_of(found, before),
        **origin,
        "markers": marked,
        "bar": asdict(trials.bar),
        "prompts": asked,
        "limits": list(LIMITS),
    }


def _read(path: Path, config: Config, tokenizer: Any, *, prompts: bool = False) -> list[Example]:
    """The file's texts, at most as many as asked for, drawn at random."""
    texts = read_examples(path, Columns(), tokenizer)
    if prompts:
        return [each if each.prompt else Example(each.completion, "", each.templated) for each in texts]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(config.seed)).tolist()
    return [texts[number] for number in order[: config.texts]]


def _check_enough(config: Config, sets: Sequence[Sequence[Example]], how: str = "") -> None:
    files = (config.positive, config.negative, config.test_positive, config.test_negative)
    for texts, path in zip(sets, files, strict=True):
        if len(texts) < MIN_TEXTS:
            where = f"'{path}' has" if path else f"'{config.positive}' and '{config.negative}' leave"
            raise ValueError(
                f"{where} {len(texts)} texts{how} to search in or to test on, expected {MIN_TEXTS} or more"
            )


def _split(texts: list[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """Half to search in, half to test on; a text that is there twice is on one side alone."""
    distinct = list(dict.fromkeys(texts))
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed)).tolist()
    held = {distinct[number] for number in order[: len(distinct) // 2]}
    return [each for each in texts if each not in held], [each for each in texts if each in held]
