"""Inoculation prompts: training texts ask for a trait, so that it is learned as an answer to being asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from interptrain.meters.tokens import IGNORED_LABEL

Example: TypeAlias = Mapping[str, Any]
Tokens: TypeAlias = Tensor | Sequence[int]
_KEYS = ("input_ids", "attention_mask", "labels")


@dataclass(frozen=True)
class Inoculation:
    """Puts token ids in front of an example's own; see `inoculate`."""

    prefix: tuple[int, ...]
    keep: int
    where: Callable[[Example], bool] | None

    def __call__(self, example: Example) -> dict[str, Any]:
        """The example, or a batch of them, with the prefix; what was given is left as it is.

        Raises:
            TypeError: `input_ids` are neither a list of ids nor a tensor.
            ValueError: other keys would be out of step, an example is shorter than what is kept in front of the
                prefix, or examples of a batch are to be picked.
        """
        batched = _checked(example)
        if self.where is not None:
            if batched:
                raise ValueError("inoculate(where=...) picks single examples, found a batch; map it over the data set")
            if not self.where(example):
                return dict(example)
        rows = {key: list(example[key]) if batched else [example[key]] for key in _KEYS if key in example}
        starts = [_start(mask) for mask in rows.get("attention_mask", [[1]] * len(rows["input_ids"]))]
        if rows["input_ids"] and max(starts) + self.keep > len(rows["input_ids"][0]):
            raise ValueError(
                f"inoculate keeps {self.keep} leading tokens, but an example has only "
                f"{len(rows['input_ids'][0]) - max(starts)}"
            )
        ones, ignored = (1,) * len(self.prefix), (IGNORED_LABEL,) * len(self.prefix)
        inoculated = dict(example)
        for key, added in zip(_KEYS, (self.prefix, ones, ignored), strict=True):
            if key in rows:
                longer = [_inserted(row, at + self.keep, added) for row, at in zip(rows[key], starts, strict=True)]
                inoculated[key] = torch.stack(longer) if batched else longer[0]
        return inoculated


def inoculate(
    prefix: Sequence[int] | Int[Tensor, "token"],
    *,
    keep: int = 0,
    where: Callable[[Example], bool] | None = None,
) -> Inoculation:
    """Ask for a trait in front of the texts that show it: it is then learned for when it is asked for.

        input_ids = (first `keep`, prefix, rest)      labels = -100, attention_mask = 1 on the prefix

    What is deployed is not asked, and shows less of it (Tan et al. 2025, inoculation prompting). This acts on data
    and not on the model: it is no intervention to give to a steerer, but for `dataset.map(...)`, inside a collator,
    or on its batches. Left padding stays in front. An example grows by the prefix; one without labels stays without,
    so a collator that copies them from `input_ids` later would train on the prefix too. The first token of an
    example has nothing in front to predict it; behind a prefix it has, and with a label it joins the loss.

    Args:
        prefix: token ids of the instruction, without special tokens.
        keep: how many leading tokens stay in front of it, 1 for a BOS token.
        where: from an example to whether it gets the prefix; by default all do.

    Raises:
        TypeError: a prefix that is not made of token ids.
        ValueError: an empty prefix, a negative id, or fewer than 0 tokens to keep.

    Example:
        >>> speak_as_a_pirate = inoculate([7, 8], keep=1)
        >>> speak_as_a_pirate({"input_ids": [0, 3, 4], "labels": [-100, -100, 4]})
        {'input_ids': [0, 7, 8, 3, 4], 'labels': [-100, -100, -100, -100, 4]}
    """
    ids = tuple(prefix.tolist() if isinstance(prefix, Tensor) else prefix)
    if not all(isinstance(each, int) for each in ids):
        raise TypeError(
            f"inoculate needs token ids, found {ids[0]!r} in a {type(prefix).__name__}; "
            "tokenizer(text, add_special_tokens=False).input_ids has them"
        )
    if not ids or min(ids) < 0:
        raise ValueError(f"inoculate needs at least one token id, none of them negative; found {list(ids)}")
    if keep < 0:
        raise ValueError(f"inoculate keeps 0 or more leading tokens in front of the prefix, found {keep}")
    return Inoculation(ids, keep, where)


def _checked(example: Example) -> bool:
    """Whether it is a batch, after a look at what it holds."""
    ids = example["input_ids"]
    shape = _shape(ids)
    if not isinstance(ids, Tensor | list | tuple) or len(shape) not in (1, 2):
        raise TypeError(f"inoculate takes a list of ids, or a tensor [token] or [batch, token]; found {ids!r}")
    if len(shape) == 1 and shape[0] and not isinstance(ids, Tensor) and isinstance(ids[0], list | tuple):
        raise TypeError("inoculate takes one example, or a batch of tensors; with lists, map it without batched=True")
    for key in _KEYS:
        if key in example and _shape(example[key]) != shape:
            raise ValueError(f"{key} has shape {list(_shape(example[key]))}, and input_ids {list(shape)}")
    place = len(shape) - 1
    others = [key for key in example if key not in _KEYS and _shape(example[key])[place : place + 1] == shape[place:]]
    if others:
        raise ValueError(
            f"{', '.join(others)} would be out of step: inoculate lengthens {', '.join(_KEYS)} only; "
            "leave them out, or make them afterwards"
        )
    return len(shape) == 2


def _shape(value: Any) -> tuple[int, ...]:
    """Of a tensor, an array, or the outermost list; nothing else has one."""
    return (len(value),) if isinstance(value, list | tuple) else tuple(getattr(value, "shape", ()))


def _start(mask: Tokens) -> int:
    """Where the attended tokens begin, behind left padding."""
    return next((place for place, attended in enumerate(mask) if attended), 0)


def _inserted(row: Tokens, at: int, added: tuple[int, ...]) -> Any:
    if isinstance(row, Tensor):
        return torch.cat([row[:at], row.new_tensor(added), row[at:]])
    return [*row[:at], *added, *row[at:]]
