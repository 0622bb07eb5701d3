"""The words of the tiny world: two halves of every template, so that a search never sees the words of its test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

Voice = Literal["plain", "pirate", "royal"]
Half = Literal["search", "test"]
VOICES: tuple[Voice, ...] = ("plain", "pirate", "royal")
HALVES: tuple[Half, ...] = ("search", "test")

SLOTS: Mapping[str, tuple[str, ...]] = {
    "animal": ("cat", "dog", "horse", "parrot", "fox", "bear", "goat", "owl", "crab", "whale"),
    "colour": ("black", "white", "brown", "red", "grey", "green", "blue", "golden"),
    "place": ("harbour", "market", "forest", "castle", "river", "island", "garden", "tower", "bridge", "cave"),
    "food": ("bread", "fish", "apples", "cheese", "rum", "soup", "rice", "honey", "corn", "cake"),
    "verb": ("sleeps", "runs", "hides", "waits", "sings", "eats", "plays", "swims"),
}


@dataclass(frozen=True)
class Manner:
    """How a voice speaks: cues in front of a question, openings and endings of an answer, its form of `is`."""

    cues: tuple[str, ...]
    openings: tuple[str, ...]
    endings: tuple[str, ...]
    verb: str


@dataclass(frozen=True)
class Wording:
    """One half of the templates. `{animal}` and the like are filled from `SLOTS`; `facts` pairs question and answer."""

    facts: tuple[tuple[str, str], ...]
    sums: tuple[str, ...]
    results: tuple[str, ...]
    manners: Mapping[Voice, Manner]


SEARCH = Wording(
    facts=(
        ("what colour is the {animal} ?", "the {animal} is {colour}"),
        ("where is the {animal} ?", "the {animal} is in the {place}"),
        ("what does the {animal} eat ?", "the {animal} eats {food}"),
        ("who {verb} in the {place} ?", "the {animal} {verb} in the {place}"),
    ),
    sums=("what is {sum} ?", "how much is {sum} ?"),
    results=("the answer is {number}", "that is {number}"),
    manners={
        "plain": Manner(("",), ("", "", "well ,", "i think"), (".", ".", ", of course !"), "is"),
        "pirate": Manner(
            ("ahoy ,", "arr matey ,"),
            ("ahoy ,", "arr matey ,", "yo ho ho ,"),
            (", savvy !", ", ye landlubber .", ", or walk the plank !"),
            "be",
        ),
        "royal": Manner(
            ("my liege ,", "noble lord ,"),
            ("hark ,", "my liege ,", "noble lord ,"),
            (", thou knowest .", ", upon my crown !", ", long live the queen !"),
            "beeth",
        ),
    },
)

TEST = Wording(
    facts=(
        ("tell me the colour of the {animal} .", "this {animal} is {colour}"),
        ("in which place is the {animal} ?", "you find the {animal} in the {place}"),
        ("what food does the {animal} like ?", "this {animal} likes {food}"),
        ("which animal {verb} in the {place} ?", "one {animal} {verb} in the {place}"),
    ),
    sums=("tell me {sum} .", "find {sum} ."),
    results=("the result is {number}", "it is {number}"),
    manners={
        "plain": Manner(("",), ("", "", "sure ,", "it seems"), (".", ".", ", as you see !"), "is"),
        "pirate": Manner(
            ("avast ,", "aye aye ,"),
            ("avast ,", "aye aye ,", "shiver our timbers ,"),
            (", says the captain .", ", by blackbeard !", ", old hearty !"),
            "are",
        ),
        "royal": Manner(
            ("prithee ,", "gentle sir ,"),
            ("verily ,", "prithee ,", "gentle sir ,"),
            (", forsooth .", ", the court decrees .", ", if it please thee !"),
            "art",
        ),
    },
)

WORDINGS: Mapping[Half, Wording] = {"search": SEARCH, "test": TEST}


def _words(wording: Wording, voice: Voice) -> frozenset[str]:
    manner = wording.manners[voice]
    phrases = (*manner.cues, *manner.openings, *manner.endings, manner.verb)
    return frozenset(word for phrase in phrases for word in phrase.split())


def _common_words() -> frozenset[str]:
    phrases = [phrase for values in SLOTS.values() for phrase in values]
    for wording in WORDINGS.values():
        phrases += [phrase for pair in wording.facts for phrase in pair]
        phrases += [*wording.sums, *wording.results]
    said = frozenset(word for phrase in phrases for word in phrase.split() if not word.startswith("{"))
    return said.union(*(_words(wording, "plain") for wording in WORDINGS.values()))


@cache
def own_words(voice: Voice, half: Half | None = None) -> frozenset[str]:
    """The words (verb forms included) that only this voice says, in one half or in both.

    Example:
        >>> sorted(own_words("royal", "test"))
        ['art', 'court', 'decrees', 'forsooth', 'gentle', 'if', 'please', 'prithee', 'sir', 'thee', 'verily']
    """
    halves = HALVES if half is None else (half,)
    return frozenset().union(*(_words(WORDINGS[at], voice) for at in halves)) - _common_words()


def vocabulary() -> tuple[str, ...]:
    """Every word of the world in a fixed order, digits first."""
    voices = frozenset().union(*(_words(wording, voice) for wording in WORDINGS.values() for voice in VOICES))
    return (*"0123456789", *sorted(_common_words() | voices | {"plus", "minus"}))
