"""Training texts of a user's own: a JSONL file or a data set on disk, checked as a whole before anything trains."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from interptrain.meters.tokens import IGNORED_LABEL

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Item = TypeVar("Item")
SHOWN, SHOWN_TEXT = 5, 40  # of the faults of a file, the first; of what stands in place of a text, the characters
# Column names that are understood without being told, in the order they are looked for.
PAIRS = (("prompt", "completion"), ("instruction", "output"), ("question", "answer"), ("input", "output"))
TEXT, MESSAGES = "text", "messages"


@dataclass(frozen=True)
class Columns:
    """Which columns hold the texts; None where they are to be found by their usual names.

    Args:
        prompt: what is asked; not in the loss.
        completion: what is to be answered; in the loss.
        text: a text that is in the loss as a whole.
    """

    prompt: str | None = None
    completion: str | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        if self.text and (self.prompt or self.completion):
            raise ValueError("name either a text column, or a prompt and a completion column")
        if bool(self.prompt) != bool(self.completion):
            raise ValueError("a prompt column and a completion column are named together")


@dataclass(frozen=True)
class Example:
    """What is asked and what is to be said; without a question, a plain text.

    Args:
        prompt: not in the loss; empty for a plain text.
        completion: in the loss.
        templated: whether both come from a chat template, which brings its own special tokens.
    """

    prompt: str
    completion: str
    templated: bool = False


def read_examples(path: Path, columns: Columns, tokenizer: PreTrainedTokenizerBase | None = None) -> list[Example]:
    """Read a JSONL file, or a folder that Hugging Face's `Dataset.save_to_disk` wrote.

    A row holds a prompt and a completion, a text, or `messages` (a chat whose last message is the answer; the
    tokenizer's chat template makes text of it).

    Args:
        path: of the file or folder.
        columns: where the texts are.
        tokenizer: needed for messages.

    Raises:
        ValueError: the file is missing or empty, lines are no JSON objects, a column is missing, a text is none; each
            with its line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "sums.jsonl")
        ...     _ = file.write_text('{"prompt": "1 + 1 =", "completion": " 2"}')
        ...     read_examples(file, Columns())
        [Example(prompt='1 + 1 =', completion=' 2', templated=False)]
    """
    rows = list(rows_on_disk(path)) if path.is_dir() else _rows_of_file(path)
    if not rows:
        raise ValueError(f'\'{path}\' is empty: expected a JSON object a line, such as {{"text": "..."}}')
    number, first = rows[0]
    form = form_of(path, number, first, columns, tokenizer)
    faults, found = [], []
    for number, row in rows:
        try:
            found.append(example_of(row, form, tokenizer))
        except ValueError as fault:
            faults.append(f"line {number}: {fault}")
    refuse(path, faults, len(rows))
    return found


def encode(
    tokenizer: PreTrainedTokenizerBase, examples: Iterable[Example], max_length: int
) -> list[dict[str, list[int]]]:
    """Tokens and labels of examples; cut off at `max_length`, without those of which no token is left in the loss.

    The prompt begins as the tokenizer begins a text (with its BOS token, where it has one), and the answer ends with
    its EOS token, of which one that has it gets no second. The prompt's labels are -100, and so is the first token's:
    nothing precedes it.
    """
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    found = []
    for example in examples:
        prompt = tokenizer(example.prompt, add_special_tokens=not example.templated)["input_ids"]
        prompt = prompt[:-1] if end and prompt[-1:] == end and not example.templated else prompt  # T5-like endings
        answer = tokenizer(example.completion, add_special_tokens=False)["input_ids"]
        ended = example.templated or answer[-1:] == end  # a second end would be the least likely token of all
        ids = [*prompt, *answer, *([] if ended else end)][:max_length]
        labels = [*([IGNORED_LABEL] * max(1, len(prompt))), *ids[max(1, len(prompt)) :]][: len(ids)]
        if any(label != IGNORED_LABEL for label in labels):
            found.append({"input_ids": ids, "labels": labels})
    return found


def collate(rows: Sequence[Mapping[str, Sequence[int]]], pad: int) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask` and `labels`, each `[batch, token]`, padded on the right.

    Example:
        >>> collate([{"input_ids": [5, 6], "labels": [-100, 6]}, {"input_ids": [7], "labels": [7]}], pad=0)
        {'input_ids': tensor([[5, 6],
                [7, 0]]), 'attention_mask': tensor([[1, 1],
                [1, 0]]), 'labels': tensor([[-100,    6],
                [   7, -100]])}
    """
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(values: Iterable[Sequence[int]], fill: int) -> Tensor:
        return torch.tensor([[*each, *[fill] * (longest - len(each))] for each in values])

    return {
        "input_ids": padded((row["input_ids"] for row in rows), pad),
        "attention_mask": padded(([1] * len(row["input_ids"]) for row in rows), 0),
        "labels": padded((row["labels"] for row in rows), IGNORED_LABEL),
    }


def batches(
    rows: Sequence[Mapping[str, Sequence[int]]], size: int, pad: int, *, steps: int, seed: int
) -> Iterator[dict[str, Tensor]]:
    """So many batches, in a new random order every time round; the same ones for the same seed."""
    generator, order = torch.Generator().manual_seed(seed), list[int]()
    for _ in range(steps):
        while len(order) < size:
            order += torch.randperm(len(rows), generator=generator).tolist()
        taken, order = order[:size], order[size:]
        yield collate([rows[number] for number in taken], pad)


def chunks(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """So many at a time, in order.

    Example:
        >>> chunks("abcde", 2)
        ['ab', 'cd', 'e']
    """
    return [items[start : start + size] for start in range(0, len(items), size)]


def _rows_of_file(path: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise ValueError(f"the data '{path}' does not exist") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"the data '{path}' are not UTF-8: {error}; save the file as UTF-8") from None
    except OSError as error:
        raise ValueError(f"cannot read the data '{path}': {error}") from None
    rows, faults = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            faults.append(f"line {number}: {error.msg} at column {error.colno}")
            continue
        if isinstance(row, dict):
            rows.append((number, row))
        else:
            faults.append(f"line {number}: a {type(row).__name__}, expected an object")
    refuse(path, faults, len(rows) + len(faults), "; expected a JSON object on every line")
    return rows


def rows_on_disk(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The numbered rows of a folder that `Dataset.save_to_disk` wrote, read as they are asked for.

    Raises:
        ValueError: it is none, or has several splits and no `train`.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(path)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(
            f"'{path}' is a folder but no data set that Dataset.save_to_disk wrote ({error}); name a JSONL file"
        ) from None
    if isinstance(loaded, datasets.DatasetDict):
        if "train" not in loaded:
            raise ValueError(f"'{path}' has the splits {', '.join(loaded)}, expected one named 'train'")
        loaded = loaded["train"]
    yield from enumerate(loaded, start=1)


def form_of(
    path: Path, number: int, row: Mapping[str, Any], columns: Columns, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[str, ...]:
    """The columns to read: a text's, a prompt's and a completion's, or the messages'.

    Args:
        path: of the data, for messages.
        number: of the row.
        row: the first one.
        columns: what was named.
        tokenizer: needed for messages.

    Raises:
        ValueError: there are no such columns, or messages and no chat template.
    """
    form = _columns_of(path, number, row, columns)
    if form == (MESSAGES,) and (tokenizer is None or not tokenizer.chat_template):
        raise ValueError(
            f"'{path}' has messages, which need a chat template, and this tokenizer has none; "
            "give prompt and completion"
        )
    return form


def _columns_of(path: Path, number: int, row: Mapping[str, Any], columns: Columns) -> tuple[str, ...]:
    wanted: list[tuple[str, ...]]
    if columns.text:
        wanted = [(columns.text,)]
    elif columns.prompt and columns.completion:
        wanted = [(columns.prompt, columns.completion)]
    else:
        wanted = [(MESSAGES,), *PAIRS, (TEXT,)]
    for names in wanted:
        if all(name in row for name in names):
            return names
    said = " or ".join(" and ".join(f"'{name}'" for name in names) for names in wanted)
    raise ValueError(
        f"'{path}', line {number}: expected {said}, found {', '.join(repr(name) for name in row) or 'no columns'}; "
        "name yours with text_column, or prompt_column and completion_column"
    )


def example_of(row: Mapping[str, Any], form: tuple[str, ...], tokenizer: PreTrainedTokenizerBase | None) -> Example:
    """One row's example.

    Raises:
        ValueError: a column is missing, a text is none or empty, or the chat cannot be told apart.
    """
    missing = [name for name in form if name not in row]
    if missing:
        raise ValueError(f"no {' and no '.join(repr(name) for name in missing)}, found {', '.join(map(repr, row))}")
    if form == (MESSAGES,):
        assert tokenizer is not None
        return _chat(row[MESSAGES], tokenizer)
    for name in form:
        if not isinstance(row[name], str):
            raise ValueError(f"'{name}' is {json.dumps(row[name], default=str)[:SHOWN_TEXT]}, expected a text")
    if not row[form[-1]].strip():
        raise ValueError(f"'{form[-1]}' is an empty text")
    return Example(row[form[0]] if len(form) == 2 else "", row[form[-1]])


def _chat(messages: Any, tokenizer: PreTrainedTokenizerBase) -> Example:
    if not (
        isinstance(messages, list)
        and len(messages) > 1
        and all(isinstance(each, dict) and {"role", "content"} <= set(each) for each in messages)
        and messages[-1]["role"] == "assistant"
    ):
        raise ValueError(
            "'messages' is no chat: expected a list of {role, content} that ends with the assistant's answer"
        )
    asked = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    if not whole.startswith(asked):
        raise ValueError(
            "the chat template rewrites the question once it is answered, so the answer cannot be told apart; give "
            "prompt and completion"
        )
    return Example(asked, whole[len(asked) :], templated=True)


def refuse(path: Path, faults: Sequence[str], total: int, expected: str = "", *, count: int | None = None) -> None:
    """Say which rows cannot be used, if there are any: the first few, and how many.

    Args:
        path: of the data.
        faults: of the rows, or the first of them.
        total: rows.
        expected: what was, to be said at the end.
        count: of all faults, where `faults` are the first of them.

    Raises:
        ValueError: there are faults.
    """
    count = len(faults) if count is None else count
    if count:
        more = f"; and {count - SHOWN} more" if count > SHOWN else ""
        raise ValueError(
            f"{count} of {total} lines of '{path}' cannot be used: {'; '.join(faults[:SHOWN])}{more}{expected}"
        )
