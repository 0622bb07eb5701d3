"""`tokens.json`: the last examples of a run, each word with what it asked of every concept; and its page."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import torch
from torch import Tensor

from interptrain.recorders.pages import write_page
from interptrain.warn import warn

if TYPE_CHECKING:
    from interptrain.concepts.bank import ConceptBank
    from interptrain.meters.kept_examples import KeptExample

TOKENS_SCHEMA = 1
MOST, SECONDS = 16, 2.0
PARTIAL = "\ufffd"  # what a decoder makes of half a character

Values = list[float | None]


class Decoder(Protocol):
    """What makes text of token numbers; every tokenizer of transformers does."""

    def decode(self, token_ids: Any, /) -> str:
        """The text of some tokens."""
        ...


class TokenExample(TypedDict):
    """One example: its tokens as they stand in the text, and by concept the figures of each; None for the prompt's."""

    tokens: list[str]
    share: dict[str, Values]
    signed: dict[str, Values]


class TokenDocument(TypedDict):
    """The whole file."""

    schema: int
    step: int
    concepts: list[str]
    hook: str
    examples: list[TokenExample]


class TokenFile:
    """Writes `tokens.json` at log steps: which words of the last batch asked for each concept.

        {"schema": 1, "step": n, "concepts": [name], "hook": name,
         "examples": [{"tokens": [text], "share": {concept: [share or null]}, "signed": {concept: [value or null]}}]}

    A token's figures are those of the position that predicts it. The file is replaced as a whole, so that whoever reads
    it meanwhile finds the last one. Give it to a callback: `ConceptSteering(bank, token_view=TokenFile(...))`.

    Args:
        path: the file; its folder is made.
        tokenizer: makes text of the tokens.
        most: examples at most; those are taken that ask most for any one concept, against the others of the batch.
        seconds: at least so long between two of them; the last is always written.

    Raises:
        ValueError: the folder cannot be made.

    Example:
        >>> import tempfile, torch
        >>> from interptrain import ConceptBank, tiny_world
        >>> from interptrain.meters.kept_examples import KeptExample
        >>> bank = ConceptBank.from_directions({"pirate": torch.ones(4)}, hook="blocks.1.hook_resid_post")
        >>> asked = torch.tensor([[torch.nan], [0.5]])
        >>> example = KeptExample(3, torch.tensor([2, 5]), asked[1], asked[1], asked, asked)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     TokenFile(f"{folder}/tokens.json", tiny_world.load_tokenizer()).show(bank, 3, [example])
        ...     read_tokens(f"{folder}/tokens.json")["examples"]
        [{'tokens': ['<q>', ' 0'], 'share': {'pirate': [None, 0.5]}, 'signed': {'pirate': [None, 0.5]}}]
    """

    def __init__(self, path: str | Path, tokenizer: Decoder, *, most: int = MOST, seconds: float = SECONDS) -> None:
        self.path = Path(path)
        self._tokenizer, self._most, self._seconds = tokenizer, most, seconds
        self._last = -math.inf
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cannot write '{self.path}': {error}") from error

    def due(self) -> bool:
        """Whether the last file is old enough."""
        return time.monotonic() - self._last >= self._seconds

    def show(self, bank: ConceptBank, step: int, examples: Sequence[KeptExample]) -> None:
        """Write the examples of a step; where the disk refuses, the run goes on with a warning."""
        self._last = time.monotonic()
        document = token_document(bank, step, _chosen(examples, self._most), self._tokenizer)
        half = self.path.with_name(f".{self.path.name}.half")
        try:
            half.write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
            half.replace(self.path)
        except OSError as error:
            warn(f"'{self.path}' of step {step} is not written, the run goes on: {error}")


def token_document(bank: ConceptBank, step: int, examples: Sequence[KeptExample], tokenizer: Decoder) -> TokenDocument:
    """The file's content."""
    return TokenDocument(
        schema=TOKENS_SCHEMA,
        step=step,
        concepts=list(bank.names),
        hook=", ".join(bank.hook_points),
        examples=[
            TokenExample(
                tokens=pieces(tokenizer.decode, each.input_ids.tolist()) or ["?"] * len(each.token_share),
                share=_by_concept(bank.names, each.token_share),
                signed=_by_concept(bank.names, each.token_signed),
            )
            for each in examples
        ],
    )


def read_tokens(path: str | Path) -> TokenDocument:
    """Read a `tokens.json` of this schema.

    Raises:
        ValueError: the file is missing, is no JSON or has another schema.
    """
    try:
        document: TokenDocument = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"'{path}' does not exist; a TokenFile writes it while a model trains") from None
    except OSError as error:
        raise ValueError(f"cannot read '{path}': {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{path}' is not JSON ({error}); was it truncated?") from error
    if not isinstance(document, Mapping) or document.get("schema") != TOKENS_SCHEMA:
        found = document.get("schema") if isinstance(document, Mapping) else type(document).__name__
        raise ValueError(f"'{path}' has schema {found!r}, this version reads {TOKENS_SCHEMA}")
    return document


def write_tokens(document: TokenDocument, path: Path) -> Path:
    """Write the page of a `tokens.json`: every example once a concept, shaded by the signed demand of its tokens."""
    most = {
        concept: largest(each["signed"][concept] for each in document["examples"]) for concept in document["concepts"]
    }
    return write_page(path, "tokens.html", document=document, most=most)


def largest(lists: Any) -> float:
    """The largest absolute value of some lists of figures; 0 of none.

    Example:
        >>> largest([[None, -0.5], [0.2]])
        0.5
    """
    return max((abs(value) for values in lists for value in values if value is not None), default=0.0)


def pieces(decode: Callable[[list[int]], str], ids: Sequence[int]) -> list[str]:
    """The text of each token as it stands in the whole, spaces included; together they are the whole.

    Tokens are decoded a few at a time beside those before them, since a piece may only be half a character; that
    half's text is its last token's.

    Example:
        >>> words = ["arr", "matey", "!"]
        >>> pieces(lambda ids: " ".join(words[each] for each in ids), [0, 1, 2])
        ['arr', ' matey', ' !']
    """
    found, start, read = list[str](), 0, 0
    for end in range(1, len(ids) + 1):
        before, text = decode(list(ids[start:read])), decode(list(ids[start:end]))
        if text.endswith(PARTIAL) and end < len(ids):
            found.append("")
            continue
        found.append(text[len(before) :])
        start, read = read, end
    return found


def _by_concept(names: Sequence[str], values: Tensor) -> dict[str, Values]:
    return {
        name: [float(f"{value:.4g}") if math.isfinite(value) else None for value in column]
        for name, column in zip(names, values.T.tolist(), strict=True)
    }


def _chosen(examples: Sequence[KeptExample], most: int) -> list[KeptExample]:
    """As many as are to be shown, in their order: in turn the next that asks most for each concept."""
    if len(examples) <= most:
        return list(examples)
    signed = torch.stack([each.signed for each in examples]).nan_to_num()
    orders = signed.argsort(dim=0, descending=True, stable=True).T.tolist()
    turns = dict.fromkeys(order[place] for place in range(len(examples)) for order in orders)
    return [examples[number] for number in sorted(list(turns)[:most])]
