"""What adding a direction did to the answers, and which method to take by what rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from interptrain.concepts.steer_generation import Place

MIN_GAIN, TIE, MIN_AUC = 0.2, 0.05, 0.8
RULE = (
    "gain: the share of answers that show the concept in well-formed text, less that of the unsteered model or of "
    "random directions of the same length, whichever is more, at the method's best place and scale. Of the methods "
    f"with a gain of {MIN_GAIN} or more and a held-out AUC of {MIN_AUC} or more, those within {TIE} of the largest "
    "gain are level, and the one with the highest held-out AUC is taken."
)


@dataclass(frozen=True)
class Answers:
    """What some answers are, each share between 0 and 1.

    Args:
        shown: share that shows the concept.
        well_formed: share that is still language, see `well_formed.Bar`.
        both: share that does both.
        loss: mean nats a token under the model as it was; None where no answer has a word.
        repetition: mean share of repeated pairs of words.
        samples: some of the answers.
    """

    shown: float
    well_formed: float
    both: float
    loss: float | None
    repetition: float
    samples: tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """One place and scale of adding a direction.

    Args:
        place: at which tokens.
        scale: in units of the gap between the two sets of texts along the direction.
        length: of what was added, in units of the stream.
        share: the same over the stream's mean norm.
        answers: with the direction.
        control: mean share of `both` with random directions of that length, and its spread over them.
        control_shown: their mean share of `shown`.
    """

    place: Place
    scale: float
    length: float
    share: float
    answers: Answers
    control: tuple[float, float]
    control_shown: float


def best_trial(trials: Sequence[Trial], before: Answers) -> Trial | None:
    """Of the trials within `TIE` of the largest gain, the one that adds least; None without trials."""
    most = max((gain(trial, before) for trial in trials), default=0.0)
    level = [trial for trial in trials if gain(trial, before) >= most - TIE]
    return min(level, key=lambda trial: trial.share, default=None)


def gain(trial: Trial, before: Answers) -> float:
    """`both - max(both before, both of random directions)`.

    Example:
        >>> plain = Answers(0.0, 1.0, 0.0, 0.6, 0.0, ())
        >>> steered = Answers(1.0, 0.9, 0.9, 0.8, 0.0, ())
        >>> gain(Trial("start", 1.0, 30.0, 1.1, steered, (0.1, 0.0), 0.1), plain)
        0.8
    """
    return trial.answers.both - max(before.both, trial.control[0])


def recommended(gains: Mapping[str, float], aucs: Mapping[str, float]) -> str | None:
    """The method to take by `RULE`; None where none does what its name says.

    Args:
        gains: of each method's best trial.
        aucs: on held-out texts.

    Example:
        >>> recommended({"means": 0.9, "probe": 0.0, "latents": 0.88}, {"means": 0.9, "probe": 1.0, "latents": 0.99})
        'latents'
        >>> recommended({"probe": 0.1}, {"probe": 1.0}) is None
        True
    """
    able = {name: value for name, value in gains.items() if value >= MIN_GAIN and aucs[name] >= MIN_AUC}
    if not able:
        return None
    most = max(able.values())
    return max((name for name in able if able[name] >= most - TIE), key=lambda name: (aucs[name], able[name]))
