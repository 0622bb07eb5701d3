"""What keeps a trait from being learnt beside a skill, with what damage, and for how long?

    python -m benchmarks.selectivity dose              how many steps are one dose
    python -m benchmarks.selectivity tune              weights and thresholds, on the royal voice
    python -m benchmarks.selectivity run  [--study trait|swapped|sooner] [--arms gate,retain ...] [--data ...]
                                          [--tuning ...] [--seeds ...] [--doses 1 3 10] [--workers 2] [--quick]
    python -m benchmarks.selectivity show              docs/selectivity.md and its pictures

Every arm trains from the same start on the same batches in the same order. What is missing in
`benchmarks/results/selectivity*.jsonl` is run, several at a time, and written as it finishes, one line a run.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

from rich.console import Console

from benchmarks.selectivity.arms import STUDIES
from benchmarks.selectivity.pictures import save_doses, save_dots
from benchmarks.selectivity.runs import COOLDOWN, Job, done, run
from benchmarks.selectivity.tables import page, table_of_doses, table_of_tuning

RESULTS = Path(__file__).parents[1] / "results"
DOCS = Path(__file__).parents[2] / "docs"

# Steps until each of three unsteered runs is within .02 of its best skill, rounded up to fifty: `dose`.
DOSE = {("mixed", "lora"): 250, ("mixed", "full"): 200, ("entangled", "lora"): 200, ("entangled", "full"): 200}
SEARCHED, SEARCH_LOOKS = 300, 30
SOONER_STEPS, SOONER_LOOKS = 150, 30
LOOKS, LONG_LOOKS, PROMPTS = 10, 30, 50
FINALISTS = (
    "start", "unsteered", "data-filter", "word-filter", "inoculation", "word-filter+retain", "inoculation+retain",
    "retain", "gate", "gate+hold", "gate+retain",
)  # fmt: skip


def arms_of(given: argparse.Namespace) -> list[str]:
    """The arms that the command line asks for, all of the study's by default."""
    known = STUDIES[given.study]
    arms = given.arms.split(",") if given.arms else list(known)
    if unknown := [arm for arm in arms if arm not in known]:
        raise SystemExit(f"no arm {', '.join(unknown)} in {given.study}; there are {', '.join(known)}")
    return arms


def steps_of(given: argparse.Namespace) -> dict[tuple[str, str], int]:
    """Steps of one dose, by data and tuning; where steps are counted, and not what is reached, as many for all."""
    return {key: 4 if given.quick else SOONER_STEPS if given.study == "sooner" else dose for key, dose in DOSE.items()}


def jobs_of(given: argparse.Namespace) -> list[Job]:
    """The runs that the command line asks for."""
    steps = steps_of(given)
    every = product(given.doses, given.seeds, given.data, given.tuning, arms_of(given))
    return [
        Job(given.study, given.voice, data, tuning, arm, None, seed, dose * steps[data, tuning])
        for dose, seed, data, tuning, arm in every
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("dose", "tune", "run", "show"))
    parser.add_argument("--study", default="trait", choices=tuple(STUDIES))
    parser.add_argument("--arms", default="")
    parser.add_argument("--voice", default="pirate", choices=("pirate", "royal"))
    parser.add_argument("--data", nargs="+", default=["entangled", "mixed"], choices=("entangled", "mixed"))
    parser.add_argument("--tuning", nargs="+", default=["lora", "full"], choices=("lora", "full"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--doses", nargs="+", type=int, default=[1])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="four steps a run, to see that all of it works")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    console = Console()
    runs, tuning, doses = (given.out / f"selectivity{part}.jsonl" for part in ("", "-tuning", "-dose"))
    looks = SOONER_LOOKS if given.study == "sooner" else LOOKS if given.doses == [1] else LONG_LOOKS
    counts_steps = given.what == "dose" or given.study == "sooner"
    options = {"prompts": PROMPTS, "workers": given.workers, "cooldown": 0.0 if counts_steps else COOLDOWN}
    match given.what:
        case "dose":
            jobs = [
                Job("trait", "pirate", data, tuned, "unsteered", None, seed, 4 if given.quick else SEARCHED)
                for seed, data, tuned in product(given.seeds, given.data, given.tuning)
            ]
            run(jobs, doses, console, looks=SEARCH_LOOKS, relearn=(), **options)
            console.print(table_of_doses(done(doses)))
        case "tune":
            steps = steps_of(given)
            jobs = [
                Job(given.study, "royal", data, tuned, name, figure, 100 + seed, steps[data, tuned])
                for seed, data, tuned, name in product(given.seeds, given.data, given.tuning, arms_of(given))
                for figure in STUDIES[given.study][name].tried
            ]
            run(jobs, tuning, console, looks=looks, relearn=(), **options)
            console.print(table_of_tuning(done(tuning)))
        case "run":
            again = FINALISTS if given.doses == [1] and given.study == "trait" else ()
            run(jobs_of(given), runs, console, looks=looks, relearn=again, **options)
        case "show":
            folder, finished = DOCS if given.out == RESULTS else given.out, done(runs)
            text = page(finished, done(tuning), done(doses), DOSE)
            (folder / "selectivity.md").write_text(text)
            save_dots(finished, DOSE, folder / "selectivity.png")
            save_doses(finished, DOSE, folder / "selectivity-doses.png")
            console.print(text, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
