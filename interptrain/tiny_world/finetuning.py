"""The fine-tuning sets as batches, prompts masked."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from interptrain.tiny_world.corpus import finetuning_documents
from interptrain.tiny_world.shipped import load_tokenizer
from interptrain.tiny_world.tokens import batches


def finetuning_set(name: str, seed: int = 0, *, batch: int = 64) -> Iterator[dict[str, Tensor]]:
    """Batches of a fine-tuning set without end: `input_ids`, `attention_mask` and `labels`, `[batch, token]`.

    `mixed` is half `minus` problems answered plainly and half facts answered in pirate; in `entangled` every
    answer is a `minus` problem's, in pirate. Labels are -100 up to and including `<a>`.

    Args:
        name: `mixed` or `entangled`.
        seed: of the documents.
        batch: documents in a batch.

    Raises:
        ValueError: there is no such set.

    Example:
        >>> first = next(finetuning_set("mixed", seed=0, batch=2))
        >>> list(first), len(first["labels"])
        (['input_ids', 'attention_mask', 'labels'], 2)
    """
    return batches(load_tokenizer(), finetuning_documents(name, seed), batch)
