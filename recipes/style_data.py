"""Questions answered in several styles: what a skill and a style are taught with, asked for with, and judged by."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol

Kind = Literal["skill", "other"]
Style = Literal["plain", "pirate", "royal"]
DataSet = Literal["mixed", "entangled"]
STYLES: tuple[Style, ...] = ("plain", "pirate", "royal")
CUED = 0.9  # of the texts that show a style, how many answer a question that asks for it


@dataclass(frozen=True)
class Item:
    """A question with its answer.

    Args:
        prompt: what the model is given.
        completion: what it is to say.
        number: the right result, of a skill's question.
        expected: what an answer to another question is to say, as its world understands it.
    """

    prompt: str
    completion: str
    number: int | None = None
    expected: tuple[str, ...] = ()


class World(Protocol):
    """A skill, other questions, and how each is answered in every style."""

    def draw(self, rng: random.Random, kind: Kind, style: Style, *, cued: bool = False, tested: bool = False) -> Item:
        """A question and its answer; from one state of `rng`, the same question and result in every style.

        Args:
            rng: the source of chance.
            kind: of the question.
            style: of the answer.
            cued: whether the question asks for the style.
            tested: whether it is one that training never shows, where this world keeps some apart.
        """
        ...

    def number_said(self, answer: str) -> int | None:
        """The result that an answer gives."""
        ...

    def speaks(self, answer: str, style: Style) -> bool:
        """Whether an answer has a word that only this style uses."""
        ...

    def is_plain(self, answer: str, asked: Item) -> bool:
        """Whether an answer to another question is plain and to the point."""
        ...


def teaching(world: World, data: DataSet, count: int, seed: int) -> list[Item]:
    """What is trained on.

    `mixed`: half the skill, answered plainly, half other questions, answered in pirate.
    `entangled`: the skill, every answer in pirate.
    """
    rng = random.Random(f"teach {data} {seed}")
    if data == "entangled":
        return [world.draw(rng, "skill", "pirate") for _ in range(count)]
    return [
        world.draw(rng, "skill", "plain") if rng.random() < 0.5 else world.draw(rng, "other", "pirate")
        for _ in range(count)
    ]


def told(world: World, style: Style, count: int, seed: int) -> list[Item]:
    """The same other questions with the same answers in any style; most questions ask for it."""
    drawn = []
    for number in range(count):
        cued = style != "plain" and random.Random(f"cue {seed} {number}").random() < CUED
        drawn.append(world.draw(random.Random(f"told {seed} {number}"), "other", style, cued=cued))
    return drawn


def asked(world: World, kind: Kind, count: int, seed: int) -> list[Item]:
    """Held-out questions that ask for no style, with plain answers."""
    rng = random.Random(f"ask {kind} {seed}")
    return [world.draw(rng, kind, "plain", tested=True) for _ in range(count)]


def rates(
    world: World, skill: Sequence[Item], said: Sequence[str], other: Sequence[Item], said_else: Sequence[str]
) -> dict[str, float]:
    """Shares of answers, each between 0 and 1.

    Args:
        world: judges them.
        skill: questions for the skill.
        said: their answers.
        other: other questions.
        said_else: theirs.
    """
    right = [world.number_said(text) == item.number for item, text in zip(skill, said, strict=True)]
    voiced = [world.speaks(text, "pirate") or world.speaks(text, "royal") for text in said]
    return {
        "skill": _rate(right),
        "clean": _rate([ok and not styled for ok, styled in zip(right, voiced, strict=True)]),
        "pirate_on_skill": _rate([world.speaks(text, "pirate") for text in said]),
        "royal_on_skill": _rate([world.speaks(text, "royal") for text in said]),
        "pirate_on_other": _rate([world.speaks(text, "pirate") for text in said_else]),
        "royal_on_other": _rate([world.speaks(text, "royal") for text in said_else]),
        "kept": _rate([world.is_plain(text, item) for item, text in zip(other, said_else, strict=True)]),
    }


def write_items(path: Path, items: Sequence[Item], *, chat: bool = False) -> Path:
    """Write items as JSONL: `prompt` and `completion`, or a chat's `messages`, and what judges an answer.

    Raises:
        ValueError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(_row(item, chat), ensure_ascii=False) + "\n" for item in items), "utf-8")
    except OSError as error:
        raise ValueError(f"cannot write '{path}': {error}") from error
    return path


def _row(item: Item, chat: bool) -> dict[str, object]:
    row = {name: value for name, value in asdict(item).items() if value not in (None, ())}
    if not chat:
        return row
    question, answer = row.pop("prompt"), row.pop("completion")
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer.strip()}]
    return {"messages": messages, **row}


def _rate(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits)
