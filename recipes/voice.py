"""What a model says: its own answers, and how likely it finds those of others."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from interptrain.meters.probes import evaluating
from interptrain.meters.tokens import IGNORED_LABEL
from interptrain.recipes.examples import Example, chunks, collate, encode
from interptrain.recipes.loading import positions_of
from interptrain.recorders.document import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

AT_ONCE = 8


@dataclass(frozen=True)
class Voice:
    """A model and its tokenizer, as they are before training.

    Args:
        model: in any mode; left as it is.
        tokenizer: pads with `pad_token`.
        max_length: tokens of a text at most.
        at_once: texts run through the model together.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    at_once: int = AT_ONCE

    def rest(self) -> None:
        """Give the model's memory back, once nothing more is asked of it; other models may still be looked at."""
        self.model.to("meta")

    def batches(self, examples: Sequence[Example]) -> list[dict[str, Tensor]]:
        """Batches for a model to look at, in order."""
        rows = encode(self.tokenizer, examples, self.max_length)
        return [collate(part, int(self.tokenizer.pad_token_id)) for part in chunks(rows, self.at_once)]

    def answers(self, examples: Sequence[Example], *, tokens: int = 48) -> list[str]:
        """What the model says to the examples' prompts, greedily; so many tokens at most."""
        found: list[str] = []
        most = _most(self.model)
        tokenizer, device = self.tokenizer, next(self.model.parameters()).device
        with evaluating(self.model):
            for part in chunks(examples, self.at_once):
                prompts = [tokenizer(each.prompt, add_special_tokens=not each.templated)["input_ids"] for each in part]
                asked = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(device)
                room = max(1, most - asked["input_ids"].shape[1])
                said = self.model.generate(
                    **asked, max_new_tokens=min(tokens, room), do_sample=False, use_cache=True, temperature=None,
                    top_p=None, top_k=None, pad_token_id=tokenizer.pad_token_id,
                )  # fmt: skip
                found += tokenizer.batch_decode(said[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)
        return found

    def questions(self, examples: Sequence[Example]) -> list[Example]:
        """The examples as something that can be answered: of a plain text, its first half asks for the second.

        Of a text longer than `max_length` that is the first half of what is left of it.
        """
        return [each if each.prompt else _halved(each, self.tokenizer, self.max_length) for each in examples]

    def own(self, questions: Sequence[Example]) -> list[Example]:
        """The same questions with the model's own answers; those that it does not answer are left out."""
        answered = zip(questions, self.answers(questions), strict=True)
        return [replace(each, completion=answer) for each, answer in answered if answer.strip()]

    def mean_loss(self, model: nn.Module, examples: Sequence[Example]) -> float:
        """`-mean_t log p(label_t)` of a model over all tokens in the loss, in nats."""
        total, count, device = 0.0, 0, next(model.parameters()).device
        with evaluating(model):
            for batch in self.batches(examples):
                ids, mask, labels = (batch[key].to(device) for key in ("input_ids", "attention_mask", "labels"))
                logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
                total += float(cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"))
                count += int((labels[:, 1:] != IGNORED_LABEL).sum())
        return total / count

    def samples(self, model: PreTrainedModel, asked: Sequence[Example]) -> list[Sample]:
        """What a model answers to some questions."""
        answers = replace(self, model=model).answers(asked)
        return [{"prompt": each.prompt, "answer": answer} for each, answer in zip(asked, answers, strict=True)]


def _most(model: PreTrainedModel) -> int:
    """Tokens that a model can take: as many as its table of positions has, and any number without a table."""
    words = model.get_input_embeddings()
    table = any(isinstance(each, nn.Embedding) and each is not words for each in model.modules())
    return (positions_of(model.config) if table else None) or sys.maxsize


def _halved(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Example:
    offsets = tokenizer(example.completion, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    middle = offsets[min(len(offsets), max_length) // 2][0] if len(offsets) > 1 else len(example.completion)
    return replace(example, prompt=example.completion[:middle], completion=example.completion[middle:])
