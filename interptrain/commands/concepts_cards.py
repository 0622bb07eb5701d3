"""What `concepts show` says of a concept: where it is active, which tokens it promotes, what lies near it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from interptrain.concepts import ConceptBank, Readout, collect
from interptrain.concepts.activation import latents_of, measured_by_latents
from interptrain.concepts.logit_lens import logit_lens
from interptrain.concepts.saelens import shared_sae
from interptrain.concepts.top_texts import neighbours, top_texts
from interptrain.meters.tokens import bos_token
from interptrain.recipes.examples import Example, chunks
from interptrain.recipes.voice import Voice

WINDOW = 64  # tokens of a text that are shown around its largest activation


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


@dataclass(frozen=True, eq=False)
class CardMaker:
    """What cards are made with.

    Args:
        voice: the model.
        bank: the concepts.
        labels: what latents are about.
        top: texts, tokens and neighbours of each.
    """

    voice: Voice
    bank: ConceptBank
    labels: Mapping[int, str]
    top: int


def cards_at(maker: CardMaker, hook: str, corpus: Corpus) -> list[dict[str, Any]]:
    """What is said of each concept, direction and latent at one hook."""
    bank, voice = maker.bank, maker.voice
    shown = [each for each in things(bank) if each.hook == hook]
    readout = bank.readouts.get(hook)
    stream = collect(voice.model, hook, corpus.batches, keep_bos=True).values
    read = stream
    if readout is not None and readout.reads is not None:
        read = collect(voice.model, readout.reads, corpus.batches, keep_bos=True).values
    lens = logit_lens(voice.model, torch.stack([each.direction for each in shown]))
    dictionary = None if readout is None else readout.directions
    return [
        _card(maker, each, _values(each, stream, read, readout), corpus, logits, dictionary)
        for each, logits in zip(shown, lens, strict=True)
    ]


def _values(shown: Shown, stream: Tensor, read: Tensor, readout: Readout | None) -> Tensor:
    """`sum_i a_i ||W_dec[i]||` where it is measured by latents, else the projection less its mean over the corpus."""
    if not shown.latents:
        along = stream @ shown.direction
        return along - along.mean()
    assert readout is not None
    latents = latents_of(shared_sae(readout), read, shown.latents)
    normed = bool(readout.config.get("rescale_acts_by_decoder_norm"))
    return latents.sum(-1) if normed else latents @ readout.decoder[list(shown.latents)].norm(dim=-1)


def _card(
    maker: CardMaker, shown: Shown, values: Tensor, corpus: Corpus, logits: Tensor, dictionary: Tensor | None
) -> dict[str, Any]:
    bank, tokenizer, top = maker.bank, maker.voice.tokenizer, maker.top
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
        "label": "; ".join(maker.labels[latent] for latent in shown.latents if latent in maker.labels),
        "rate": float((values[corpus.counted] > 0).float().mean()) if shown.latents else None,
        "promoted": [(tokenizer.decode([token]), float(logits[token])) for token in order[:top]],
        "suppressed": [(tokenizer.decode([token]), float(logits[token])) for token in order[::-1][:top]],
        "neighbours": [(number, maker.labels.get(number, ""), cosine) for number, cosine in near],
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
