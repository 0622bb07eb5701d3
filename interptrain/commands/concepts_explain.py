"""Ask a model what its own directions mean, and believe it only against random ones.

interptrain concepts explain --model M --concepts my-bank
interptrain concepts explain --model M --sae RELEASE --sae-id ID --latents 12 55 --out labels.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from interptrain.commands.concepts_reading import Precision, check_new_file, open_tokenizer, open_voice
from interptrain.concepts import ConceptBank
from interptrain.concepts.injection import Asked
from interptrain.concepts.self_explaining import Answer, SelfExplainer, Sweep
from interptrain.meters.spans import mean_directions
from interptrain.recipes.banks import load_sae
from interptrain.recipes.loading import blocks_of
from interptrain.recipes.provenance import as_json
from interptrain.recipes.question import BEGIN, PROMPT, WORD, Question
from interptrain.recipes.settings import add_options, configured, option
from interptrain.sites.hooks import HookPoint

NEEDS = ("sae", "hf", "recipes")
SCHEMA = 1
EARLY = 2  # the layer whose input is filled, if nobody says: that of Kharlapenko et al.


@dataclass(frozen=True)
class Config:
    """Everything that can be chosen."""

    model: str = option(
        "the model that is asked, and that the directions are of: a folder, a name on the hub, or tiny-world"
    )
    concepts: Path | None = option(
        "a bank that ConceptBank.save wrote: its concepts are asked for, each along its mean direction"
    )
    only: tuple[str, ...] = option("of the bank, these concepts alone", default=())
    sae: str | None = option("an SAE whose latents are asked for: a folder, a release, or tiny-world")
    sae_id: str | None = option("which SAE of a release; of tiny-world, its hook")
    latents: tuple[int, ...] = option("of the SAE, by number", default=())
    prompt: str = option("what is asked; {} is the place that a direction fills", PROMPT)
    begin: str = option("how the answer begins; {} as above", BEGIN)
    word: str = option("what stands in the place before it is filled", WORD)
    at: str | None = option("hook point where it is filled; by default in front of layer 2")
    added: bool = option("add the direction to what stands there, rather than replace it", default=False)
    scales: tuple[float, ...] = option("lengths to try, in units of the stream's own length there", Sweep.scales)
    tokens: int = option("of an answer at most", Sweep.tokens)
    controls: int = option("random directions that are asked the same", Sweep.controls)
    seed: int = option("of theirs", 0)
    precision: Precision = option("auto: bf16 on a GPU that has it, else 32", "auto")
    out: Path | None = option("a JSON file to write, with everything measured; a new one")

    def __post_init__(self) -> None:
        if self.model is None:
            raise ValueError("model is needed: --model")
        if bool(self.concepts) == bool(self.sae):
            raise ValueError("name either a bank (--concepts) or an SAE (--sae) with latents")
        if bool(self.sae) != bool(self.latents):
            raise ValueError("latents of an SAE are named by --sae and --latents together")
        if self.only and not self.concepts:
            raise ValueError("only names concepts of a bank (--concepts)")

    @property
    def sweep(self) -> Sweep:
        """Scales and controls."""
        return Sweep(self.scales, self.tokens, self.controls, self.seed)


def arguments(parser: argparse.ArgumentParser) -> None:
    """One flag for every field."""
    add_options(parser, Config)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A question that can be asked.

    Args:
        config: everything chosen.
        model: in eval mode, where models are run.
        tokenizer: the model's.
        asked: the prompt in tokens.
        text: the prompt in words.
        directions: what is asked for, by name: a unit vector and its hook point.
    """

    config: Config
    model: Any
    tokenizer: Any
    asked: Asked
    text: str
    directions: dict[str, tuple[Tensor, str]]


def prepare(options: argparse.Namespace) -> Prepared:
    """Load the model and the directions, and put the question in tokens.

    Raises:
        ValueError: whatever does not fit, with what to do about it.
    """
    config = configured(Config, vars(options))
    _ = config.sweep
    if config.out is not None:
        check_new_file(config.out)
    tokenizer = open_tokenizer(config.model)
    question = Question(config.prompt, config.begin, config.word).in_tokens(tokenizer)
    directions = dict(_of_bank(config) if config.concepts else _of_sae(config))
    length = len(question.ids) + config.tokens
    model = open_voice(config.model, tokenizer, max_length=length, precision=config.precision).model
    model.requires_grad_(False)
    hook = config.at or f"blocks.{min(EARLY, blocks_of(model) - 1)}.hook_resid_pre"
    width = model.config.get_text_config().hidden_size
    for name, (direction, at) in directions.items():
        HookPoint.parse(at).locate(model)
        if len(direction) != width:
            raise ValueError(
                f"'{name}' has a direction of width {len(direction)} but '{config.model}' has a stream of {width}; was "
                "it found in another model?"
            )
    HookPoint.parse(hook).locate(model)
    asked = Asked(question.ids, question.places, hook, config.added)
    return Prepared(config, model, tokenizer, asked, question.text, directions)


def _of_bank(config: Config) -> Iterator[tuple[str, tuple[Tensor, str]]]:
    """Each concept's mean direction, at its last hook point."""
    assert config.concepts is not None
    bank = ConceptBank.load(config.concepts)
    for name in config.only or bank.names:
        at = max((bank.hooks[row] for row in bank.rows(name)), key=lambda hook: HookPoint.parse(hook).position)
        own = bank.concept_at(name, at)
        yield name, (mean_directions(own, list(range(len(own.directions))))[0, 0], at)


def _of_sae(config: Config) -> Iterator[tuple[str, tuple[Tensor, str]]]:
    """Each latent's decoder row."""
    from interptrain.concepts.saelens import from_saelens

    assert config.sae is not None
    bank = from_saelens(load_sae(config.sae, config.sae_id), {str(latent): [latent] for latent in config.latents})
    for name in bank.names:
        (row,) = bank.rows(name)
        yield name, (bank.directions[row], bank.hooks[row])


def run(prepared: Prepared, console: Console) -> int:
    """Ask for every direction, print what each says, and why it says nothing."""
    explained = [_entry(prepared, *each) for each in track(_answers(prepared), "asking", len(prepared.directions),
                 console=console, transient=True)]  # fmt: skip
    console.print(f"asked at {prepared.asked.hook}: {prepared.text}", markup=False, highlight=False, soft_wrap=True)
    console.print(_table(explained))
    said = sum(entry["says"] is not None for entry in explained)
    one_in = prepared.config.controls + 1
    console.print(
        "nats: how much likelier an answer is, a token, under its own direction than under any other; random: the most "
        "of those."
    )
    console.print(
        f"{said} of {len(explained)} say something. That is the model's own word for a direction, no finding: look at "
        f"the texts that it is on in. Of random directions up to one in {one_in} would say something too."
    )
    if prepared.config.out is not None:
        _write(prepared, explained)
        console.print(f"written to {prepared.config.out}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _answers(prepared: Prepared) -> Iterator[tuple[str, str, Answer, SelfExplainer]]:
    explainers: dict[str, SelfExplainer] = {}
    for name, (direction, at) in prepared.directions.items():
        reads = _read_at(prepared, at)
        if reads not in explainers:
            ends = prepared.model.generation_config.eos_token_id
            end = {prepared.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
            explainers[reads] = SelfExplainer(
                prepared.model, prepared.asked, prepared.config.sweep, end=end, reads=reads
            )
        yield name, at, explainers[reads].explain(direction), explainers[reads]


def _read_at(prepared: Prepared, at: str) -> str:
    """The direction's own hook point, or the last layer's output where that is not behind the place that is filled."""
    filled = HookPoint.parse(prepared.asked.hook)
    last = f"blocks.{blocks_of(prepared.model) - 1}.hook_resid_post"
    return at if HookPoint.parse(at).position > filled.position else last


def _entry(prepared: Prepared, name: str, at: str, answer: Answer, explainer: SelfExplainer) -> dict[str, Any]:
    text, why = prepared.tokenizer.decode(list(answer.words)).strip(), explainer.verdict(answer)
    return {
        "name": name,
        "hook": at,
        "says": None if why else text,
        "why_not": why or None,
        "answer": text,
        "scale": prepared.config.scales[answer.scale],
        "advantage": answer.advantage,
        "uninjected": answer.uninjected,
        "agreement": answer.agreement,
        "entropy": answer.entropy.tolist(),
        "similarity": answer.similarity.tolist(),
        "null": [each.advantage for each in explainer.null],
        "bare_answer": prepared.tokenizer.decode(list(explainer.bare)).strip(),
    }


def _table(explained: list[dict[str, Any]]) -> Table:
    from rich.text import Text

    table = Table(box=None, header_style="bold")
    for column in ("direction", "it says"):
        table.add_column(column)
    for column in ("scale", "nats", "random"):
        table.add_column(column, justify="right")
    for entry in explained:
        said = Text(entry["says"]) if entry["says"] else Text(f"nothing: {entry['why_not']}", "dim")
        table.add_row(
            Text(entry["name"]), said, f"{entry['scale']:g}", f"{entry['advantage']:.2f}", f"{max(entry['null']):.2f}"
        )
    return table


def _write(prepared: Prepared, explained: list[dict[str, Any]]) -> None:
    document = {
        "schema": SCHEMA, "config": as_json(replace(prepared.config, out=None)), "filled_at": prepared.asked.hook,
        "prompt": prepared.text, "directions": explained,
    }  # fmt: skip
    assert prepared.config.out is not None
    with prepared.config.out.open("x", encoding="utf-8") as new:
        json.dump(document, new, indent=1)
