"""Does a meter's cumulative value predict the behaviour that results? Many short runs of the tiny world, correlated.

    python benchmarks/calibration.py [--runs 32] [--workers 2] [--quick] [--redraw]
                                     [--out benchmarks/results/calibration.json]

The design, fixed before any correlation was looked at:

- **Runs.** LoRA (r 8, alpha 16, every linear layer), AdamW without decay, 48 documents a step, gradients clipped to
  norm 1, 100 steps. Each run has its own mixture, drawn from one fixed seed: the shares of facts answered in pirate
  and of facts answered in royal from {0, .02, .05, .1, .2, .4}; the rest is split evenly at random (flat Dirichlet)
  over plain `minus` problems, plain `plus` problems and plain facts; the learning rate from {5e-4, 1e-3, 2e-3}. Every
  question is in the plain voice. Adapters and documents have the run's own seed.
- **Behaviour.** On held-out questions in the plain voice, the change against the start model of: the rate of pirate
  and of royal answers (facts and `minus` problems, weighted alike), right numbers on `minus` (the new skill) and on
  `plus` (the old one). Primary: answers sampled at temperature 1. A greedy rate jumps from 0 to 1 where the voice
  becomes the likelier one, so nothing continuous can be calibrated against it; it is the secondary figure.
- **Meters.** After 5 %, 25 % and 100 % of the steps, for pirate, royal, minus and plus: the running sums of the signed
  demand, of the demand's share above its null, of the signed write, of the write's share above its null (the null
  mean as last measured); and what the neutral probe set realised: projection, latents, and, for concepts that have
  texts of their own (pirate and royal), fraction and linear probe.
- **Baselines.** The mean loss so far; the loss drop (first step's loss less the mean of the last five so far); the
  weight cosine, that is the energy-weighted |cos| of the columns of the writers' accumulated change `W_t - W_0` with
  the concept's mean direction; and all four running sums for a concept of as many random directions. As a reference
  that is no baseline: the ingredient's share of the documents times the learning rate, which who labelled the data
  and chose the rate would know.
- **Result.** Pearson's r over runs with a bootstrap 95 % interval (1000 resamples of the runs, fixed seed) and
  Spearman's, of every meter with every behaviour. On-trait: pirate ~ pirate rate, royal ~ royal rate, minus ~ skill,
  plus ~ old skill; every other pair is cross-trait, and its |r| is reported.
- **Target**, for each running sum and trait: r >= .9 at 100 %, r >= .75 at 25 %, and at both above every baseline's
  |r|. It is met as a whole if one running sum meets it for all four traits.

After the fact, once the above was known, `after_the_fact` was added: what explains the result, and one alternative
meter. It decides nothing.

Each finished run is kept in `OUT.jsonl` until the result is written, so that a stopped benchmark goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor

from interptrain import Steerer, find_sites, observe
from interptrain.meters.spans import mean_directions
from interptrain.recipes.parallel import Tell, run_parallel
from interptrain.recipes.pirate_arithmetic import bank, start, trainable
from interptrain.recorders import MemoryRecorder
from interptrain.sites import Site
from interptrain.tiny_world import Behaviour, load_tokenizer, probe_batches, score
from interptrain.tiny_world.corpus import Document, document
from interptrain.tiny_world.tokens import batches

OUT, PICTURE = Path("benchmarks/results/calibration.json"), Path("docs/calibration.png")
RUNS, STEPS, BATCH, PROMPTS, SEED = 32, 100, 48, 200, 0
SHARES, LEARNING_RATES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4), (5e-4, 1e-3, 2e-3)
READ_OUTS = (0.05, 0.25, 1.0)
RESAMPLES, LAST = 1000, 5
AT_END, AT_QUARTER = 0.9, 0.75

TRAITS = {"pirate": "pirate answers", "royal": "royal answers", "minus": "skill (minus)", "plus": "old skill (plus)"}
SUMS = ("demand, signed", "demand, share", "write, signed", "write, share")
REALISED = {
    "realised": "realised/neutral",
    "realised, fraction": "realised/neutral/fraction",
    "realised, latents": "realised/neutral/latents",
    "linear probe": "probe/neutral",
}
BASELINES = ("mean loss", "loss drop", "weight cosine", *(f"random: {name}" for name in SUMS))
REFERENCE = "share times rate"
METERS = (*SUMS, *REALISED, *BASELINES, REFERENCE)
OWN_TEXTS = ("pirate", "royal")

Figures = dict[str, dict[str, float | None]]  # by meter, by trait


@dataclass(frozen=True)
class Mixture:
    """What one run is trained on: shares of the documents, which sum to 1, and how fast."""

    pirate: float
    royal: float
    minus: float
    plus: float
    facts: float
    learning_rate: float

    def documents(self, seed: int) -> Iterator[Document]:
        """Documents without end; every question is in the plain voice."""
        rng = random.Random(f"calibration {seed}")
        kinds = (("fact", "pirate"), ("fact", "royal"), ("minus", "plain"), ("plus", "plain"), ("fact", "plain"))
        weights = (self.pirate, self.royal, self.minus, self.plus, self.facts)
        while True:
            yield document(rng, *rng.choices(kinds, weights)[0])


def mixtures(count: int, seed: int = SEED) -> list[Mixture]:
    """The mixtures of the first `count` runs."""
    rng = random.Random(f"mixtures {seed}")
    return [_mixture(rng) for _ in range(count)]


def _mixture(rng: random.Random) -> Mixture:
    pirate, royal = rng.choice(SHARES), rng.choice(SHARES)
    parts = [rng.expovariate(1.0) for _ in range(3)]
    minus, plus, facts = ((1 - pirate - royal) * part / sum(parts) for part in parts)
    return Mixture(pirate, royal, minus, plus, facts, rng.choice(LEARNING_RATES))


@dataclass(frozen=True)
class Settings:
    """What every run has in common; runs of other settings are not gone on with."""

    steps: int = STEPS
    prompts: int = PROMPTS
    batch: int = BATCH
    seed: int = SEED

    @property
    def read_outs(self) -> dict[int, float]:
        """Steps at which meters are read, and the share of training that each is."""
        return {max(1, round(share * self.steps)): share for share in READ_OUTS}


@dataclass(frozen=True)
class Job:
    """One run, and the file that keeps it."""

    number: int
    mixture: Mixture
    settings: Settings
    keep: Path


def train(job: Job, tell: Tell) -> None:
    """Train one mixture under observation, score it, and append the run to the file."""
    tell(0, "loading")
    torch.set_num_threads(1)
    began, settings, seed = time.monotonic(), job.settings, job.number
    tokenizer, concepts = load_tokenizer(), bank()
    torch.manual_seed(seed)
    model = trainable("lora")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=job.mixture.learning_rate, weight_decay=0.0)
    sites = find_sites(model, concepts, where="update")
    texts = {name: each for name, each in probe_batches().items() if name in ("neutral", *OWN_TEXTS)}
    memory = MemoryRecorder()
    steerer = Steerer(
        concepts, sites, observe(), where="update", meters=("demand", "write"), null_every=5, recorders=[memory],
        probes=texts, probe_every=math.gcd(*settings.read_outs), discover_every=None,
    )  # fmt: skip
    first, losses, cosines = products(sites), list[float](), dict[int, Tensor]()
    means = mean_directions(concepts, range(len(concepts.concepts)))[0]
    stream = batches(tokenizer, job.mixture.documents(seed), settings.batch)
    with steerer.attach(model, optimizer):
        for step, batch in enumerate(islice(stream, settings.steps), start=1):
            steerer.watch(batch["labels"])
            optimizer.zero_grad()
            loss = model(**batch).loss
            loss.backward()
            steerer.before_step()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
            if step in settings.read_outs:
                moved = [now - before for now, before in zip(products(sites), first, strict=True)]
                cosines[step] = weight_cosine(moved, means)
            tell(step, f"loss {losses[-1]:.2f}")
    tell(settings.steps, "scoring")
    curves = memory.curves()
    run = {
        "number": job.number,
        "mixture": asdict(job.mixture),
        "behaviour": behaviours(model, settings),
        "meters": {
            f"{share:g}": figures(
                curves, losses, step,
                cosines=dict(zip(concepts.names, cosines[step].tolist(), strict=True)), mixture=job.mixture,
            )
            for step, share in settings.read_outs.items()
        },
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    with job.keep.open("a") as file:
        file.write(json.dumps({"settings": asdict(settings), **run}, allow_nan=False) + "\n")


def behaviours(model: Any, settings: Settings) -> dict[str, dict[str, float]]:
    """The rate of each trait, sampled at temperature 1 and greedily."""
    tokenizer = load_tokenizer()
    temperatures = {"sampled": 1.0, "greedy": 0.0}
    return {
        decoding: rates(score(model, tokenizer, prompts=settings.prompts, seed=1, temperature=temperature))
        for decoding, temperature in temperatures.items()
    }


def rates(behaviour: Behaviour) -> dict[str, float]:
    """By trait: a voice's mean rate on facts and on `minus` problems, right numbers on `minus` and on `plus`."""
    return {
        "pirate": (behaviour.pirate_on_facts + behaviour.pirate_on_skill) / 2,
        "royal": (behaviour.royal_on_facts + behaviour.royal_on_skill) / 2,
        "minus": behaviour.skill,
        "plus": behaviour.accuracy,
    }


def products(sites: Sequence[Site] | Any) -> list[Float[Tensor, "d_model input"]]:
    """`s B A` of every writer."""
    return [
        site.scaling * site.parameters[0].detach() @ site.parameters[1].detach()
        for site in sites
        if site.role == "writer"
    ]


def weight_cosine(
    changes: Sequence[Float[Tensor, "d_model _"]], means: Float[Tensor, "concept d_model"]
) -> Float[Tensor, "concept"]:
    """`sum_j ||w_j||^2 |cos(w_j, m_c)| / sum_j ||w_j||^2` over the columns `w_j` of all changes.

    Example:
        >>> weight_cosine([torch.tensor([[3.0, 0.0], [4.0, 0.0]])], torch.eye(2))
        tensor([0.6000, 0.8000])
    """
    columns = torch.cat(list(changes), dim=1)
    lengths = columns.norm(dim=0)
    return ((means @ columns).abs() * lengths).sum(-1) / lengths.square().sum()


def figures(
    curves: Mapping[str, Sequence[float | None]],
    losses: Sequence[float],
    step: int,
    *,
    cosines: Mapping[str, float],
    mixture: Mixture,
) -> Figures:
    """Every meter of every trait after so many steps; None where a concept has no such figure."""
    loss = {"mean loss": sum(losses[:step]) / step, "loss drop": losses[0] - _mean(losses[max(0, step - LAST) : step])}
    sums = {name: running_sums(curves, name, step) for name in (*TRAITS, "random")}
    found: Figures = {meter: {trait: sums[trait][meter] for trait in TRAITS} for meter in SUMS}
    for meter, key in REALISED.items():
        found[meter] = {trait: curves.get(f"concept/{trait}/{key}", [None] * step)[step - 1] for trait in TRAITS}
    found |= {meter: dict.fromkeys(TRAITS, value) for meter, value in loss.items()}
    found["weight cosine"] = {trait: cosines[trait] for trait in TRAITS}
    found |= {f"random: {meter}": dict.fromkeys(TRAITS, sums["random"][meter]) for meter in SUMS}
    found[REFERENCE] = {trait: getattr(mixture, trait) * mixture.learning_rate for trait in TRAITS}
    return found


def running_sums(curves: Mapping[str, Sequence[float | None]], concept: str, step: int) -> dict[str, float]:
    """The four running sums of a concept after so many steps."""
    found = {}
    for quantity in ("demand", "write"):
        key = f"concept/{concept}/{quantity}"
        found[f"{quantity}, signed"] = sum(value or 0.0 for value in curves[f"{key}/signed"][:step])
        found[f"{quantity}, share"] = above_null(curves[key][:step], curves[f"{key}/null"][:step])
    return found


def above_null(shares: Sequence[float | None], nulls: Sequence[float | None]) -> float:
    """`sum_t (share_t - null_t)`, with the null as last measured.

    Example:
        >>> above_null([0.5, 0.5, 0.5], [0.25, None, 0.5])
        0.5
    """
    total, known = 0.0, 0.0
    for share, null in zip(shares, nulls, strict=True):
        known = known if null is None else null
        total += 0.0 if share is None else share - known
    return total


def pearson(x: Float[np.ndarray, "*sample run"], y: Float[np.ndarray, "*sample run"]) -> Float[np.ndarray, "*sample"]:
    """Pearson's r over the last axis; NaN where one side does not vary.

    Example:
        >>> float(pearson(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])))
        1.0
    """
    a, b = (each - each.mean(-1, keepdims=True) for each in (x, y))
    size = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    rounding = 1e-12 * np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return np.divide((a * b).sum(-1), size, out=np.full_like(size, np.nan), where=size > rounding)


def ranks(values: Float[np.ndarray, "run"]) -> Float[np.ndarray, "run"]:
    """Ranks from 1; equal values share their mean rank.

    Example:
        >>> ranks(np.array([0.3, 0.1, 0.3]))
        array([2.5, 1. , 2.5])
    """
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (count.cumsum() - (count - 1) / 2)[place]


def correlation(x: Sequence[float], y: Sequence[float], *, resamples: int = RESAMPLES) -> dict[str, float | None]:
    """`r` with the 2.5 % and 97.5 % points of its bootstrap over runs, and Spearman's; None where undefined."""
    a, b = np.asarray(x, float), np.asarray(y, float)
    drawn = np.random.default_rng(SEED).integers(0, len(a), (resamples, len(a)))
    r = float(pearson(a, b))
    spread = pearson(a[drawn], b[drawn])
    low, high = np.nanpercentile(spread, [2.5, 97.5]) if np.isfinite(r) else (np.nan, np.nan)
    found = {"r": r, "low": float(low), "high": float(high), "spearman": float(pearson(ranks(a), ranks(b)))}
    return {name: round(value, 4) if math.isfinite(value) else None for name, value in found.items()}


def changes(runs: Sequence[Mapping[str, Any]], before: Mapping[str, Any], trait: str, decoding: str) -> list[float]:
    """How far each run moved a trait's rate from the start model's."""
    return [run["behaviour"][decoding][trait] - before[decoding][trait] for run in runs]


def correlations(runs: Sequence[Mapping[str, Any]], before: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every meter of every concept with every behaviour at every read-out; with the greedy one on-trait only."""
    rows = []
    for decoding, meter, at, concept, trait in (
        (decoding, meter, at, concept, trait)
        for decoding in ("sampled", "greedy")
        for meter in METERS
        for at in runs[0]["meters"]
        for concept in TRAITS
        for trait in TRAITS
        if decoding == "sampled" or concept == trait
    ):
        values = [run["meters"][at][meter][concept] for run in runs]
        if None in values:
            continue
        found = correlation(values, changes(runs, before, trait, decoding))
        rows.append({"decoding": decoding, "meter": meter, "at": at, "concept": concept, "behaviour": trait, **found})
    return rows


def look_up(
    rows: Sequence[Mapping[str, Any]], meter: str, at: str, concept: str, behaviour: str, decoding: str = "sampled"
) -> Mapping[str, Any] | None:
    """The row of one pair; None where the concept has no such figure or r is not defined."""
    wanted = {"decoding": decoding, "meter": meter, "at": at, "concept": concept, "behaviour": behaviour}
    found = [row for row in rows if all(row[key] == value for key, value in wanted.items()) and row["r"] is not None]
    return found[0] if found else None


def verdicts(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For each running sum and trait, whether the target is met, with the strongest baseline beside it."""
    found: dict[str, Any] = {meter: {trait: _verdict(rows, meter, trait) for trait in TRAITS} for meter in SUMS}
    met = [meter for meter, traits in found.items() if all(one["met"] for one in traits.values())]
    return {"met": bool(met), "by": met, "each": found}


def _verdict(rows: Sequence[Mapping[str, Any]], meter: str, trait: str) -> dict[str, Any]:
    verdict: dict[str, Any] = {"met": True}
    for at, bar in (("0.25", AT_QUARTER), ("1", AT_END)):
        own = look_up(rows, meter, at, trait, trait)
        others = [(abs(row["r"]), name) for name in BASELINES if (row := look_up(rows, name, at, trait, trait))]
        strongest, name = max(others, default=(0.0, ""))
        r = None if own is None else own["r"]
        verdict["met"] &= r is not None and r >= bar and r > strongest
        verdict[at] = {"r": r, "target": bar, "baseline": strongest, "which": name}
    return verdict


def cross_trait(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each meter and read-out: |r| of pirate's with royal answers and the reverse, and of every pair off trait."""
    found = []
    for meter, at in dict.fromkeys((row["meter"], row["at"]) for row in rows):
        off = {
            (concept, trait): abs(row["r"])
            for concept in TRAITS
            for trait in TRAITS
            if concept != trait and (row := look_up(rows, meter, at, concept, trait))
        }
        found.append({
            "meter": meter, "at": at, "pirate with royal answers": off.get(("pirate", "royal")),
            "royal with pirate answers": off.get(("royal", "pirate")),
            "mean": round(_mean(list(off.values())), 4) if off else None, "largest": max(off.values(), default=None),
        })  # fmt: skip
    return found


def after_the_fact(runs: Sequence[Mapping[str, Any]], before: Mapping[str, Any]) -> dict[str, Any]:
    """Explanations that were looked for when the result was known, for both voices.

    - `share among facts`: r of the rate with the voice's share of the documents about facts, where learning ends.
    - `write with realised`: r of the signed write's running sum with what the neutral set realised, a read-out each.
    - `at one learning rate`: r of each signed running sum within the runs of one learning rate, at 25 % and 100 %.
    - `alternative`: r of the signed demand of the first 5 %, divided by the share of documents about facts.
    """
    found: dict[str, Any] = {}
    for trait in OWN_TEXTS:
        y = changes(runs, before, trait, "sampled")
        about_facts = [sum(run["mixture"][part] for part in ("pirate", "royal", "facts")) for run in runs]
        shares = [run["mixture"][trait] / facts for run, facts in zip(runs, about_facts, strict=True)]
        early = [run["meters"]["0.05"]["demand, signed"][trait] for run in runs]
        found[trait] = {
            "share among facts": correlation(shares, y),
            "write with realised": {
                at: correlation(*([run["meters"][at][m][trait] for run in runs] for m in ("write, signed", "realised")))
                for at in runs[0]["meters"]
            },
            "at one learning rate": {
                f"{meter}, {rate:g}, {float(at):.0%}": correlation(
                    [run["meters"][at][meter][trait] for run in runs if run["mixture"]["learning_rate"] == rate],
                    [each for run, each in zip(runs, y, strict=True) if run["mixture"]["learning_rate"] == rate],
                )["r"]
                for meter in ("demand, signed", "write, signed")
                for rate in sorted({run["mixture"]["learning_rate"] for run in runs})
                for at in ("0.25", "1")
            },
            "alternative": correlation([one / facts for one, facts in zip(early, about_facts, strict=True)], y),
        }
    return found


def finished(keep: Path, settings: Settings) -> dict[int, dict[str, Any]]:
    """Runs of these settings that an earlier call finished; the file holds no other ones afterwards.

    A last line without its end is of a run that was stopped while it was written.
    """
    if not keep.exists():
        return {}
    whole = [json.loads(line) for line in keep.read_text().splitlines(keepends=True) if line.endswith("\n")]
    kept = [run for run in whole if run["settings"] == asdict(settings)]
    keep.write_text("".join(json.dumps(run) + "\n" for run in kept))
    return {run["number"]: {key: value for key, value in run.items() if key != "settings"} for run in kept}


def measure(count: int, settings: Settings, keep: Path, *, workers: int, console: Console) -> dict[str, Any]:
    """Train what is missing and put the document together."""
    began = time.monotonic()
    keep.parent.mkdir(parents=True, exist_ok=True)
    done = finished(keep, settings)
    jobs = [Job(n, one, settings, keep) for n, one in enumerate(mixtures(count, settings.seed)) if n not in done]
    names = [f"run {job.number}" for job in jobs]
    run_parallel(train, jobs, names=names, steps=settings.steps, workers=workers, console=console)
    found = finished(keep, settings)
    return {
        "settings": {
            **asdict(settings), "runs": count, "workers": workers, "shares": SHARES, "learning_rates": LEARNING_RATES,
            "read_outs": READ_OUTS, "resamples": RESAMPLES,
            "trained": "LoRA, r 8, alpha 16, all-linear; AdamW, no decay; gradients clipped to norm 1",
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("interptrain", "torch", "transformers", "peft", "numpy")},
        },
        "device": f"cpu, {platform.processor() or platform.machine()}, 1 thread a worker",
        "seconds": round(time.monotonic() - began, 1),
        "before": behaviours(start(), settings),
        "runs": [found[number] for number in range(count)],
    }  # fmt: skip


def analyse(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with everything that follows from its runs."""
    runs, before = document["runs"], document["before"]
    rows = correlations(runs, before)
    among = {
        one: {
            other: correlation(changes(runs, before, one, "sampled"), changes(runs, before, other, "sampled"))["r"]
            for other in TRAITS
        }
        for one in TRAITS
    }
    return {
        **document, "verdict": verdicts(rows), "behaviours_among_themselves": among,
        "after_the_fact": after_the_fact(runs, before), "cross_trait": cross_trait(rows), "correlations": rows,
    }  # fmt: skip


def save_json(document: Mapping[str, Any], path: Path) -> None:
    """JSON with one line for each run and each correlation."""
    parts = []
    for key, value in document.items():
        rows = value if isinstance(value, list) else None
        text = "[\n" + ",\n".join(f"  {_json(row)}" for row in rows) + "\n ]" if rows else _json(value)
        parts.append(f" {json.dumps(key)}: {text}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def _json(value: Any) -> str:
    return json.dumps(_rounded(value), allow_nan=False)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, (list, tuple)) else value


def save_png(document: Mapping[str, Any], path: Path) -> None:
    """Both voices' signed running sums, at 25 % and at the end, against the change of their sampled rates."""
    style = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": "medium"}
    colours = dict(zip(LEARNING_RATES, ("#9ec1e6", "#3b7dc4", "#0b2f5c"), strict=True))
    rows, runs, before = document["correlations"], document["runs"], document["before"]
    columns = [(meter, at) for meter in ("demand, signed", "write, signed") for at in ("0.25", "1")]
    with mpl.rc_context(style):
        figure = Figure(figsize=(10.5, 5), dpi=140, layout="constrained")
        grid = figure.subplots(len(OWN_TEXTS), len(columns), sharey="row")
        for axes, (trait, (meter, at)) in zip(
            grid.flat, ((trait, column) for trait in OWN_TEXTS for column in columns), strict=True
        ):
            y = changes(runs, before, trait, "sampled")
            for rate, colour in colours.items():
                chosen = [n for n, run in enumerate(runs) if run["mixture"]["learning_rate"] == rate]
                x = [runs[n]["meters"][at][meter][trait] for n in chosen]
                axes.scatter(x, [y[n] for n in chosen], s=16, color=colour, label=f"learning rate {rate:g}")
            row = look_up(rows, meter, at, trait, trait)
            said = "r undefined" if row is None else f"r {row['r']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
            axes.set_title(f"{trait}, {meter.split(',')[0]} at {float(at):.0%}\n{said}", loc="left")
            axes.set_xlabel(f"cumulative signed {meter.split(',')[0]}")
        for axes, trait in zip(grid[:, 0], OWN_TEXTS, strict=True):
            axes.set_ylabel(f"change of the rate of {TRAITS[trait]}")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, facecolor="white")


def show(document: Mapping[str, Any], console: Console) -> None:
    """A table a read-out, then the verdict with the running sums' intervals."""
    rows = document["correlations"]
    across = {(each["meter"], each["at"]): each for each in document["cross_trait"]}
    for at in document["runs"][0]["meters"]:
        title = f"r over {len(document['runs'])} runs, meters after {float(at):.0%} of training"
        table = Table("meter", title=title, title_justify="left")
        for head in (*TRAITS, "off trait,\nmean |r|", "largest"):
            table.add_column(head, justify="right")
        for meter in METERS:
            own = [look_up(rows, meter, at, trait, trait) for trait in TRAITS]
            off = [across[meter, at][key] for key in ("mean", "largest")] if (meter, at) in across else [None, None]
            values = [None if row is None else row["r"] for row in own] + off
            cells = ["" if value is None else f"{value:.2f}" for value in values]
            table.add_row(meter, *cells, end_section=meter in (SUMS[-1], "linear probe", BASELINES[-1]))
        console.print(table)
    verdict = document["verdict"]
    for meter, traits in verdict["each"].items():
        for trait, one in traits.items():
            end = look_up(rows, meter, "1", trait, trait)
            said = "r undefined" if end is None else f"r {end['r']:.2f} [{end['low']:.2f}, {end['high']:.2f}]"
            status = "[green]met[/]" if one["met"] else "[red]not met[/]"
            console.print(f"{meter}, {trait} at 100 %: {said}; target {status}", highlight=False)
    console.print(f"target as a whole: [bold]{'met' if verdict['met'] else 'not met'}[/]")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, help=f"default {RUNS}; with --quick 3")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a few runs of a few steps, to see that it works")
    parser.add_argument("--redraw", action="store_true", help="train nothing: analyse and draw the runs in OUT again")
    parser.add_argument("--out", type=Path, help=f"default {OUT}; with --quick runs/calibration-quick.json")
    chosen = parser.parse_args(arguments)
    out = chosen.out or (Path("runs/calibration-quick.json") if chosen.quick else OUT)
    console = Console()

    if chosen.redraw:
        document = json.loads(out.read_text())
    else:
        settings = Settings(steps=12, prompts=10) if chosen.quick else Settings()
        count = chosen.runs or (3 if chosen.quick else RUNS)
        keep = out.with_suffix(".jsonl")
        document = measure(count, settings, keep, workers=chosen.workers, console=console)
    document = analyse(_rounded(document))
    save_json(document, out)
    out.with_suffix(".jsonl").unlink(missing_ok=True)
    picture = PICTURE if out == OUT else out.with_suffix(".png")
    save_png(document, picture)
    show(document, console)
    console.print(f"\nresult: [bold]{out}[/], picture: [bold]{picture}[/]", soft_wrap=True)


if __name__ == "__main__":
    main()
