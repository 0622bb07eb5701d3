"""The question that a direction fills a place of, in the tokens of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLACE = "{}"
PROMPT, BEGIN, WORD = 'What is the meaning of the word "{}"?', 'The meaning of the word "{}" is "', "X"
_MARK = "\ue000"  # a place while a chat template is around it: a character of no language


@dataclass(frozen=True, eq=False)
class InTokens:
    """A question as a model reads it.

    Args:
        text: with the word in the places.
        ids: its tokens.
        places: those of the word.
    """

    text: str
    ids: Int[Tensor, "token"]
    places: tuple[int, ...]


@dataclass(frozen=True)
class Question:
    """What is asked, and how the answer begins; `{}` are the places.

    Args:
        prompt: of the user.
        begin: of the model's answer.
        word: what stands in the places.

    Raises:
        ValueError: there is no place, or no word.
    """

    prompt: str
    begin: str
    word: str

    def __post_init__(self) -> None:
        if PLACE not in self.prompt + self.begin:
            raise ValueError(f"the prompt has no place that a direction could fill: write {PLACE} there")
        if not self.word.strip():
            raise ValueError("the word that stands in the place is empty")

    def in_tokens(self, tokenizer: PreTrainedTokenizerBase) -> InTokens:
        """Put it in tokens, within the tokenizer's chat template where it has one.

        Raises:
            ValueError: the tokenizer does not know a word of it, or says not where a token stands.
        """
        prompt, begin = (part.replace(PLACE, _MARK) for part in (self.prompt, self.begin))
        if tokenizer.chat_template:
            asked = [{"role": "user", "content": prompt}]
            text = str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)) + begin
        else:
            text = " ".join(part for part in (prompt, begin) if part)
        spans, plain = [], ""
        for number, part in enumerate(text.split(_MARK)):
            if number:
                spans.append((len(plain), len(plain) + len(self.word)))
                plain += self.word
            plain += part
        if not tokenizer.is_fast:
            raise ValueError("the tokenizer does not say where its tokens stand in a text; expected a fast one")
        read = tokenizer(plain, add_special_tokens=not tokenizer.chat_template, return_offsets_mapping=True)
        ids, offsets = read["input_ids"], read["offset_mapping"]
        unknown = [plain[start:stop] for each, (start, stop) in zip(ids, offsets, strict=True)
                   if each == tokenizer.unk_token_id]  # fmt: skip
        if unknown and tokenizer.unk_token_id is not None:
            raise ValueError(
                f"the tokenizer does not know {', '.join(map(repr, dict.fromkeys(unknown)))}, so the model cannot be "
                "asked that; ask in its own words (--prompt, --begin, --word)"
            )
        places = tuple(
            place for place, (start, stop) in enumerate(offsets)
            if any(start < last and stop > first for first, last in spans)
        )  # fmt: skip
        return InTokens(plain, torch.tensor(ids), places)
