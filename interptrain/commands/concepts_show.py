"""What concepts and latents are active on, which tokens they promote, and what lies near them.

interptrain concepts show --bank my-bank --model M --texts corpus.jsonl --out page.html
interptrain concepts show --sae RELEASE --sae-id ID --latents 12,55 --model M --texts corpus.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from interptrain.commands.concepts_cards import CardMaker, cards_at, corpus_of
from interptrain.commands.concepts_reading import (
    Opened,
    Precision,
    check_hook,
    check_new_file,
    open_sae,
    open_tokenizer,
    open_voice,
    printable,
)
from interptrain.concepts import ConceptBank
from interptrain.concepts.saelens import from_saelens
from interptrain.meters.dictionary import read_labels
from interptrain.recipes.examples import Columns, Example, read_examples
from interptrain.recipes.settings import add_options, configured, option
from interptrain.recipes.voice import Voice
from interptrain.recorders.pages import write_page

NEEDS = ("sae", "hf", "recipes")


@dataclass(frozen=True)
class Config:
    """Everything that can be chosen."""

    model: str = field(metadata={"help": "a folder, a model on the hub, or tiny-world for the embedded one"})
    texts: Path = field(metadata={"help": "a JSONL file of texts to look for activations in"})
    bank: Path | None = option("a bank to show: every concept and each of its directions")
    concepts: tuple[str, ...] = option("which concepts of the bank; all if not given", ())
    sae: str | None = option("an SAE to show latents of: a folder, a release, or tiny-world")
    sae_id: str | None = option("which SAE of a release; of tiny-world, its hook")
    latents: tuple[str, ...] = option("which latents of the SAE, such as 12,55", ())
    neuronpedia: Path | None = option("a JSON or JSONL export of what the latents are about")
    out: Path | None = option("an HTML page to write as well; a new file")
    top: int = option("texts, tokens and neighbours shown of each", 5)
    corpus: int = option("texts read, at most", 512)
    max_length: int = option("tokens of a text; longer ones are cut off", 256)
    precision: Precision = option("auto: bf16 on a GPU that has it, else 32", "auto")

    def __post_init__(self) -> None:
        if bool(self.bank) == bool(self.sae):
            raise ValueError("name either a bank (--bank) or an SAE (--sae with --latents)")
        if self.sae and not self.latents:
            raise ValueError("which latents of the SAE? --latents 12,55")
        if self.bank and (self.latents or self.sae_id):
            raise ValueError("latents and sae_id belong to an SAE (--sae); of a bank, name --concepts")
        if self.sae and self.concepts:
            raise ValueError("concepts belong to a bank (--bank); of an SAE, name --latents")
        for name in ("top", "corpus", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        self.numbers  # noqa: B018  # refused here, where it is named

    @property
    def numbers(self) -> tuple[int, ...]:
        """The latents' numbers."""
        given = [part.strip() for each in self.latents for part in each.split(",") if part.strip()]
        if wrong := [part for part in given if not (part.isascii() and part.isdecimal())]:
            raise ValueError(f"latents are numbers such as 12,55; found {', '.join(map(repr, wrong))}")
        return tuple(dict.fromkeys(map(int, given)))


@dataclass(frozen=True, eq=False)
class Prepared:
    """What can be shown.

    Args:
        config: what was chosen.
        voice: the model.
        bank: the concepts; latents of an SAE are one concept each.
        examples: the texts.
        labels: what latents are about.
    """

    config: Config
    voice: Voice
    bank: ConceptBank
    examples: list[Example]
    labels: Mapping[int, str]


def arguments(parser: argparse.ArgumentParser) -> None:
    """One flag for every field of the configuration."""
    add_options(parser, Config)


def prepare(options: argparse.Namespace) -> Prepared:
    """Read the texts and the labels, and load the model, and the bank or the SAE.

    Raises:
        ValueError: whatever does not fit, with what to do about it.
    """
    config = configured(Config, vars(options))
    if config.out is not None:
        check_new_file(config.out)
    labels = read_labels(config.neuronpedia) if config.neuronpedia else {}
    tokenizer = open_tokenizer(config.model)
    examples = read_examples(config.texts, Columns(), tokenizer)[: config.corpus]
    bank = None
    if config.bank:
        bank = ConceptBank.load(config.bank)
        bank = bank.select(*config.concepts) if config.concepts else bank
    voice = open_voice(config.model, tokenizer, max_length=config.max_length, precision=config.precision)
    if bank is None:
        assert config.sae is not None
        opened: Opened = open_sae(config.sae, config.sae_id, voice)
        named = {f"latent {number}": (number,) for number in config.numbers}
        bank = from_saelens(opened.sae, named, model=voice.model)
    width = voice.model.config.get_text_config().hidden_size
    if bank.d_model != width:
        raise ValueError(
            f"the bank's directions have width {bank.d_model} but '{config.model}' has a stream of {width}; does it "
            "belong to another model?"
        )
    for hook in bank.hook_points:
        check_hook(hook, voice)
    return Prepared(config, voice, bank, examples, labels)


def run(prepared: Prepared, console: Console) -> int:
    """Read the corpus once a place, and show each concept and direction."""
    bank, config = prepared.bank, prepared.config
    corpus = corpus_of(prepared.voice, prepared.examples)
    maker = CardMaker(prepared.voice, bank, prepared.labels, config.top)
    cards = [card for hook in bank.hook_points for card in cards_at(maker, hook, corpus)]
    for card in cards:
        _print(card, console)
    if config.out is not None:
        title = f"Concepts in {config.texts.name}"
        write_page(
            config.out, "concepts.html", title=title, cards=cards, texts=len(corpus.pieces),
            tokens=int(corpus.counted.sum()), model=config.model,
        )  # fmt: skip
        console.print(printable(f"written to {config.out}"), markup=False, highlight=False, soft_wrap=True)
    return 0


def _print(card: Mapping[str, Any], console: Console) -> None:
    def say(text: str, style: str = "") -> None:
        console.print(Text(printable(text), style=style), soft_wrap=True)

    rate = "" if card["rate"] is None else f", fires on {card['rate']:.3f} of the tokens"
    say(f"{card['title']}  ({card['hook']}{rate})", "bold")
    if card["label"]:
        say(f"  about: {card['label']}")
    for name in ("promoted", "suppressed"):
        say(f"  {name}: {'  '.join(repr(token) for token, _ in card[name])}")
    if card["neighbours"]:
        near = (f"{number}{f' {label}' if label else ''} {cosine:.2f}" for number, label, cosine in card["neighbours"])
        say(f"  nearest latents: {', '.join(near)}")
    if card["concepts"]:
        say(f"  other concepts: {', '.join(f'{name} {cosine:.2f}' for name, cosine in card['concepts'])}")
    if not card["texts"]:
        say("  no text of the corpus makes it fire")
    for text in card["texts"]:
        console.print(_shaded(text["tokens"], text["values"], card["most"]), soft_wrap=True)
    console.print()


def _shaded(tokens: Sequence[str], values: Sequence[float | None], most: float) -> Text:
    """A text whose tokens stand out by their value."""
    line = Text("  ")
    for token, value in zip(tokens, values, strict=True):
        depth = 0.0 if value is None or most <= 0 else value / most
        style = (
            "black on orange1" if depth > 2 / 3 else "orange1" if depth > 1 / 3 else "" if value is not None else "dim"
        )
        line.append(printable(token).replace("\n", " "), style)
    return line
