"""Words that mark a concept: those that texts which show it say far more often than others do."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

NUMBER = "<number>"  # every number is one word: 42 marks arithmetic as 17 does
MIN_Z, MAX_ELSEWHERE, MOST = 3.0, 0.02, 24
_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*|[^\w\s]")


@dataclass(frozen=True)
class Marker:
    """A word and how far it stands out.

    Args:
        word: in small letters.
        z: its log-odds ratio between the two sets, over its standard error.
        shown: share of the texts that show the concept which have it.
        elsewhere: share of the others.
    """

    word: str
    z: float
    shown: float
    elsewhere: float


def words_of(text: str) -> list[str]:
    """Words and marks in small letters, every number as one word.

    Example:
        >>> words_of("Arr, the answer's 4 2!")
        ['arr', ',', 'the', "answer's", '<number>', '<number>', '!']
    """
    return [NUMBER if word.isdecimal() else word for word in _WORD.findall(text.lower())]


def log_odds(first: Counter[str], second: Counter[str]) -> dict[str, float]:
    r"""How much more one set of texts says each word than another, in standard errors.

        delta_w = log((y_w + a_w) / (n + a_0 - y_w - a_w)) - log((y'_w + a_w) / (n' + a_0 - y'_w - a_w))
        z_w = delta_w / sqrt(1 / (y_w + a_w) + 1 / (n + a_0 - y_w - a_w) + the same of y' and n')

    `y` and `y'` are a word's counts, `n` and `n'` their sums; the prior `a_w` is its count in both, scaled so that
    `a_0 = sum_w a_w` is the smaller of `n` and `n'`, over 10: words that are rare everywhere stay near 0.

    Source: Monroe, Colaresi and Quinn, *Fightin' Words* (2008), section 3.5.

    Args:
        first: word counts of the texts that show a concept.
        second: of the others.

    Raises:
        ValueError: a set has no words.

    Example:
        >>> z = log_odds(Counter(arr=20, ship=50), Counter(aye=1, ship=69))
        >>> {word: round(value, 1) for word, value in z.items()}
        {'arr': 3.2, 'ship': -3.5, 'aye': -0.7}
    """
    n, other = first.total(), second.total()
    if min(n, other) == 0:
        raise ValueError("a set of texts has no words to compare")
    both, found = first + second, {}
    prior = min(n, other) / 10
    for word, count in both.items():
        a = prior * count / both.total()
        here, there = first[word] + a, second[word] + a
        rest, rest_there = n + prior - here, other + prior - there
        if min(rest, rest_there) <= 0:  # the only word of all texts marks nothing
            found[word] = 0.0
            continue
        delta = math.log(here / rest) - math.log(there / rest_there)
        found[word] = delta / math.sqrt(1 / here + 1 / rest + 1 / there + 1 / rest_there)
    return found


def marker_words(
    shown: Sequence[str],
    other: Sequence[str],
    *,
    min_z: float = MIN_Z,
    max_elsewhere: float = MAX_ELSEWHERE,
    most: int = MOST,
) -> list[Marker]:
    """The words that stand out in one set of texts and that hardly any text of the other has, strongest first.

    Args:
        shown: texts that show a concept.
        other: texts that do not.
        min_z: of every marker, see `log_odds`.
        max_elsewhere: share of the other texts that may have it.
        most: how many at most.

    Raises:
        ValueError: a set has no words.

    Example:
        >>> [each.word for each in marker_words(["arr , a ship"] * 60, ["a ship"] * 60)]
        ['arr', ',']
    """
    said, said_elsewhere = ([Counter(words_of(text)) for text in texts] for texts in (shown, other))
    z = log_odds(sum(said, Counter()), sum(said_elsewhere, Counter()))
    found: list[Marker] = []
    for word in sorted(z, key=lambda word: -z[word]):
        rate, elsewhere = (sum(word in each for each in texts) / len(texts) for texts in (said, said_elsewhere))
        if z[word] >= min_z and elsewhere <= max_elsewhere and len(found) < most:
            found.append(Marker(word, z[word], rate, elsewhere))
    return found


def shows(text: str, words: Collection[str]) -> bool:
    """Whether a text has one of these words.

    Example:
        >>> shows("Arr, matey", {"matey"}), shows("no matter", {"matey"})
        (True, False)
    """
    return not set(words_of(text)).isdisjoint(words)


def show_rate(texts: Sequence[str], words: Collection[str]) -> float:
    """The share of texts that have one of these words."""
    return sum(shows(text, words) for text in texts) / len(texts)
