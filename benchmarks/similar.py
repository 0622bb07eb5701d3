"""How well a handful of examples finds its skill in a corpus: by gradients, by concepts, by words, by activations.

    python benchmarks/similar.py [--seeds 5] [--shares | --scale] [--out benchmarks/results/similar.json]

A corpus of 5,000 documents of the tiny world's base, all in one half of the wordings, holds 5 % of a skill; sixteen
examples of it in the other half of the wordings ask for it. The figure is the precision of the top 5 %, which here is
the recall too.

    minus    subtractions, among facts and sums in three voices: words give it away
    pirate   facts and sums answered in pirate, among plain and royal ones: the two halves share next to no word of it
    wrong    sums with a wrong result, among facts and right sums: the same words
    royal    as pirate; no choice was made looking at it

Choices (ridge, energy, no Adam, the sample's size) were made on seed 0 of the first three, which is reported apart.
The documents of a seed are drawn once, and each skill's corpus from them; Adam's moments are of a sample of all.
`--shares` asks for skills of 1 to 50 %, in smaller corpora. `--scale` runs the command itself on 500, 5,000 and 20,000
documents, each in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from interptrain import tiny_world
from interptrain.similarity import (
    ConceptDemands,
    SecondMoments,
    Sketch,
    cosine,
    features,
    linear_layers,
    read_gradients,
    whitened,
)
from interptrain.sites import HookPoint
from interptrain.tiny_world.corpus import Document, document
from interptrain.tiny_world.sae import HOOK, OUTPUT_HOOK
from interptrain.tiny_world.tokens import encode
from interptrain.tiny_world.wordings import Half

DOCUMENTS, SHARE, QUERIES, SAMPLE, BATCH = 5000, 0.05, 16, 512, 32
SKILLS = ("minus", "pirate", "wrong", "royal")
CHOSEN_ON = ("minus", "pirate", "wrong")
TOP = round(DOCUMENTS * SHARE)
SHARES = {0.01: 45, 0.05: 225, 0.2: 250, 0.5: 250}  # of the skill, and documents that show it
POOL = {"plain fact": 2500, "plain plus": 2000, "pirate": 700, "royal": 700, "minus": TOP, "wrong": TOP}


def draw(rng: random.Random, group: str, half: Half) -> Document:
    match group:
        case "minus":
            return document(rng, "minus", half=half)
        case "wrong":
            while True:
                found = document(rng, "plus", half=half, random_result=True)
                if found.number is None or " ".join(str(found.number)) not in found.answer:
                    return found
        case "pirate" | "royal":
            return document(rng, rng.choice(["fact", "plus"]), group, half=half)
        case _:
            return document(rng, "fact" if group == "plain fact" else "plus", half=half)


class HiddenStates:
    """The baseline: the mean activation over the tokens that predict a label."""

    def __init__(self, hook: str) -> None:
        self._hook = HookPoint.parse(hook)

    def attach(self, model: nn.Module, counted: Tensor) -> Sequence[Any]:
        def receive(h: Tensor) -> None:
            self._found = (h.detach() * counted[..., None]).sum(1) / counted.sum(1, keepdim=True)

        return [self._hook.listen(model, receive)]

    def read(self) -> Tensor:
        return self._found


def batches(documents: Sequence[Document]) -> Iterable[dict[str, Tensor]]:
    tokenizer = tiny_world.load_tokenizer()
    for start in range(0, len(documents), BATCH):
        yield encode(tokenizer, documents[start : start + BATCH])


def readers_for(model: nn.Module, sample: Sequence[Document], *, all_of_them: bool) -> dict[str, Any]:
    layers = linear_layers(model)
    moments = SecondMoments(layers)
    for batch in batches(sample):
        read_gradients(model, batch, [moments])
    rows = {hook: normalize(tiny_world.load_sae(hook=hook).W_dec.detach(), dim=-1) for hook in (HOOK, OUTPUT_HOOK)}
    bank = tiny_world.concept_bank(hook=OUTPUT_HOOK)
    found: dict[str, Any] = {
        "gradient": Sketch(layers, 64),
        "gradient, adam": Sketch(layers, 64, scales=moments.read()),
        "concepts": ConceptDemands({OUTPUT_HOOK: rows[OUTPUT_HOOK]}),
        "concepts, layer 2": ConceptDemands({HOOK: rows[HOOK]}),
        "concepts, bank of 5": ConceptDemands({OUTPUT_HOOK: bank.directions}),
        "activations": HiddenStates(HOOK),
    }
    if all_of_them:
        found |= {
            "gradient, k 32": Sketch(layers, 32),
            "gradient, k 128": Sketch(layers, 128),
            "gradient, head too": Sketch(linear_layers(model, ["*"]), 64),
            "concepts, positive": ConceptDemands({OUTPUT_HOOK: rows[OUTPUT_HOOK]}, measure="positive"),
            "concepts, signed": ConceptDemands({OUTPUT_HOOK: rows[OUTPUT_HOOK]}, measure="signed"),
        }
    return found


@torch.no_grad()
def mean_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The baseline that knows no examples: how surprised the model is by each document, a token."""
    labels = batch["labels"][:, 1:]
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    return cross_entropy(logits.mT, labels, reduction="none").sum(-1) / (labels != -100).sum(-1)


def precision(scores: Tensor, own: Tensor) -> float:
    return float(own[scores.topk(TOP).indices].float().mean())


def mean_of_units(query: Tensor, sample: Tensor) -> Callable[[Tensor], Tensor]:
    """LESS's score: the cosine to the mean of the unit gradients."""
    towards = normalize(query, dim=-1).mean(0)
    return lambda found: normalize(found, dim=-1) @ towards


def nearest(query: Tensor, sample: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda found: (normalize(found, dim=-1) @ normalize(query, dim=-1).T).amax(-1)


def centred(query: Tensor, sample: Tensor) -> Callable[[Tensor], Tensor]:
    mean = normalize(sample, dim=-1).mean(0)
    towards = normalize(normalize(query, dim=-1) - mean, dim=-1).mean(0)
    return lambda found: normalize(normalize(found, dim=-1) - mean, dim=-1) @ towards


RULES: dict[str, Any] = {
    "whitened": whitened, "standardised": cosine, "mean": mean_of_units, "max": nearest, "centred mean": centred,
}  # fmt: skip
RIDGES = (1.0, 3.0, 5.0, 10.0)


def lexical(query: Sequence[str], corpus: Sequence[str]) -> dict[str, Tensor]:
    vectors = TfidfVectorizer(token_pattern=r"\S+").fit(corpus)
    alike = torch.tensor((vectors.transform(corpus) @ vectors.transform(query).T).toarray())
    return {"TF-IDF, mean": alike.mean(1), "TF-IDF, max": alike.amax(1), "BM25": bm25(query, corpus)}


def bm25(query: Sequence[str], corpus: Sequence[str], k: float = 1.5, b: float = 0.75) -> Tensor:
    """Okapi BM25 with all examples' words as the query."""
    counts = [Counter(text.split()) for text in corpus]
    seen = Counter(word for each in counts for word in each)
    mean = statistics.mean(sum(each.values()) for each in counts)
    rarity = {word: math.log(1 + (len(corpus) - n + 0.5) / (n + 0.5)) for word, n in seen.items()}
    asked = Counter(word for text in query for word in text.split())
    found = []
    for each in counts:
        size = k * (1 - b + b * sum(each.values()) / mean)
        found.append(sum(asked[w] * rarity[w] * n * (k + 1) / (n + size) for w, n in each.items() if w in asked))
    return torch.tensor(found)


def corpus_of(
    skill: str, groups: Sequence[str], rng: random.Random, *, own: int = TOP, documents: int = DOCUMENTS
) -> tuple[list[int], Tensor]:
    """Numbers of the pool's documents, shuffled, and which of them show the skill."""
    showing = [number for number, group in enumerate(groups) if group == skill]
    barred = {"minus": {"wrong"}, "wrong": {"minus"}, "pirate": {"wrong"}, "royal": {"wrong"}}[skill]
    others = [number for number, group in enumerate(groups) if group != skill and group not in barred]
    chosen = rng.sample(showing, own) + rng.sample(others, documents - own)
    rng.shuffle(chosen)
    mine = set(showing)
    return chosen, torch.tensor([number in mine for number in chosen])


def one_seed(seed: int) -> list[dict[str, Any]]:
    model, rng = tiny_world.load_base(), random.Random(f"similar {seed}")
    groups = [group for group, count in POOL.items() for _ in range(count)]
    pool = [draw(rng, group, "test") for group in groups]
    asked = {skill: [draw(rng, skill, "search") for _ in range(QUERIES)] for skill in SKILLS}
    readers = readers_for(model, rng.sample(pool, SAMPLE), all_of_them=seed == 0)
    start = time.perf_counter()
    whole = features(model, batches(pool), readers)
    taken = time.perf_counter() - start
    losses = torch.cat([mean_loss(model, batch) for batch in batches(pool)])
    queries = {skill: features(model, batches(asked[skill]), readers) for skill in SKILLS}
    rows = []
    for skill in SKILLS:
        chosen, own = corpus_of(skill, groups, rng)
        texts = [pool[number].text for number in chosen]
        sampled = rng.sample(range(DOCUMENTS), SAMPLE)
        there = {name: found[chosen] for name, found in whole.items()}
        other = SKILLS[(SKILLS.index(skill) + 1) % len(SKILLS)]
        scores: dict[str, Tensor] = {}
        for name, found in there.items():
            query, sample = queries[skill][name], found[sampled]
            for rule, make in RULES.items():
                scores[f"{name} | {rule}"] = make(query, sample)(found)
            if seed == 0:
                for ridge in RIDGES:
                    scores[f"{name} | ridge {ridge:g}"] = whitened(query, sample, ridge=ridge)(found)
                scores[f"{name} | sample 128"] = whitened(query, sample[:128])(found)
            if name in ("gradient", "concepts"):
                scores[f"{name} | 4 examples"] = whitened(query[:4], sample)(found)
                scores[f"{name} | asked for another skill"] = whitened(queries[other][name], sample)(found)
                strangers = rng.sample((~own).nonzero()[:, 0].tolist(), QUERIES)
                scores[f"{name} | asked for other documents"] = whitened(found[strangers], sample)(found)
        scores["both | whitened"] = scores["gradient | whitened"] + scores["concepts | whitened"]
        less = whitened(queries[skill]["gradient"], there["gradient, adam"][sampled])
        scores["gradient, adam on the corpus alone | whitened"] = less(there["gradient, adam"])
        for name, found in lexical([each.text for each in asked[skill]], texts).items():
            scores[name] = found
        scores["loss"] = losses[chosen]
        scores["random"] = torch.rand(DOCUMENTS, generator=torch.Generator().manual_seed(seed))
        both = [scores[f"{name} | whitened"] for name in ("gradient", "concepts")]
        tops = [set(each.topk(TOP).indices.tolist()) for each in both]
        rows.append({
            "seed": seed, "skill": skill, "seconds": taken,
            "precision": {name: precision(found, own) for name, found in scores.items()},
            "spearman": float(spearmanr(*(each.numpy() for each in both)).statistic),
            "overlap": len(tops[0] & tops[1]) / TOP,
        })  # fmt: skip
    return rows


def by_share(seed: int) -> list[dict[str, Any]]:
    """The same where the skill is rarer or more common, in smaller corpora."""
    model, rng = tiny_world.load_base(), random.Random(f"similar shares {seed}")
    groups = [group for group, count in POOL.items() for _ in range(count)]
    pool = [draw(rng, group, "test") for group in groups]
    rows = normalize(tiny_world.load_sae(hook=OUTPUT_HOOK).W_dec.detach(), dim=-1)
    readers = {"gradient": Sketch(linear_layers(model), 64), "concepts": ConceptDemands({OUTPUT_HOOK: rows})}
    whole, found = features(model, batches(pool), readers), []
    for skill in SKILLS:
        asked = features(model, batches([draw(rng, skill, "search") for _ in range(QUERIES)]), readers)
        for share, count in SHARES.items():
            chosen, own = corpus_of(skill, groups, rng, own=count, documents=round(count / share))
            sampled = rng.sample(range(len(chosen)), min(SAMPLE, len(chosen)))
            for name in readers:
                there = whole[name][chosen]
                for rule in ("whitened", "standardised"):
                    scores = RULES[rule](asked[name], there[sampled])(there)
                    figure = float(own[scores.topk(count).indices].float().mean())
                    found.append({"seed": seed, "skill": skill, "share": share, "documents": len(chosen),
                                  "method": f"{name} | {rule}", "precision": figure})  # fmt: skip
    return found


def scale(sizes: Sequence[int], skill: str = "minus") -> list[dict[str, Any]]:
    """The command on corpora of different sizes, each in a process of its own."""
    rng, found = random.Random(0), []
    with tempfile.TemporaryDirectory() as folder:
        query = Path(folder, "few.jsonl")
        query.write_text("\n".join(row(draw(rng, skill, "search"), skill) for _ in range(QUERIES)))
        for size in sizes:
            corpus, out = Path(folder, f"{size}.jsonl"), Path(folder, f"out{size}")
            own = round(size * SHARE)
            groups = rng.choices(["plain fact", "plain plus", "pirate", "royal"], [5, 4, 1.4, 1.4], k=size - own)
            lines = [row(draw(rng, group, "test"), group) for group in [skill] * own + groups]
            rng.shuffle(lines)
            corpus.write_text("\n".join(lines))
            subprocess.run(
                [sys.executable, "-m", "interptrain", "similar", "--model", "tiny-world", "--query", str(query),
                 "--corpus", str(corpus), "--out", str(out), "--sae", "tiny-world", "--sae-id", OUTPUT_HOOK,
                 "--label-column", "skill", "--label", skill, "--batch", str(BATCH)],
                check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            said = json.loads((out / "summary.json").read_text())
            keys = ("documents", "seconds", "documents_per_second", "peak_memory", "precision")
            found.append({key: said[key] for key in keys} | {"corpus_bytes": corpus.stat().st_size})
    return found


def row(each: Document, group: str) -> str:
    prompt, answer = each.text.removesuffix(" <e>").split(" <a> ")
    return json.dumps({"prompt": f"{prompt} <a>", "completion": f" {answer}", "skill": group})


def show(rows: Sequence[dict[str, Any]], title: str) -> None:
    table = Table("", *SKILLS, title=title, title_justify="left")
    for name in rows[0]["precision"]:
        cells = []
        for skill in SKILLS:
            values = [each["precision"][name] for each in rows if each["skill"] == skill and name in each["precision"]]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.2f}{spread}" if values else "")
        table.add_row(name, *cells)
    Console(width=130).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="after seed 0, on which the choices were made")
    parser.add_argument("--scale", action="store_true", help="time and memory of the command, by the corpus' size")
    parser.add_argument("--shares", action="store_true", help="where the skill is rarer or more common")
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 5000, 20000])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/similar.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    written = json.loads(options.out.read_text()) if options.out.exists() else {}
    if options.scale:
        written["scale"] = scale(options.sizes)
        Console().print_json(data=written["scale"])
    elif options.shares:
        written["shares"] = [row for seed in range(1, options.seeds + 1) for row in by_share(seed)]
        table = Table("", "share", *SKILLS)
        for name, share in product(dict.fromkeys(row["method"] for row in written["shares"]), SHARES):
            mine = [row for row in written["shares"] if (row["method"], row["share"]) == (name, share)]
            values = [[row["precision"] for row in mine if row["skill"] == skill] for skill in SKILLS]
            table.add_row(name, str(share), *(f"{statistics.mean(v):.2f} ± {statistics.stdev(v):.2f}" for v in values))
        Console(width=130).print(table)
    else:
        rows: list[dict[str, Any]] = []
        for seed in range(options.seeds + 1):
            rows += one_seed(seed)
            show([each for each in rows if each["seed"] == seed], f"seed {seed}, {rows[-1]['seconds']:.0f} s")
            written["chosen_on"] = [each for each in rows if each["seed"] == 0]
            written["results"] = [each for each in rows if each["seed"] > 0]
            save(options, written)
        if written["results"]:
            show(written["results"], "precision of the top 5 %, seeds that nothing was chosen on")
    save(options, written)


def save(options: argparse.Namespace, written: dict[str, Any]) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    packages = ("interptrain", "torch", "transformers", "scikit-learn")
    head = {
        "settings": {
            "documents": DOCUMENTS, "share": SHARE, "queries": QUERIES, "sample": SAMPLE, "pool": POOL,
            "seeds": options.seeds,
        },
        "versions": {
            "python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages},
        },
        "device": f"{platform.processor() or platform.machine()} CPU, 1 thread",
        "commit": commit,
    }  # fmt: skip
    body = {key: written[key] for key in ("scale", "shares", "chosen_on", "results") if key in written}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**head, **body}, indent=1) + "\n")


if __name__ == "__main__":
    main()
