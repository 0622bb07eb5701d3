"""The word-level tokenizer and batches: text to what a causal language model is trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from torch import Tensor

from interptrain.meters.tokens import IGNORED_LABEL
from interptrain.tiny_world.corpus import Document
from interptrain.tiny_world.wordings import vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIALS = ("<pad>", "<unk>", "<q>", "<a>", "<e>")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Make the tokenizer: one token a word, a digit or a mark; `<pad>` is token 0."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate((*SPECIALS, *vocabulary()))}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<q>",
        eos_token="<e>",
        additional_special_tokens=["<a>"],
        clean_up_tokenization_spaces=False,
        model_max_length=64,
    )


def encode(
    tokenizer: PreTrainedTokenizerFast, documents: Iterable[Document], *, mask_prompt: bool = True
) -> dict[str, Tensor]:
    """Encode documents as `input_ids`, `attention_mask` and `labels`, each `[batch, token]`, padded on the right.

    Labels are `-100` on padding and, if `mask_prompt`, up to and including `<a>`: the loss is on the answer.
    """
    tokens = tokenizer([each.text for each in documents], padding=True, return_tensors="pt")
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    labels = ids.masked_fill(mask == 0, IGNORED_LABEL)
    if mask_prompt:
        answers = (ids == tokenizer.convert_tokens_to_ids("<a>")).long().cumsum(-1)
        prompt = answers - (ids == tokenizer.convert_tokens_to_ids("<a>")).long() == 0
        labels = labels.masked_fill(prompt, IGNORED_LABEL)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def batches(
    tokenizer: PreTrainedTokenizerFast, documents: Iterator[Document], size: int, *, mask_prompt: bool = True
) -> Iterator[dict[str, Tensor]]:
    """Take `size` documents at a time, encoded, for as long as there are whole batches."""
    while len(taken := list(islice(documents, size))) == size:
        yield encode(tokenizer, taken, mask_prompt=mask_prompt)
