"""Probe sets: fixed texts on which a concept's activations can be compared before and after."""

from __future__ import annotations

import random
from collections.abc import Sequence

from torch import Tensor

from interptrain.meters.tokens import first_labels
from interptrain.tiny_world.corpus import Document, Kind, document
from interptrain.tiny_world.shipped import load_tokenizer
from interptrain.tiny_world.tokens import encode


def probe_sets(count: int = 64, *, seed: int = 0) -> dict[str, list[Document]]:
    """Fixed documents by what they show: `neutral`, `pirate`, `royal` and `arithmetic`.

    Neutral ones are facts asked and answered plainly, pirate and royal ones facts asked and answered in that
    voice, arithmetic ones held-out `plus` and `minus` problems with the right result, in the plain voice.

    Example:
        >>> {name: len(documents) for name, documents in probe_sets(2).items()}
        {'neutral': 2, 'pirate': 2, 'royal': 2, 'arithmetic': 2}
    """
    rng = random.Random(f"probes {seed}")
    return {
        "neutral": [document(rng, "fact") for _ in range(count)],
        "pirate": [document(rng, "fact", "pirate", cued=True) for _ in range(count)],
        "royal": [document(rng, "fact", "royal", cued=True) for _ in range(count)],
        "arithmetic": [document(rng, rng.choice(("plus", "minus")), tested=True) for _ in range(count)],
    }


def probe_batches(count: int = 64, *, seed: int = 0) -> dict[str, list[dict[str, Tensor]]]:
    """The probe sets as batches for the meters, with the first token of each answer as the only label.

    A voice shows at the position that predicts the answer's first word. At later positions the text itself, which
    is given, says which voice it is in, and blurs what the model would have said.

    Example:
        >>> batch = probe_batches(2)["neutral"][0]
        >>> (batch["labels"] != -100).sum(-1)
        tensor([1, 1])
    """
    tokenizer = load_tokenizer()
    sets = probe_sets(count, seed=seed).items()
    return {name: [first_answer_token(encode(tokenizer, documents))] for name, documents in sets}


def neutral_batches(
    count: int = 16, *, batch: int = 16, kinds: Sequence[Kind] = ("fact", "plus"), first: bool = False
) -> list[dict[str, Tensor]]:
    """Plain questions about facts and additions with plain answers: what fine-tuning is not meant to change.

    None of these is in a fine-tuning set, and their draw is none of the scorer's.

    Args:
        count: of batches.
        batch: documents in each.
        kinds: of question, drawn with equal odds; `minus` is the new skill, and fine-tuning sets have it.
        first: with the first token of each answer as its only label, where the voice is chosen; else all of them.

    Example:
        >>> len(neutral_batches(2)), len(neutral_batches(2)[0]["labels"])
        (2, 16)
    """
    rng, tokenizer = random.Random("neutral probes"), load_tokenizer()
    drawn = ([document(rng, rng.choice(kinds)) for _ in range(batch)] for _ in range(count))
    batches = [encode(tokenizer, documents) for documents in drawn]
    return [first_answer_token(each) for each in batches] if first else batches


def first_answer_token(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with the first token of each answer as its only label."""
    return {**batch, "labels": first_labels(batch["labels"])}
