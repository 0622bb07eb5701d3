"""The tokens of a batch and what each asks for, as a run keeps them in `tokens.json`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interptrain.recorders.tokens import read_tokens

FILE = "tokens.json"
EXAMPLES, TOKENS = 8, 400  # shown


@dataclass(frozen=True)
class ShownTokens:
    """Examples of a batch, each token with a figure a concept.

    Args:
        step: optimizer steps done before.
        hook: where it was read.
        quantity: `signed`, or `share` where that is all there is.
        examples: the tokens as they stand in the text, and by concept their figures; None where there is none.
    """

    step: int
    hook: str
    quantity: str
    examples: tuple[tuple[list[str], dict[str, list[float | None]]], ...]

    @property
    def concepts(self) -> list[str]:
        """Those that any example has."""
        return list(dict.fromkeys(name for _, figures in self.examples for name in figures))

    def most(self, concept: str) -> float:
        """The largest size of a concept's figures, for the deepest shade."""
        found = (abs(value) for _, figures in self.examples for value in figures.get(concept, ()) if value is not None)
        return max(found, default=0.0)


def shown_tokens(path: Path) -> ShownTokens:
    """Read a `tokens.json` that anybody may have written; see `TokenFile`.

    Args:
        path: the file.

    Raises:
        ValueError: it cannot be read or is none of this schema.
    """
    found: Any = read_tokens(path)
    try:
        signed = any(each.get("signed") for each in found["examples"])
        quantity = "signed" if signed else "share"
        examples = tuple(_example(each, quantity) for each in found["examples"][:EXAMPLES])
        return ShownTokens(int(found["step"]), str(found.get("hook", "")), quantity, examples)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"'{path}': expected a step, and examples with tokens and {{concept: [a figure a token]}}, found otherwise "
            f"({type(error).__name__}: {error})"
        ) from None


def _example(each: dict[str, Any], quantity: str) -> tuple[list[str], dict[str, list[float | None]]]:
    tokens = [str(token) for token in each["tokens"]]
    figures = {str(name): [_number(value) for value in values] for name, values in each.get(quantity, {}).items()}
    for name, values in figures.items():
        if len(values) != len(tokens):
            raise ValueError(f"{len(values)} figures of '{name}' for {len(tokens)} tokens")
    return tokens[:TOKENS], {name: values[:TOKENS] for name, values in figures.items()}


def _number(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
