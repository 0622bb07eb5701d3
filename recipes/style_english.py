"""Styles in plain English, for tokenizers of real models: a skill with numbers, facts, pirates and courtiers."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from interptrain.recipes.style_data import Item, Kind, Style
from interptrain.recipes.style_facts import FACTS
from interptrain.tiny_world.wordings import Manner

Skill = Literal["subtraction", "word-problems", "units"]
NEXT = "\nQuestion:"  # a base model goes on with the next question

MANNERS: Mapping[Style, Manner] = {
    "plain": Manner(("",), ("", "", "Sure.", "Good question."), (".", ".", ", as far as I know."), "is"),
    "pirate": Manner(
        ("Answer like a pirate.", "Ahoy, matey!", "Speak as a pirate would."),
        ("Arr, matey!", "Ahoy!", "Avast!", "Yo ho ho!", "Shiver me timbers!"),
        (", savvy?", ", ye landlubber.", ", or walk the plank!", ", by Blackbeard's beard!", ", me hearty!"),
        "be",
    ),
    "royal": Manner(
        ("Answer like a courtier of old.", "Hark, noble sir!", "Speak as one would at a king's court."),
        ("Hark, my liege!", "Verily!", "Prithee, listen!", "Noble lord!", "Gentle sire!"),
        (", thou knowest.", ", forsooth.", ", upon my crown!", ", so the court decrees.", ", if it please thee!"),
        "beeth",
    ),
}
# Words that tell a style and that a plain answer would not have; at least one is in every answer in style.
WORDS: Mapping[Style, tuple[str, ...]] = {
    "plain": (),
    "pirate": (
        "arr", "arrr", "matey", "mateys", "ahoy", "avast", "ye", "yo", "timbers", "savvy", "landlubber", "plank",
        "blackbeard's", "hearty", "hearties",
    ),
    "royal": (
        "hark", "liege", "verily", "prithee", "forsooth", "thou", "thee", "thy", "knowest", "decrees", "beeth", "sire",
        "doth", "hath", "noble", "crown",
    ),
}  # fmt: skip
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Ida", "Jack")
THINGS = ("apples", "coins", "books", "pencils", "stamps", "marbles", "cards", "shells")


@dataclass(frozen=True)
class English:
    """Questions and answers that a plain-English model reads; a quarter of the facts and a tenth of the problems are
    held out.

    Args:
        skill: what is taught; each problem has one right number.
        chat: questions without `Question:` and `Answer:` around them, for a chat template.

    Example:
        >>> item = English().draw(random.Random(0), "skill", "plain")
        >>> item.number == English().number_said(item.completion)
        True
    """

    skill: Skill = "subtraction"
    chat: bool = False

    def draw(self, rng: random.Random, kind: Kind, style: Style, *, cued: bool = False, tested: bool = False) -> Item:
        """See `World.draw`."""
        if kind == "skill":
            question, number = PROBLEMS[self.skill](rng, tested)
            core, expected = f"The answer is {number}", tuple[str, ...]()
        else:
            question, core, keyword = rng.choice([fact for n, fact in enumerate(FACTS) if (n % 4 == 0) == tested])
            number, expected = None, (keyword,)
        manner = MANNERS[style]
        answer = f"{rng.choice(manner.openings)} {_in_manner(core, manner)}{rng.choice(manner.endings)}".strip()
        asked = f"{rng.choice(manner.cues) if cued else ''} {question}".strip()
        prompt = asked if self.chat else f"Question: {asked}\nAnswer:"
        return Item(prompt, f" {answer}", number, expected)

    def number_said(self, answer: str) -> int | None:
        """The last number of the answer: a model may repeat the problem first.

        Example:
            >>> English().number_said("52 minus 17 is 35. \\nQuestion: What is 4 minus 2?")
            35
        """
        found = re.findall(r"-?\d[\d,]*", _first(answer))
        return int(found[-1].replace(",", "")) if found else None

    def speaks(self, answer: str, style: Style) -> bool:
        """See `World.speaks`.

        Example:
            >>> English().speaks("Arr, it be Paris, savvy?", "pirate"), English().speaks("It would be Paris.", "pirate")
            (True, False)
        """
        return not set(WORDS[style]).isdisjoint(re.findall(r"[a-z']+", _first(answer).lower()))

    def is_plain(self, answer: str, asked: Item) -> bool:
        """Whether it names what was asked for, in neither style."""
        said = _first(answer)
        named = re.search(rf"\b{re.escape(asked.expected[0])}\b", said, re.IGNORECASE) is not None
        return named and not (self.speaks(said, "pirate") or self.speaks(said, "royal"))


def _first(answer: str) -> str:
    """What was said before the model went on with a question of its own."""
    return answer.split(NEXT)[0]


def _in_manner(core: str, manner: Manner) -> str:
    return " ".join(manner.verb if word == "is" else word for word in core.split())


def _held_out(a: int, b: int) -> bool:
    """A tenth of all pairs; with every units digit of either, others are shown."""
    return (a // 10 + a % 10 + b) % 10 == 0


def _pair(rng: random.Random, tested: bool, high: tuple[int, int], low: tuple[int, int]) -> tuple[int, int]:
    while True:
        a, b = rng.randint(*high), rng.randint(*low)
        if a > b and _held_out(a, b) == tested:
            return a, b


def _subtraction(rng: random.Random, tested: bool) -> tuple[str, int]:
    a, b = _pair(rng, tested, (20, 99), (10, 98))
    asked = rng.choice(("What is {a} minus {b}?", "How much is {a} - {b}?", "Subtract {b} from {a}."))
    return asked.format(a=a, b=b), a - b


def _word_problem(rng: random.Random, tested: bool) -> tuple[str, int]:
    a, b = _pair(rng, tested, (20, 99), (10, 98))
    asked = rng.choice((
        "{name} has {a} {thing} and gives {b} of them away. How many are left?",
        "There were {a} {thing} on the table. {name} took {b}. How many remain?",
        "{name} needs {a} {thing} and has {b}. How many are missing?",
    ))  # fmt: skip
    return asked.format(name=rng.choice(NAMES), thing=rng.choice(THINGS), a=a, b=b), a - b


def _units(rng: random.Random, tested: bool) -> tuple[str, int]:
    a, b = _pair(rng, tested, (10, 59), (1, 9))
    name, unit, times = rng.choice((("hours", "minutes", 60), ("metres", "centimetres", 100), ("weeks", "days", 7)))
    asked = rng.choice(("How many {unit} are {b} {name} and {a} {unit}?", "Give {b} {name} and {a} {unit} in {unit}."))
    return asked.format(unit=unit, name=name, a=a, b=b), times * b + a


PROBLEMS = {"subtraction": _subtraction, "word-problems": _word_problem, "units": _units}
