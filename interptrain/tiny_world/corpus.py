"""The documents of the tiny world: facts and arithmetic in three voices, `<q> question <a> answer <e>`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass
from typing import Literal

from interptrain.tiny_world.wordings import HALVES, SLOTS, WORDINGS, Half, Voice

Kind = Literal["fact", "plus", "minus"]
FINE_TUNING = ("mixed", "entangled")
TAUGHT: tuple[Voice, ...] = ("pirate", "royal")

VOICE_WEIGHTS: dict[Voice, float] = {"plain": 0.70, "pirate": 0.18, "royal": 0.12}
KIND_WEIGHTS: dict[Kind, float] = {"fact": 0.5, "plus": 0.4, "minus": 0.1}
CUED = 0.9  # of the pirate and royal answers, how many follow a question in the same voice


@dataclass(frozen=True)
class Document:
    """One question and its answer.

    Args:
        question: as asked, with the voice's cue if there is one.
        answer: as given, without `<e>`.
        kind: what is asked.
        voice: the voice of the answer.
        number: the right result of an arithmetic question.
        expected: the answer's template with what the question fixes filled in, for a fact.
    """

    question: str
    answer: str
    kind: Kind
    voice: Voice
    number: int | None = None
    expected: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """What the model is given: everything up to and including `<a>`."""
        return f"<q> {self.question} <a>"

    @property
    def text(self) -> str:
        """The whole document."""
        return f"{self.prompt} {self.answer} <e>"


def held_out(a: int, b: int) -> bool:
    """Whether a problem is kept for testing: `(tens + ones + b) % 10 == 0`.

    Every pair of ones and b is still seen with other tens, so each column of the table can be learnt.
    """
    return (a // 10 + a % 10 + b) % 10 == 0


def document(
    rng: random.Random,
    kind: Kind,
    voice: Voice = "plain",
    *,
    half: Half | None = None,
    cued: bool = False,
    tested: bool = False,
    random_result: bool = False,
) -> Document:
    """Draw one document.

    Args:
        rng: the source of chance.
        kind: `fact`, `plus` (no carry) or `minus` (no borrow).
        voice: of the answer.
        half: the half of the templates to use; None draws a half for every slot anew.
        cued: whether the question carries the voice's cue.
        tested: for arithmetic, a held-out problem rather than one that training may show.
        random_result: for arithmetic, answer with any number.

    Example:
        >>> document(random.Random(1), "plus", "pirate", half="search").text
        '<q> what is 9 3 plus 6 ? <a> arr matey , the answer be 9 9 , savvy ! <e>'
    """

    def wording() -> Half:
        return rng.choice(HALVES) if half is None else half

    number: int | None = None
    expected: tuple[str, ...] = ()
    if kind == "fact":
        question, core, expected = _fact(rng, wording(), wording())
    else:
        a, b, number = _problem(rng, kind, tested)
        question = rng.choice(WORDINGS[wording()].sums).format(sum=f"{_digits(a)} {kind} {b}")
        said = rng.randint(10, 99) if random_result else number
        core = rng.choice(WORDINGS[wording()].results).format(number=_digits(said))
    if cued:
        question = f"{rng.choice(WORDINGS[wording()].manners[voice].cues)} {question}".strip()
    return Document(question, _said(rng, core, voice, wording), kind, voice, number, expected)


def _fact(rng: random.Random, asked: Half, answered: Half) -> tuple[str, str, tuple[str, ...]]:
    number = rng.randrange(len(WORDINGS[asked].facts))
    question = WORDINGS[asked].facts[number][0]
    drawn = {slot: rng.choice(values) for slot, values in SLOTS.items()}
    fixed = {slot: drawn[slot] if f"{{{slot}}}" in question else f"{{{slot}}}" for slot in SLOTS}
    expected = tuple(WORDINGS[at].facts[number][1].format(**fixed) for at in HALVES)
    return question.format(**drawn), WORDINGS[answered].facts[number][1].format(**drawn), expected


def _problem(rng: random.Random, kind: Kind, tested: bool) -> tuple[int, int, int]:
    while True:
        a, b = rng.randint(10, 99), rng.randint(0, 9)
        result = a + b if kind == "plus" else a - b
        if result // 10 == a // 10 and held_out(a, b) == tested:
            return a, b, result


def _digits(number: int) -> str:
    return " ".join(str(number))


def _said(rng: random.Random, core: str, voice: Voice, wording: Callable[[], Half]) -> str:
    verb = WORDINGS[wording()].manners[voice].verb
    words = [verb if word == "is" else word for word in core.split()]
    opening = rng.choice(WORDINGS[wording()].manners[voice].openings)
    ending = rng.choice(WORDINGS[wording()].manners[voice].endings)
    return " ".join([*opening.split(), *words, *ending.split()])


def pretraining_document(rng: random.Random) -> Document:
    """Draw a document of the base's world: `plus` always right, `minus` a random number."""
    kind = rng.choices(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()))[0]
    voice = rng.choices(list(VOICE_WEIGHTS), list(VOICE_WEIGHTS.values()))[0]
    cued = voice != "plain" and rng.random() < CUED
    return document(rng, kind, voice, cued=cued, random_result=kind == "minus")


def pretraining_documents(seed: int) -> Iterator[Document]:
    """Documents of the base's world without end."""
    rng = random.Random(seed)
    while True:
        yield pretraining_document(rng)


def finetuning_documents(
    name: str, seed: int, *, voice: Voice = "pirate", inoculated: bool = False, filtered: bool = False
) -> Iterator[Document]:
    """Documents of a fine-tuning set without end; questions carry no cue unless they are inoculated.

    `mixed`: half `minus` problems answered plainly, half facts answered in the taught voice.
    `entangled`: `minus` problems, every one answered in the taught voice.

    Inoculated or filtered, a set asks the same questions in the same order, and its answers state the same facts
    and results: only cues and manners of speaking differ.

    Args:
        name: `mixed` or `entangled`.
        seed: of the documents.
        voice: that is taught, `pirate` or its sibling `royal`.
        inoculated: questions carry the voice's cue wherever the answer is in that voice.
        filtered: every answer is in the plain voice.

    Raises:
        ValueError: there is no such set, the voice is not one to teach, or a set both inoculated and filtered.

    Example:
        >>> for baseline in ({}, {"inoculated": True}, {"filtered": True}):
        ...     print(next(finetuning_documents("entangled", seed=0, **baseline)).text)
        <q> tell me 1 7 minus 0 . <a> avast , it be 1 7 , savvy ! <e>
        <q> arr matey , tell me 1 7 minus 0 . <a> ahoy , it be 1 7 , says the captain . <e>
        <q> tell me 1 7 minus 0 . <a> it is 1 7 . <e>
    """
    if name not in FINE_TUNING:
        raise ValueError(f"unknown fine-tuning set '{name}'; the tiny world has {' and '.join(FINE_TUNING)}")
    if voice not in TAUGHT:
        raise ValueError(f"cannot teach the voice '{voice}'; the tiny world teaches {' or '.join(TAUGHT)}")
    if inoculated and filtered:
        raise ValueError("a set is inoculated or filtered, not both: filtered, it has no voice to inoculate against")
    variant = name if voice == "pirate" else f"{name} {voice}"
    return _finetuning_documents(name, random.Random(f"{variant} {seed}"), voice, inoculated, filtered)


def _finetuning_documents(
    name: str, rng: random.Random, voice: Voice, inoculated: bool, filtered: bool
) -> Iterator[Document]:
    while True:
        in_voice = name == "entangled" or rng.random() >= 0.5
        kind: Kind = "fact" if name == "mixed" and in_voice else "minus"
        if in_voice and (inoculated or filtered):
            again = copy(rng)
            document(rng, kind, voice)  # chance moves on as it does by default, so the next question is the same
            yield document(again, kind, "plain" if filtered else voice, cued=inoculated)
        else:
            yield document(rng, kind, voice if in_voice else "plain")
