"""Training texts read line by line: a file of any size, each line as it stands beside the example it holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from interptrain.recipes.examples import SHOWN, Columns, Example, encode, example_of, form_of, refuse, rows_on_disk

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BOM = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """One row of the data.

    Args:
        number: of its line, counted from 1; of a data set's folder that of its row.
        raw: the line as it stands, with an end; of a data set's row a line of JSON.
        fields: its columns.
        example: what it holds.
    """

    number: int
    raw: bytes
    fields: Mapping[str, Any]
    example: Example


class Encoded(NamedTuple):
    """A row with the tokens and labels that a model is given; None where nothing of it is left in the loss."""

    line: Line
    row: dict[str, list[int]] | None


@dataclass(frozen=True, eq=False)
class Lines:
    """A JSONL file, or a folder that `Dataset.save_to_disk` wrote, to be gone through as often as needed.

    Args:
        path: of the file or folder.
        columns: where the texts are.
        tokenizer: what makes tokens of them.
        max_length: tokens of an example; longer ones are cut off.
    """

    path: Path
    columns: Columns
    tokenizer: PreTrainedTokenizerBase
    max_length: int

    def __iter__(self) -> Iterator[Line]:
        """The rows in order, none of them kept; blank lines hold none.

        Raises:
            ValueError: as `read_examples` does, at the end, with the first faults and how many there are.
        """
        form: tuple[str, ...] | None = None
        faults, bad, total = list[str](), 0, 0
        for number, raw in self._raw():
            total += 1
            try:
                row = _object(raw)
                form = form or form_of(self.path, number, row, self.columns, self.tokenizer)
                example = example_of(row, form, self.tokenizer)
            except ValueError as fault:
                if form is None and not bad and not isinstance(fault, _NoObjectError):
                    raise  # of the columns: the same of every row
                bad += 1
                faults += [f"line {number}: {fault}"] if len(faults) < SHOWN else []
                continue
            yield Line(number, raw if raw.endswith(b"\n") else raw + b"\n", row, example)
        refuse(self.path, faults, total, count=bad)
        if not total:
            raise ValueError(f'\'{self.path}\' is empty: expected a JSON object a line, such as {{"text": "..."}}')

    def encoded(self) -> Iterator[Encoded]:
        """The same, each with its tokens."""
        for line in self:
            rows = encode(self.tokenizer, [line.example], self.max_length)
            yield Encoded(line, rows[0] if rows else None)

    def check(self, words: int) -> tuple[int, int]:
        """Go through all rows once: how many there are, and of how many something is left in the loss.

        Args:
            words: tokens that the model knows.

        Raises:
            ValueError: rows cannot be used, or there are none; nothing of any is in the loss, or a token is none of the
                model's.
        """
        total = usable = 0
        for line, row in self.encoded():
            total, usable = total + 1, usable + (row is not None)
            if row is not None and (largest := max(row["input_ids"])) >= words:
                raise ValueError(
                    f"'{self.path}', line {line.number}: the tokenizer makes token {largest} but the model has "
                    f"{words}, counted from 0: it is another model's, or words were added without "
                    "model.resize_token_embeddings"
                )
        if not usable:
            raise ValueError(
                f"max_length {self.max_length} leaves no token of any answer of '{self.path}' in the loss: prompts are "
                "longer, or the completions have no tokens"
            )
        return total, usable

    def _raw(self) -> Iterator[tuple[int, bytes]]:
        if self.path.is_dir():
            for number, row in rows_on_disk(self.path):
                yield number, json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n"
            return
        try:
            with self.path.open("rb") as file:
                yield from ((number, raw) for number, raw in enumerate(file, start=1) if raw.removeprefix(BOM).strip())
        except FileNotFoundError:
            raise ValueError(f"the data '{self.path}' does not exist") from None
        except OSError as error:
            raise ValueError(f"cannot read the data '{self.path}': {error}") from None


class _NoObjectError(ValueError):
    """A line that holds no JSON object."""


def _object(raw: bytes) -> dict[str, Any]:
    try:
        row = json.loads(raw.removeprefix(BOM).decode())
    except UnicodeDecodeError as error:
        raise _NoObjectError(f"not UTF-8 ({error}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise _NoObjectError(f"{error.msg} at column {error.colno}") from None
    if not isinstance(row, dict):
        raise _NoObjectError(f"a {type(row).__name__}, expected an object")
    return row
