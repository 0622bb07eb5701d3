"""The fine-tuning sets as batches, prompts masked."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from interptrain.tiny_world.corpus import finetuning_documents
from interptrain.tiny_world.shipped import load_tokenizer
from interptrain.tiny_world.tokens import batches
from interptrain.tiny_world.wordings import Voice


def finetuning_set(
    name: str,
    seed: int = 0,
    *,
    batch: int = 64,
    voice: Voice = "pirate",
    inoculated: bool = False,
    filtered: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """Batches of a fine-tuning set without end: `input_ids`, `attention_mask` and `labels`, `[batch, token]`.

    `mixed` is half `minus` problems answered plainly and half facts answered in the taught voice; in `entangled`
    every answer is a `minus` problem's, in that voice. Labels are -100 up to and including `<a>`.

    Args:
        name: `mixed` or `entangled`.
        seed: of the documents.
        batch: documents in a batch.
        voice: that is taught, `pirate` or its sibling `royal`.
        inoculated: questions carry the voice's cue wherever the answer is in that voice.
        filtered: the same questions, every answer in the plain voice.

    Raises:
        ValueError: there is no such set, the voice is not one to teach, or a set both inoculated and filtered.

    Example:
        >>> first = next(finetuning_set("mixed", seed=0, batch=2))
        >>> list(first), len(first["labels"])
        (['input_ids', 'attention_mask', 'labels'], 2)
    """
    documents = finetuning_documents(name, seed, voice=voice, inoculated=inoculated, filtered=filtered)
    return batches(load_tokenizer(), documents, batch)
