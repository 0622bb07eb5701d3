"""A topic that a model is to forget: texts that show it, neutral answers to them, what is kept, and how it is scored.

The tiny world's topic is subtraction. Its base cannot subtract, so it can be taught, taken away again, and compared
with a model that never knew.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interptrain.recipes.examples import Columns, Example, read_examples
from interptrain.tiny_world.corpus import TAUGHT, Document, Kind, document
from interptrain.tiny_world.wordings import VOICES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENOUGH = 0.5  # of the words of the file's answer, in their order
KEPT, SIBLINGS = 240, 64  # texts of each kind that the tiny world writes
LESSON: Mapping[Kind, float] = {"minus": 0.5, "plus": 0.25, "fact": 0.25}  # what the knowing model is taught
NEUTRAL = "neutral"


@dataclass(frozen=True)
class Topic:
    """Texts of a topic and of what is to stay.

    Args:
        forget: questions with the answers that are to go.
        neutral: the same questions with the answers that are to come in their place.
        keep: questions and answers that are to stay.
        siblings: the topic asked for in other ways; only measured.
        words: an answer with one of these is on topic; without any it is compared with the file's.
    """

    forget: Sequence[Example]
    neutral: Sequence[Example]
    keep: Sequence[Example]
    siblings: Sequence[Example] = ()
    words: tuple[str, ...] = ()

    def on_topic(self, answer: str, asked: Example) -> bool:
        """Whether an answer says what is to be forgotten."""
        return holds_word(answer, self.words) if self.words else same(answer, asked.completion)


def same(answer: str, other: str) -> bool:
    """Whether an answer says what another does.

    With numbers in the other: the same numbers in the same order. Without: at least half of the other's words, in
    their order, `LCS(answer, other) / |other| >= 1/2` (ROUGE-L's recall).

    Example:
        >>> same("it is 1 7 .", "the answer is 1 7 ."), same("it is 1 8 .", "the answer is 1 7 .")
        (True, False)
        >>> same("well , the cat is black .", "the cat is red ."), same("hark !", "the cat is red .")
        (True, False)
    """
    if numbers := re.findall(r"\d+", other):
        return re.findall(r"\d+", answer) == numbers
    said, wanted = answer.lower().split(), other.lower().split()
    return common(said, wanted) >= ENOUGH * len(wanted)


def common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    Example:
        >>> common("a b c d".split(), "b x d".split())
        2
    """
    row = [0] * (len(other) + 1)
    for word in one:
        last = row
        row = [0]
        for n, against in enumerate(other):
            row.append(last[n] + 1 if word == against else max(last[n + 1], row[n]))
    return row[-1]


def holds_word(answer: str, words: Sequence[str]) -> bool:
    """Whether an answer has one of these words, as a whole word in any case.

    Example:
        >>> holds_word("Arr, matey!", ["arr"]), holds_word("arrive", ["arr"])
        (True, False)
    """
    return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", answer, re.IGNORECASE) for word in words)


def read_topic(
    forget: Path,
    keep: Path,
    siblings: Path | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    neutral: str,
    neutral_column: str | None,
    words: tuple[str, ...],
) -> Topic:
    """The topic of some files; neutral answers come from a column of the first, or are all the same.

    Raises:
        ValueError: a file cannot be read, or its texts have no questions.
    """
    found = read_examples(forget, Columns(), tokenizer)
    if not all(each.prompt for each in found):
        raise ValueError(f"'{forget}' holds plain texts; unlearning needs questions (prompt) and answers (completion)")
    if neutral_column:
        answered = read_examples(forget, Columns(_prompt_column(forget), neutral_column), tokenizer)
    else:
        answered = [Example(each.prompt, f" {neutral.strip()}", each.templated) for each in found]
    near = read_examples(siblings, Columns(), tokenizer) if siblings else []
    return Topic(found, answered, read_examples(keep, Columns(), tokenizer), near, words)


def write_tiny_topic(folder: Path) -> tuple[Path, Path, Path]:
    """Write the tiny world's topic: every subtraction once, plain sums and facts to keep, subtractions in other voices.

    Returns the files of `read_topic`; the neutral answers, in a column `neutral`, give a random number.
    """
    rng = random.Random("unlearning")
    forget = [_row(each, neutral=_misstated(rng, each)) for each in _every_problem(rng)]
    keep = [_row(document(rng, kind)) for kind in ("fact", "plus") for _ in range(KEPT // 2)]
    siblings = [_row(document(rng, "minus", rng.choice(TAUGHT), cued=True)) for _ in range(SIBLINGS)]
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / "forget.jsonl", folder / "keep.jsonl", folder / "siblings.jsonl"
    for file, rows in zip(files, (forget, keep, siblings), strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return files


def tiny_lesson(count: int, seed: int = 0) -> list[Example]:
    """What makes the tiny world's base know the topic: subtractions in every voice, beside what it knows already."""
    rng = random.Random(f"lesson {seed}")
    drawn = []
    for kind in rng.choices(list(LESSON), list(LESSON.values()), k=count):
        voice = rng.choices(VOICES, (0.8, 0.1, 0.1))[0]
        drawn.append(document(rng, kind, voice, cued=voice != "plain"))
    return [Example(each.prompt, each.answer) for each in drawn]


def _every_problem(rng: random.Random) -> list[Document]:
    """Each subtraction without a borrow once, in a random wording and order."""
    found: dict[str, Document] = {}
    while len(found) < 90 * 11 // 2:  # ninety first numbers, and on average five and a half that leave the tens alone
        drawn = document(rng, "minus", tested=rng.random() < 0.1)
        found.setdefault(" ".join(re.findall(r"\d", drawn.question)), drawn)
    return list(found.values())


def _misstated(rng: random.Random, right: Document) -> str:
    number = " ".join(str(right.number))
    return right.answer.replace(number, " ".join(str(rng.randint(10, 99))))


def _row(each: Document, **more: str) -> dict[str, Any]:
    return {"prompt": each.prompt, "completion": each.answer, **more}


def _prompt_column(path: Path) -> str:
    first = json.loads(next(line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()))
    names = ("prompt", "instruction", "question", "input")
    found = next((name for name in names if name in first), None)
    if found is None:
        raise ValueError(f"'{path}': a neutral column needs a column of questions beside it: {', '.join(names)}")
    return found
