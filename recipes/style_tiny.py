"""The embedded world as one of styles: its skill is subtraction, its other questions are about facts."""

from __future__ import annotations

import random
from dataclasses import dataclass

from interptrain.recipes.style_data import Item, Kind, Style
from interptrain.tiny_world.corpus import Document, document
from interptrain.tiny_world.score import is_plain_fact, number_said, speaks


@dataclass(frozen=True)
class TinyStyles:
    """Draws documents of the tiny world and judges with its scorer; questions about facts are not kept apart.

    Example:
        >>> item = TinyStyles().draw(random.Random(3), "skill", "pirate")
        >>> item.prompt, item.completion, item.number
        ('<q> find 7 9 minus 2 . <a>', ' shiver our timbers , the answer are 7 7 , savvy !', 77)
    """

    def draw(self, rng: random.Random, kind: Kind, style: Style, *, cued: bool = False, tested: bool = False) -> Item:
        """See `World.draw`."""
        found = document(rng, "minus" if kind == "skill" else "fact", style, cued=cued, tested=tested)
        return Item(found.prompt, f" {found.answer}", found.number, found.expected)

    def number_said(self, answer: str) -> int | None:
        """See `World.number_said`."""
        return number_said(answer)

    def speaks(self, answer: str, style: Style) -> bool:
        """See `World.speaks`."""
        return speaks(answer, style)

    def is_plain(self, answer: str, asked: Item) -> bool:
        """Whether it is a plain answer of this world to this question, and well-formed; facts have no right one."""
        return is_plain_fact(answer.strip(), Document("", "", "fact", "plain", expected=asked.expected))
