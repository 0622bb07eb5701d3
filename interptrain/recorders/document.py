"""The shape of `report.json`: what a recipe writes and `report.html` and `curves.png` are drawn from.

`docs/report.md` says what each field means. A field may be added within a schema; one is renamed, removed or
given another meaning only with a new `REPORT_SCHEMA`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

REPORT_SCHEMA = 1

Curves = dict[str, list[float | None]]
Scores = dict[str, float]


class Concept(TypedDict):
    """A concept's card: where its directions came from and how well they separate held-out texts."""

    name: str
    says: str
    hook: str
    directions: int
    latents: list[int]
    auc: float | None
    shuffled_auc: float | None


class Measure(TypedDict):
    """One column of the behaviour table."""

    key: str
    label: str
    says: str


class Pair(TypedDict):
    """A concept whose curve is drawn beside a measured behaviour."""

    concept: str
    measure: str


class Sample(TypedDict):
    """What the model said, decoded greedily."""

    prompt: str
    answer: str


class Checkpoint(TypedDict):
    """Scores on the small probe, after so many optimizer steps."""

    step: int
    scores: Scores


class Rung(TypedDict):
    """An alarm that began to ring: after which step, for which concept, what moved in its place, how far and where."""

    concept: str
    step: int
    what: str
    figure: float
    on: str


class Run(TypedDict):
    """One seed of one arm."""

    seed: int
    scores: Scores
    checkpoints: list[Checkpoint]
    curves: Curves
    samples: list[Sample]
    seconds: float
    weights: str
    wandb: str
    alarms: NotRequired[list[Rung]]


class Arm(TypedDict):
    """What was done, and its runs."""

    name: str
    says: str
    runs: list[Run]


class DataFile(TypedDict):
    """A file of training texts: how to tell it from any other."""

    name: str
    says: str
    sha256: str
    examples: int


class RelearningRun(TypedDict):
    """One seed of a relearning check: the rate of the topic after so many steps on a few of its examples."""

    seed: int
    checkpoints: list[Checkpoint]


class Relearning(TypedDict):
    """How soon a topic is back, from one kind of start."""

    name: str
    says: str
    runs: list[RelearningRun]


class Verdict(TypedDict):
    """An answer that follows from the numbers by a stated rule."""

    question: str
    status: Literal["held", "did not hold", "undecided"]
    answer: str
    rule: str
    numbers: dict[str, float]


class Before(TypedDict):
    """The model before training."""

    scores: Scores
    samples: list[Sample]


class Report(TypedDict):
    """The whole document."""

    schema: int
    recipe: str
    title: str
    summary: str
    created: str
    seconds: float
    config: dict[str, Any]
    versions: dict[str, str]
    concepts: list[Concept]
    measures: list[Measure]
    headline: list[str]
    pairs: list[Pair]
    before: Before
    arms: list[Arm]
    verdicts: list[Verdict]
    limits: list[str]
    data: NotRequired[list[DataFile]]
    relearning: NotRequired[list[Relearning]]


def write_report(report: Report, path: Path) -> Path:
    """Write `report.json`; a number that is not finite is an error, never a silent NaN.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    path.write_text(json.dumps(report, allow_nan=False) + "\n")
    return path


def said(rung: Rung) -> str:
    """An alarm in words.

    Example:
        >>> said({"concept": "pirate", "step": 40, "what": "its sibling 'royal'", "figure": 0.62, "on": "neutral"})
        "alarm at step 40: 'pirate' is suppressed and flat, but its sibling 'royal' moved (0.62) on neutral"
    """
    what = rung["what"] or "something else"
    where = f" on {rung['on']}" if rung["on"] else ""
    return (
        f"alarm at step {rung['step']}: '{rung['concept']}' is suppressed and flat, but {what} moved "
        f"({rung['figure']:.2f}){where}"
    )


def rounded(curves: Curves) -> Curves:
    """Curves to six significant digits, a third of the size.

    Example:
        >>> rounded({"step": [0.0, 1.0], "loss": [2 / 3, None]})
        {'step': [0.0, 1.0], 'loss': [0.666667, None]}
    """
    return {
        key: [None if value is None else float(f"{value:.6g}") for value in values] for key, values in curves.items()
    }


def read_report(path: Path) -> Report:
    """Read a `report.json` of this schema.

    Raises:
        ValueError: the file is missing, is not JSON or has another schema.
    """
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"'{path}' does not exist; a recipe writes it at its end") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"'{path}' is not JSON ({error}); was it truncated?") from error
    if not isinstance(document, dict):
        raise ValueError(f"'{path}' holds a {type(document).__name__}, expected an object")
    return checked(document)


def checked(document: Mapping[str, Any]) -> Report:
    """The document as a report.

    Raises:
        ValueError: it has another schema.
    """
    if document.get("schema") != REPORT_SCHEMA:
        raise ValueError(f"the report has schema {document.get('schema')!r}, this version reads {REPORT_SCHEMA}")
    return document  # type: ignore[return-value]
