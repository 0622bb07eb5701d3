"""Are planted concepts found, and does adding what was found do what its name says?

    python benchmarks/find_concepts.py [--seeds 5] [--out benchmarks/results/find_concepts.json]

In the tiny world pirate, royal and arithmetic are planted. `interptrain concepts find` searches texts in the wordings
of one half and is tested on those of the other, once a seed, at both of the world's SAEs. What each method found is
then taken to *other* prompts (plain questions about facts, drawn apart) at the place and scale that the search chose,
and judged by the world's own scorer, which the search never sees: the shares of answers with a pirate's word, with a
royal one, and with a number. Beside it, on the same prompts: the model as it is, and random directions of the same
length.

    own        the share of answers that show the concept that was added, by the scorer
    others     the shares of the two others
    formed     the share that is still language, by the search's own bar
    same       directions of the stream once more, all by one length: a probe's own gap is short
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import random
import subprocess
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.nn.functional import normalize

from interptrain import ConceptBank, cli, tiny_world
from interptrain.commands.concepts_reading import read_texts
from interptrain.commands.concepts_trials import Trials
from interptrain.concepts.candidates import methods
from interptrain.concepts.steer_generation import adding, gap
from interptrain.concepts.well_formed import Bar
from interptrain.recipes.examples import Example
from interptrain.recipes.loading import TINY_WORLD, ModelChoice, load_tokenizer
from interptrain.recipes.voice import Voice
from interptrain.tiny_world.concepts import CONTRASTS, draw
from interptrain.tiny_world.corpus import document
from interptrain.tiny_world.sae import HOOK, OUTPUT_HOOK
from interptrain.tiny_world.score import number_said, speaks

CONCEPTS = ("pirate", "royal", "arithmetic")
TEXTS, PROMPTS, TOKENS, CONTROLS = 150, 64, 24, 3
SCORES = {
    "pirate": lambda answer: speaks(answer, "pirate"),
    "royal": lambda answer: speaks(answer, "royal"),
    "arithmetic": lambda answer: number_said(answer) is not None,
}


def write_texts(folder: Path, name: str, seed: int) -> dict[str, Path]:
    files = {}
    for half in ("search", "test"):
        for side, texts in zip(("positive", "negative"), CONTRASTS[name], strict=True):
            flag = side if half == "search" else f"test-{side}"
            files[flag] = folder / f"{name}-{seed}-{flag}.jsonl"
            rows = [{"prompt": d.prompt, "completion": f" {d.answer}"} for d in draw(texts, half, seed, count=TEXTS)]
            files[flag].write_text("\n".join(map(json.dumps, rows)))
    facts = random.Random(f"steer on {seed}")
    files["prompts"] = folder / f"prompts-{seed}.jsonl"
    asked = [{"text": document(facts, "fact").prompt} for _ in range(64)]
    files["prompts"].write_text("\n".join(map(json.dumps, asked)))
    return files


def search(folder: Path, name: str, seed: int, hook: str) -> tuple[Path, dict[str, Any]]:
    out = folder / f"{name}-{seed}-{hook}"
    files = [each for flag, path in write_texts(folder, name, seed).items() for each in (f"--{flag}", str(path))]
    status = cli.main([
        "concepts", "find", "--model", TINY_WORLD, "--sae", TINY_WORLD, "--sae-id", hook, "--name", name, "--out",
        str(out), "--tokens", str(TOKENS), "--controls", "1", "--seed", str(seed), *files,
    ])  # fmt: skip
    assert status == 0
    return out, json.loads((out / "found.json").read_text())


def fresh(voice: Voice, seed: int) -> list[Example]:
    rng = random.Random(f"judge on {seed}")
    return [Example(document(rng, "fact").prompt, "") for _ in range(PROMPTS)]


def scored(said: list[str], trials: Trials) -> dict[str, float]:
    found = {name: mean(map(float, map(score, said))) for name, score in SCORES.items()}
    return found | {"well-formed": trials.judged(said).well_formed}


def judged(voice: Voice, bank: ConceptBank, best: dict[str, Any], bar: Bar, seed: int) -> dict[str, Any]:
    """What the scorer says of answers to fresh prompts: as the model is, with the direction, with random ones."""
    hook, asked = bank.hooks[0], fresh(voice, seed)
    trials = Trials(voice, hook, asked, (), bar, TOKENS)
    direction = normalize(bank.directions.sum(0), dim=0)
    drawn = torch.Generator().manual_seed(1000 + seed)
    randoms = [normalize(torch.randn(bank.d_model, generator=drawn), dim=0) for _ in range(CONTROLS)]

    def said(vector: torch.Tensor) -> list[str]:
        with adding(voice.model, hook, best["length"] * vector, best["place"]):
            return voice.answers(asked, tokens=TOKENS)

    before, steered = voice.answers(asked, tokens=TOKENS), said(direction)
    controls = [scored(said(each), trials) for each in randoms]
    return {
        "before": scored(before, trials), "added": scored(steered, trials),
        "random": {key: mean(each[key] for each in controls) for key in controls[0]},
        "samples": [[each.prompt, *pair] for each, *pair in zip(asked[:3], before[:3], steered[:3], strict=True)],
    }  # fmt: skip


def one(folder: Path, voice: Voice, name: str, seed: int, hook: str) -> dict[str, Any]:
    out, document = search(folder, name, seed, hook)
    bar = Bar(**document["bar"])
    found: dict[str, Any] = {"recommended": document["recommended"], "methods": {}}
    for method, each in document["methods"].items():
        kept = {"auc": None, "gain": each["gain"], "refused": each["refused"]}
        if each["held_out"] is not None:
            kept |= each["held_out"]
        if each["best"] is not None:
            best = each["best"]
            bank = ConceptBank.load(out / method)
            kept |= {"place": best["place"], "scale": best["scale"], "share": best["share"]}
            kept["judged"] = judged(voice, bank, best, bar, seed)
        found["methods"][method] = kept
    found["markers"] = document["markers"]["words"]
    return found


def same_length(voice: Voice, name: str, seed: int) -> dict[str, float]:
    """What the directions in the stream do at one length and place: two gaps of the method that works here.

    A probe's own gap is short, so that gaps alone do not say whether it would do more if it were longer.
    """
    texts = [
        [Example(d.prompt, f" {d.answer}") for d in draw(each, "search", seed, count=TEXTS)] for each in CONTRASTS[name]
    ]
    search = [read_texts(voice, HOOK, None, each)[0] for each in texts]
    every = {method: find(*search) for method, find in methods(None, group=1, sparse_counts=()).items()}
    place, best = ("throughout", "means") if name == "arithmetic" else ("start", "start-means")
    sides = [each.means if place == "throughout" else each.starts for each in search]
    length = 2 * gap(every[best].direction, *sides)
    found = {}
    for method, candidate in every.items():
        with adding(voice.model, HOOK, length * candidate.direction, place):
            said = voice.answers(fresh(voice, seed), tokens=TOKENS)
        found[method] = mean(map(float, map(SCORES[name], said)))
    return found


def spread(values: list[float]) -> dict[str, float]:
    return {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else 0.0, "least": min(values)}


def null(pairs: list[list[float]]) -> dict[str, float]:
    """The mean of a null over its draws and seeds, and how far its draws lie apart within a seed."""
    return {"mean": mean(pair[0] for pair in pairs), "sd": mean(pair[1] for pair in pairs)}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Over the seeds: what was recommended, and each method's figures."""
    every: dict[str, Any] = {}
    for method in runs[0]["methods"]:
        each = [run["methods"][method] for run in runs if run["methods"][method]["auc"] is not None]
        steered = [one for one in each if "judged" in one]
        if not steered:  # found in no seed, or without a gap to scale by
            continue
        every[method] = {
            "seeds": len(each), "auc": spread([one["auc"] for one in each]),
            "auc_shuffled": null([one["shuffled"] for one in each]),
            "auc_random": null([one["random"] for one in each]),
            "places": [[one["place"], one["scale"]] for one in steered],
            "gain": spread([one["gain"] for one in steered]),
            **{state: {key: spread([one["judged"][state][key] for one in steered]) for key in (*SCORES, "well-formed")}
               for state in ("before", "added", "random")},
        }  # fmt: skip
    chosen = [run["methods"][run["recommended"]] | {"method": run["recommended"]} for run in runs if run["recommended"]]
    taken = {
        "methods": [run["recommended"] for run in runs], "none": sum(run["recommended"] is None for run in runs),
    }  # fmt: skip
    if chosen:
        taken |= {
            "auc": spread([each["auc"] for each in chosen]),
            "share": spread([each["share"] for each in chosen]),
            **{state: {key: spread([each["judged"][state][key] for each in chosen]) for key in (*SCORES, "well-formed")}
               for state in ("before", "added", "random")},
        }  # fmt: skip
    return {"recommended": taken, "methods": every, "runs": runs}


def show(found: dict[str, Any], console: Console) -> None:
    for hook, concepts in found["hooks"].items():
        heads = "concept", "method", "AUC", "shuffled", "random", "before", "added", "random dir.", *SCORES, "formed"
        table = Table(*heads, title=hook)
        for name, each in concepts.items():
            table.add_row(name, "recommended: " + ", ".join(map(str, each["recommended"]["methods"])))
            for method, row in each["methods"].items():
                cell = [f"{row[key]['mean']:.3f}±{row[key]['sd']:.3f}" for key in ("auc", "auc_shuffled", "auc_random")]
                own = [f"{row[state][name]['mean']:.2f}" for state in ("before", "added", "random")]
                table.add_row("", method, *cell, *own,
                              *(f"{row['added'][key]['mean']:.2f}" for key in (*SCORES, "well-formed")))  # fmt: skip
        console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--concepts", nargs="+", default=CONCEPTS, choices=CONCEPTS)
    parser.add_argument("--hooks", nargs="+", default=(HOOK, OUTPUT_HOOK))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    voice = Voice(tiny_world.load_base(), load_tokenizer(ModelChoice(TINY_WORLD)), 512, 32)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "sae-lens")}
    found: dict[str, Any] = {
        "device": "cpu", "threads": 1, "versions": {"python": platform.python_version(), **versions},
        "commit": commit.stdout.strip(), "seeds": options.seeds, "texts": TEXTS, "prompts": PROMPTS, "hooks": {},
    }  # fmt: skip
    found["same_length"] = {
        name: [same_length(voice, name, seed) for seed in range(options.seeds)] for name in options.concepts
    }
    with tempfile.TemporaryDirectory() as folder:
        for hook in options.hooks:
            found["hooks"][hook] = {}
            for name in options.concepts:
                runs = [one(Path(folder), voice, name, seed, hook) for seed in range(options.seeds)]
                found["hooks"][hook][name] = summary(runs)
                if options.out is not None:
                    options.out.write_text(json.dumps(found, indent=1) + "\n")
    show(found, Console(width=160))


if __name__ == "__main__":
    main()
