"""What concepts and latents are active on, which tokens they promote, and what lies near them.

interptrain concepts show --bank my-bank --model M --texts corpus.jsonl --out page.html
interptrain concepts show --sae RELEASE --sae-id ID --latents 12,55 --model M --texts corpus.jsonl
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor
from torch.nn.functional import normalize

from interptrain.commands.concepts_reading import (
    Opened,
    Precision,
    check_hook,
    encoded,
    open_sae,
    open_tokenizer,
    open_voice,
    printable,
)
from interptrain.concepts import ConceptBank, Readout, collect
from interptrain.concepts.activation import measured_by_latents
from interptrain.concepts.logit_lens import logit_lens
from interptrain.concepts.saelens import from_saelens, shared_sae
from interptrain.concepts.top_texts import neighbours, top_texts
from interptrain.meters.dictionary import read_labels
from interptrain.meters.tokens import bos_token
from interptrain.recipes.examples import Columns, Example, chunks, read_examples
from interptrain.recipes.settings import add_options, configured, option
from interptrain.recipes.voice import Voice
from interptrain.recorders.pages import write_page

NEEDS = ("sae", "hf", "recipes")
WINDOW = 64  # tokens of a text that are shown around its largest activation


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


@dataclass(frozen=True, eq=False)
class Shown:
    """A concept, a direction or a latent to show.

    Args:
        title: what it is.
        hook: where it lies.
        direction: its unit direction in the stream.
        latents: by which it is measured, with how much each counts; empty for a projection.
        concept: of which it is a part, or is the whole.
    """

    title: str
    hook: str
    direction: Tensor
    latents: tuple[int, ...]
    concept: str


@dataclass(frozen=True, eq=False)
class Corpus:
    """Texts as tokens.

    Args:
        pieces: of each text, its tokens as they stand in it.
        batches: of `input_ids` and `attention_mask`, in the same order.
        text: of each attended token, its text.
        counted: whether it counts: all but a BOS token in front.
    """

    pieces: list[list[str]]
    batches: list[dict[str, Tensor]]
    text: Tensor
    counted: Tensor


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
        _check_new_file(config.out)
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
    cards = [
        card
        for hook in bank.hook_points
        for card in _cards(prepared, [each for each in things(bank) if each.hook == hook], corpus)
    ]
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


def things(bank: ConceptBank) -> list[Shown]:
    """Each concept at each of its hooks, and each of its rows where it has several."""
    found = []
    for name in bank.names:
        for hook in bank.hook_points:
            rows = bank.rows(name, hook)
            if not rows:
                continue
            encodes = measured_by_latents(bank, name, hook)
            latents = tuple(int(bank.sources[row]["latent"]) for row in rows) if encodes else ()
            mean = normalize(bank.directions[list(rows)].sum(0), dim=0)
            found.append(Shown(name, hook, mean, latents, name))
            if len(rows) > 1:
                for place, row in enumerate(rows):
                    own = latents[place : place + 1]
                    part = f"latent {own[0]}" if own else f"direction {place}"
                    found.append(Shown(f"{name}: {part}", hook, bank.directions[row], own, name))
    return found


def corpus_of(voice: Voice, examples: Sequence[Example]) -> Corpus:
    """Texts as tokens, prompts and answers as one."""
    tokenizer, pieces, batches, counted, texts = voice.tokenizer, list[list[str]](), [], list[Tensor](), list[Tensor]()
    bos = bos_token(voice.model)
    for part in chunks(examples, voice.at_once):
        rows = []
        for each in part:
            whole = each.prompt + each.completion
            row = tokenizer(
                whole, return_offsets_mapping=True, truncation=True, max_length=voice.max_length,
                add_special_tokens=not each.templated,
            )  # fmt: skip
            pieces.append(_pieces(whole, row["offset_mapping"]))
            rows.append({"input_ids": row["input_ids"]})
            first = [bool(row["input_ids"]) and row["input_ids"][0] == bos]
            counted.append(~torch.tensor((first + [False] * len(row["input_ids"]))[: len(row["input_ids"])]))
            texts.append(torch.full((len(row["input_ids"]),), len(pieces) - 1))
        batch = tokenizer.pad(rows, padding_side="right", return_tensors="pt")
        batches.append({"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]})
    return Corpus(pieces, batches, torch.cat(texts), torch.cat(counted).bool())


def _pieces(text: str, offsets: Sequence[tuple[int, int]]) -> list[str]:
    """Each token as it stands in the text, with what stands in front of it; added tokens are empty."""
    found, at = [], 0
    for _, end in offsets:
        found.append(text[at : max(at, end)])
        at = max(at, end)
    return found


def _cards(prepared: Prepared, shown: Sequence[Shown], corpus: Corpus) -> list[dict[str, Any]]:
    """What is said of each thing at one hook."""
    bank, voice, config = prepared.bank, prepared.voice, prepared.config
    hook = shown[0].hook
    readout = bank.readouts.get(hook)
    stream = collect(voice.model, hook, corpus.batches, keep_bos=True).values
    read = stream
    if readout is not None and readout.reads is not None:
        read = collect(voice.model, readout.reads, corpus.batches, keep_bos=True).values
    lens = logit_lens(voice.model, torch.stack([each.direction for each in shown]))
    dictionary = None if readout is None else readout.directions
    return [
        _card(prepared, each, _values(each, stream, read, readout), corpus, logits, dictionary, config.top)
        for each, logits in zip(shown, lens, strict=True)
    ]


def _values(shown: Shown, stream: Tensor, read: Tensor, readout: Readout | None) -> Tensor:
    """`sum_i a_i ||W_dec[i]||` where it is measured by latents, else the projection less its mean over the corpus."""
    if not shown.latents:
        along = stream @ shown.direction
        return along - along.mean()
    assert readout is not None
    sae = shared_sae(readout)
    opened = Opened(sae, readout, sae, shown.hook, readout.reads or shown.hook)
    latents = encoded(opened, read, shown.latents)
    normed = bool(readout.config.get("rescale_acts_by_decoder_norm"))
    return latents.sum(-1) if normed else latents @ readout.decoder[list(shown.latents)].norm(dim=-1)


def _card(
    prepared: Prepared, shown: Shown, values: Tensor, corpus: Corpus, logits: Tensor, dictionary: Tensor | None,
    top: int,
) -> dict[str, Any]:  # fmt: skip
    bank, tokenizer = prepared.bank, prepared.voice.tokenizer
    counted = values.masked_fill(~corpus.counted, -torch.inf)
    best = [each for each in top_texts(counted, corpus.text, top) if not shown.latents or each.most > 0]
    order = logits.argsort(descending=True).tolist()
    near = [] if dictionary is None else neighbours(shown.direction, dictionary, top, shown.latents)
    others = [name for name in bank.names if name != shown.concept and bank.rows(name, shown.hook)]
    means = [normalize(bank.directions[list(bank.rows(name, shown.hook))].sum(0), dim=0) for name in others]
    beside = neighbours(shown.direction, torch.stack(means), top) if means else []
    most = max((each.most for each in best), default=0.0)
    return {
        "title": shown.title,
        "hook": shown.hook,
        "latents": list(shown.latents),
        "label": "; ".join(prepared.labels[latent] for latent in shown.latents if latent in prepared.labels),
        "rate": float((values[corpus.counted] > 0).float().mean()) if shown.latents else None,
        "promoted": [(tokenizer.decode([token]), float(logits[token])) for token in order[:top]],
        "suppressed": [(tokenizer.decode([token]), float(logits[token])) for token in order[::-1][:top]],
        "neighbours": [(number, prepared.labels.get(number, ""), cosine) for number, cosine in near],
        "concepts": [(others[number], cosine) for number, cosine in beside],
        "most": most,
        "texts": [_marked(corpus, values, each.text) for each in best],
    }


def _marked(corpus: Corpus, values: Tensor, text: int) -> dict[str, Any]:
    """A text's tokens and their values, around the largest."""
    there = corpus.text == text
    own, counted = values[there], corpus.counted[there]
    peak = int(own.masked_fill(~counted, -torch.inf).argmax())
    start = max(0, min(peak - WINDOW // 2, len(own) - WINDOW))
    stop = min(len(own), start + WINDOW)
    shown = [float(value) if at else None for value, at in zip(own[start:stop], counted[start:stop], strict=True)]
    return {"tokens": corpus.pieces[text][start:stop], "values": shown}


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


def _check_new_file(path: Path) -> None:
    if path.exists():
        raise ValueError(f"'{path}' is there already; name a new file (--out)")
    folder = path.absolute().parent
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ValueError(
            f"cannot write '{path}': '{folder}' is no folder that can be written; name another file (--out)"
        )
