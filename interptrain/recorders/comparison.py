"""Two runs side by side: what was set otherwise, what came of it, and where their curves part."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Float

from interptrain.recorders.document import Arm, Curves, Report, Rung, read_report
from interptrain.recorders.follow import Followers
from interptrain.recorders.standing import concepts_of

RUNNING = 5  # measured steps in a row that make a parting: one alone is chance
ROUNDED, NOTHING = 1e-5, 1e-7  # relative, since report.json keeps six digits; and of figures that are rounding alone


@dataclass(frozen=True)
class Side:
    """One of the two.

    Args:
        place: where it was read.
        report: of a recipe that has ended; None of bare curves.
        arms: their runs with their curves.
        notes: what could not be read.
    """

    place: Path
    report: Report | None
    arms: tuple[Arm, ...]
    notes: tuple[str, ...] = ()


class Setting(NamedTuple):
    """What differs between the two, as JSON would have it; a dash where one has none."""

    name: str
    a: str
    b: str


class Score(NamedTuple):
    """A measure of an arm in both.

    With the same seeds in both, `difference` is the mean of `b - a` seed by seed and `spread` its standard deviation;
    else `spread = sqrt(sd_a^2 + sd_b^2)`. None where a side has one seed alone.
    """

    arm: str
    measure: str
    a: list[float]
    b: list[float]
    difference: float
    spread: float | None


class Pair(NamedTuple):
    """An arm that both have."""

    name: str
    a: Arm
    b: Arm

    @property
    def concepts(self) -> list[str]:
        """Those that both measured."""
        there = {name for run in self.b["runs"] for name in concepts_of(run["curves"])}
        here = dict.fromkeys(name for run in self.a["runs"] for name in concepts_of(run["curves"]))
        return [name for name in here if name in there]


class Parting(NamedTuple):
    """The first step at which a figure of two runs is not the same, and which."""

    step: int
    metric: str
    a: float
    b: float


def read_side(place: Path) -> Side:
    """A recipe's folder or `report.json`, a `JSONLRecorder`'s file, or a folder of them.

    Args:
        place: the folder or file.

    Raises:
        ValueError: there is no run, or its report cannot be read.
    """
    file = place / "report.json" if place.is_dir() else place
    if file.is_file() and file.suffix == ".json":
        report = read_report(file)
        return Side(place, report, tuple(report["arms"]))
    if not place.exists():
        raise ValueError(f"'{place}' does not exist; name a run's folder, its report.json, or a JSONLRecorder's file")
    followers = Followers(place)
    followers.look()
    arms: dict[str, Arm] = {}
    for run in followers:
        named = re.fullmatch(r"(.+), seed (\d+)", run.name)
        name, seed = (named[1], int(named[2])) if named else (run.name, 0)
        arm = arms.setdefault(name, cast("Arm", {"name": name, "says": "", "runs": []}))
        arm["runs"].append(cast("Any", {"seed": seed, "curves": run.curves(), "alarms": run.alarms()}))
    if not arms:
        said = "; ".join(followers.complaints)
        raise ValueError(
            f"'{place}' has neither a report.json nor curves of a JSONLRecorder{f' ({said})' if said else ''}"
        )
    return Side(place, None, tuple(arms.values()), tuple(followers.complaints))


def paired(a: Side, b: Side) -> tuple[list[Pair], list[str], list[str]]:
    """The arms of the same name, or of one arm each those two; and what only `a`, and only `b` has."""
    if len(a.arms) == len(b.arms) == 1:
        (one,), (other,) = a.arms, b.arms
        name = one["name"] if one["name"] == other["name"] else f"{one['name']} | {other['name']}"
        return [Pair(name, one, other)], [], []
    by_name = {arm["name"]: arm for arm in b.arms}
    pairs = [Pair(arm["name"], arm, by_name[arm["name"]]) for arm in a.arms if arm["name"] in by_name]
    common = {pair.name for pair in pairs}
    only_a, only_b = ([arm["name"] for arm in side.arms if arm["name"] not in common] for side in (a, b))
    return pairs, only_a, only_b


def other_concepts(pairs: Sequence[Pair]) -> tuple[list[str], list[str]]:
    """The concepts that only `a`, and only `b` measured in the arms that both have."""
    common = {name for pair in pairs for name in pair.concepts}
    found = []
    for arms in ([pair.a for pair in pairs], [pair.b for pair in pairs]):
        names = dict.fromkeys(name for arm in arms for run in arm["runs"] for name in concepts_of(run["curves"]))
        found.append([name for name in names if name not in common])
    return found[0], found[1]


def changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Setting]:
    """The entries that differ, nested ones by `outer.inner`.

    Example:
        >>> changed({"steps": 3, "model": "m", "memory": {"x": 1}}, {"steps": 4, "model": "m", "memory": {"x": 2}})
        [Setting(name='steps', a='3', b='4'), Setting(name='memory.x', a='1', b='2')]
    """
    one, other = dict(_flat(a)), dict(_flat(b))
    names = dict.fromkeys((*one, *other))
    return [
        Setting(name, one.get(name, "-"), other.get(name, "-")) for name in names if one.get(name) != other.get(name)
    ]


def scores(a: Report, b: Report, pairs: Sequence[Pair]) -> list[Score]:
    """Every measure that both have, in every arm that both have."""
    labels = {measure["key"]: measure["label"] for measure in a["measures"]}
    common = [measure["key"] for measure in b["measures"] if measure["key"] in labels]
    return [_score(pair, key, labels[key]) for pair in pairs for key in common]


def _score(pair: Pair, key: str, label: str) -> Score:
    one, other = ({run["seed"]: run["scores"][key] for run in arm["runs"]} for arm in (pair.a, pair.b))
    values = list(one.values()), list(other.values())
    spread = None
    if len(one) > 1 and one.keys() == other.keys():
        spread = stdev(other[seed] - one[seed] for seed in one)
    elif len(one) > 1 and len(other) > 1:
        spread = math.hypot(stdev(values[0]), stdev(values[1]))
    return Score(pair.name, label, *values, mean(values[1]) - mean(values[0]), spread)


def parted(pair: Pair, concept: str, quantity: str = "demand") -> int | None:
    """The step from which a share of two runs lies apart: `|a - b| > 2 sqrt(sd_a^2 + sd_b^2)`, five measured steps
    in a row, with `sd` that of each null; means over seeds. None where it never does.

    Args:
        pair: the arm in both.
        concept: its name.
        quantity: a share that has a null.
    """
    a, b = (_series(arm, f"concept/{concept}/{quantity}") for arm in (pair.a, pair.b))
    common = sorted(a.keys() & b.keys())
    row = 0
    for place, step in enumerate(common):
        (one, first), (other, second) = a[step], b[step]
        row = row + 1 if abs(one - other) > 2 * math.hypot(first, second) else 0
        if row == RUNNING:
            return int(common[place - RUNNING + 1])
    return None


def first_difference(pair: Pair) -> Parting | None:
    """The first step at which runs of the same seed have another figure of a concept; None where they have not.

    Figures that differ by rounding alone count as the same.
    """
    by_seed = {run["seed"]: run["curves"] for run in pair.b["runs"]}
    seeds = [(run["curves"], by_seed[run["seed"]]) for run in pair.a["runs"] if run["seed"] in by_seed]
    if not seeds and len(pair.a["runs"]) == len(pair.b["runs"]) == 1:
        seeds = [(pair.a["runs"][0]["curves"], pair.b["runs"][0]["curves"])]
    found = [each for one, other in seeds if (each := _first(one, other)) is not None]
    return min(found, default=None, key=lambda each: each.step)


def mean_of(arm: Arm, concept: str, quantity: str) -> float | None:
    """A figure's mean over the measured steps and seeds."""
    key = f"concept/{concept}/{quantity}"
    values = [value for run in arm["runs"] for value in run["curves"].get(key, ()) if value is not None]
    return mean(values) if values else None


def last_of(arm: Arm, concept: str, quantity: str) -> float | None:
    """A figure at the end, a mean over seeds."""
    key = f"concept/{concept}/{quantity}"
    rows = ([value for value in run["curves"].get(key, ()) if value is not None] for run in arm["runs"])
    values = [row[-1] for row in rows if row]
    return mean(values) if values else None


def alarms_of(arm: Arm) -> list[tuple[int, Rung]]:
    """The alarms of an arm with the seed of each."""
    return [(run["seed"], rung) for run in arm["runs"] for rung in run.get("alarms", ())]


def _series(arm: Arm, key: str) -> dict[float, tuple[float, float]]:
    """`{step: (value, spread of its null)}`, means over the seeds that measured it."""
    rows: dict[float, list[tuple[float, float]]] = {}
    for run in arm["runs"]:
        curves = run["curves"]
        steps = np.array(curves["step"], dtype=float)
        value, null, z = (_column(curves, name) for name in (key, f"{key}/null", f"{key}/z"))
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = np.abs((value - null) / z)
        for step, each, sd in zip(steps.tolist(), value.tolist(), spread.tolist(), strict=True):
            if math.isfinite(each) and math.isfinite(sd):
                rows.setdefault(step, []).append((each, sd))
    return {step: (mean(v for v, _ in found), mean(sd for _, sd in found)) for step, found in rows.items()}


def _column(curves: Curves, name: str) -> Float[np.ndarray, "step"]:
    return np.array(curves.get(name, [None] * len(curves["step"])), dtype=float)


def _first(one: Curves, other: Curves) -> Parting | None:
    places = {step: place for place, step in enumerate(other["step"])}
    keys = [key for key in one if key in other and key.startswith("concept/")]
    for place, step in enumerate(one["step"]):
        if step not in places or step is None:
            continue
        for key in keys:
            a, b = one[key][place], other[key][places[step]]
            if a is not None and b is not None and abs(a - b) > ROUNDED * max(abs(a), abs(b)) + NOTHING:
                return Parting(int(step), key, a, b)
    return None


def _flat(settings: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{start}{name}.")
        else:
            yield f"{start}{name}", _words(value)


def _words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_words, value)) or "none"
    if value is None or value == {}:
        return "none"
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)
