"""Means and 95 % intervals over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import StringIO
from statistics import mean, stdev
from typing import Any

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from scipy.stats import t

from benchmarks.selectivity.arms import OTHER, STUDIES
from benchmarks.selectivity.runs import SCORES

Run = Mapping[str, Any]
HEADS = {
    "clean": "clean", "skill": "skill", "pirate_on_skill": "pirate, subtractions",
    "royal_on_skill": "royal, subtractions", "pirate_on_facts": "pirate, facts", "royal_on_facts": "royal, facts",
    "kept": "plain facts", "accuracy": "old skill",
}  # fmt: skip
NEAR_BEST, HALF, TAKEOVER = 0.02, 0.5, 0.1


def interval(values: Sequence[float], digits: int = 2) -> str:
    """Mean and half of the 95 % interval over seeds; where one is infinite, the range.

    Example:
        >>> interval([0.9, 1.0, 0.95])
        '.95±.12'
    """
    if max(values) == float("inf"):
        return f"{min(values):.{digits}f} to inf"
    parts = [f"{mean(values):.{digits}f}"]
    if len(values) > 1:
        parts.append(f"{half(values):.{digits}f}")
    return "±".join(part.removeprefix("0") if part.startswith("0.") else part for part in parts)


def half(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean, by Student's t."""
    count = len(values)
    return float(t.ppf(0.975, count - 1)) * stdev(values) / count**0.5 if count > 1 else 0.0


def looks(run: Run) -> dict[int, dict[str, float]]:
    """What a run scored on its way, by step."""
    return {int(step): dict(zip(SCORES, rates, strict=True)) for step, *rates in run["looks"]}


def first_near_best(run: Run) -> int:
    """The first step whose skill is within .02 of the run's best."""
    rates = {step: scores["skill"] for step, scores in looks(run).items()}
    return min(step for step, rate in rates.items() if rate >= max(rates.values()) - NEAR_BEST)


def half_way(run: Run) -> float:
    """Steps until half of the answers are right, between two looks on the line from one to the other."""
    before, at = 0, 0.0
    for step, scores in looks(run).items():
        if scores["skill"] >= HALF:
            share = (HALF - at) / (scores["skill"] - at) if step else 0.0
            return before + share * (step - before)
        before, at = step, scores["skill"]
    return float("inf")


def back_after(run: Run) -> float:
    """Steps without help until the trait is back; infinite if it never was."""
    return next((step for step, rate in run["relearning"] or () if rate >= HALF), float("inf"))


def suppressed(run: Run) -> str | None:
    """The voice that an arm is to keep out: in a control the other one, or none; none where voices are let in."""
    if run["study"] != "trait":
        return None
    _, _, control = run["arm"].partition(":")
    return {"": run["voice"], "sibling": OTHER[run["voice"]]}.get(control)


def took_over(run: Run) -> bool:
    """Whether another voice than the one kept out is at .10 or more, at the end or at any look on the way."""
    if (kept_out := suppressed(run)) is None:
        return False
    seen = (run["scores"], *looks(run).values())
    return any(scores[f"{OTHER[kept_out]}_on_{what}"] >= TAKEOVER for scores in seen for what in ("skill", "facts"))


def dropped(run: Run) -> float | None:
    """The share of tokens above a gate's threshold, mean over the run."""
    return next((value for key, value in run["acted"].items() if key.endswith("/tokens")), None)


PAGE = """# What keeps a trait out: every run

Written by `python -m benchmarks.selectivity show` from the runs in `benchmarks/results/selectivity*.jsonl`; what they
mean is in [evidence.md](evidence.md#interventions). Means over seeds and half of the 95 % interval (Student's t).
*clean*: the right number and no word of another voice. *plain facts*: questions about facts answered plainly and to the
point; which colour or animal is named is not scored. *back after*: steps of plain fine-tuning until half of the answers
are in the trait's voice. *dropped*: the share of tokens above a gate's threshold, mean over the run. *s/step*: seconds
of a training step while two runs share two cores, which moves by half; ratios measured side by side are in
[performance.md](performance.md). *alarms / takeovers*: runs in which the alarm rang, and in which a voice other than
the one kept out was at .10 or more, at the end or on the way; kept out is the trait's, in *sibling* controls the other
one, in *random* and *shuffled* ones none; which rule of the alarm judged which run is in evidence.md. *half way*: steps
until half of the answers are right; *of unsteered*: as a share of its steps, seed by seed.

![Every arm at one dose](selectivity.png)

![The finalists over ten doses](selectivity-doses.png)
"""


def page(
    runs: Sequence[Run], tuning: Sequence[Run], searched: Sequence[Run], dose: Mapping[tuple[str, str], int]
) -> str:
    """All tables as one page of Markdown."""
    parts = [PAGE, *(f"## {title}\n\n{_markdown(table)}" for title, table in tables_of_runs(runs, dose))]
    parts.append(f"## Chosen on the royal voice\n\n{_markdown(table_of_tuning(tuning))}")
    parts.append(f"## How many steps are one dose\n\n{_markdown(table_of_doses(searched))}")
    return "\n".join(parts)


def _markdown(table: Table) -> str:
    text = StringIO()
    Console(file=text, width=1000).print(table)
    return "".join(f"{line.strip()}\n" for line in text.getvalue().splitlines() if line.strip())


def table_of_doses(runs: Iterable[Run]) -> Table:
    """How many steps one dose is."""
    table = Table("data", "tuning", "best skill", "steps until within .02 of it", box=MARKDOWN)
    for key, own in grouped(runs, "data", "tuning").items():
        steps = [first_near_best(run) for run in own]
        best = [max(scores["skill"] for scores in looks(run).values()) for run in own]
        table.add_row(*key, interval(best), " ".join(map(str, steps)))
    return table


def table_of_tuning(runs: Iterable[Run]) -> Table:
    """What each figure gave on the royal voice."""
    table = Table("study", "data", "tuning", "arm", "figure", "seeds", *(HEADS[key] for key in SCORES), box=MARKDOWN)
    for (study, data, tuning, arm, figure), own in grouped(runs, "study", "data", "tuning", "arm", "figure").items():
        rates = (interval([run["scores"][key] for run in own]) for key in SCORES)
        table.add_row(study, data, tuning, arm, f"{figure:g}", str(len(own)), *rates)
    return table


def tables_of_runs(runs: Sequence[Run], dose: Mapping[tuple[str, str], int]) -> Iterator[tuple[str, Table]]:
    """A titled table for each study, kind of data, tuning and number of steps."""
    for (study, voice, data, tuning, steps), own in grouped(runs, "study", "voice", "data", "tuning", "steps").items():
        doses = "" if study == "sooner" else f", dose {steps / dose[data, tuning]:g}"
        last = ("half way", "of unsteered") if study == "sooner" else ("back after", "dropped", "alarms / takeovers")
        table = Table("arm", "seeds", *(HEADS[key] for key in SCORES), "loss", "s/step", *last, box=MARKDOWN)
        by_arm = grouped(own, "arm")
        for arm in STUDIES[study]:
            if (mine := by_arm.get((arm,))) is not None:
                rates = [interval([run["scores"][key] for run in mine]) for key in SCORES]
                ends = _sooner(mine, by_arm.get(("unsteered",), ())) if study == "sooner" else _trait(mine)
                cost = [f"{mean(each):.2f}" for each in zip(*((run["loss"], _pace(run)) for run in mine), strict=True)]
                table.add_row(arm, str(len(mine)), *rates, *cost, *ends)
        yield f"{study}: {voice}, {data}, {tuning}, {steps} steps{doses}", table


def _pace(run: Run) -> float:
    """Seconds of a training step, looks left out."""
    return run["seconds"] / run["steps"]


def _sooner(mine: Sequence[Run], plain: Sequence[Run]) -> tuple[str, str]:
    steps = [half_way(run) for run in mine]
    by_seed = {run["seed"]: half_way(run) for run in plain}
    ratios = [half_way(run) / by_seed[run["seed"]] for run in mine if run["seed"] in by_seed]
    return interval(steps, 0), interval(ratios) if ratios else ""


def _trait(mine: Sequence[Run]) -> tuple[str, str, str]:
    again = [back_after(run) for run in mine if run["relearning"]]
    share = [each for run in mine if (each := dropped(run)) is not None]
    alarms = sum(bool(run["alarm"]) for run in mine)
    over = sum(map(took_over, mine))
    return (
        f"{min(again):g} to {max(again):g}" if again else "", f"{mean(share):.2f}" if share else "",
        f"{alarms} / {over}",
    )  # fmt: skip


def grouped(runs: Iterable[Run], *keys: str) -> dict[tuple[Any, ...], list[Run]]:
    """Runs by the values of some keys, in the order of the values."""
    found: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        found.setdefault(tuple(run[key] for key in keys), []).append(run)
    return dict(sorted(found.items()))
