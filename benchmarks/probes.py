"""Which probe of texts finds a concept, from how few texts, in other words, and in one token of a long text?

    python benchmarks/probes.py [--seeds 5] [--parts table needle watch] [--out benchmarks/results/probes.json]

On the tiny world, one CPU thread, every probe of `interptrain.concepts.probes` in the same run:

    table    concepts pirate, royal and arithmetic, fitted on 4, 16, 64 and 256 texts a class in one half of the
             wordings; AUC on other texts of that half and of the other half, with 64 texts the same under shuffled
             labels, seconds
    needle   64 texts a class of 16, 64 and 128 tokens of plain documents each; of the positive ones one token, at a
             random place, is a pirate's word. Tokens are put together as activations, each as it was read in its own
             document
    watch    the same probes, fitted at the first token of answers, watch probe sets while a voice is taught and its
             directions are taken out of every update; what the model says is scored beside it at every reading

A seed draws the texts, the parts held out, the first weights, the needles and the order of training.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from interptrain import suppress, tiny_world
from interptrain.callbacks.torch import attach
from interptrain.concepts.contrast import TextActivations, collect
from interptrain.concepts.labelled import Labelled
from interptrain.concepts.placed import PlacedProbe
from interptrain.concepts.probes import PROBES, Fitting, fit_labelled, fit_probe, parameters_of, reads_latents
from interptrain.concepts.saelens import shared_sae
from interptrain.concepts.text_probe import probe_auc
from interptrain.tiny_world.concepts import CONTRASTS, draw
from interptrain.tiny_world.corpus import Document, document
from interptrain.tiny_world.probes import first_answer_token, probe_sets
from interptrain.tiny_world.tokens import encode
from interptrain.tiny_world.wordings import Half, own_words

CONCEPTS, SIZES, TESTED, NULL = ("pirate", "royal", "arithmetic"), (4, 16, 64, 256), 200, 64
LENGTHS, NEEDLES = (16, 64, 128), 64
STEPS, EVERY, RATE, PROMPTS = 30, 5, 3e-4, 50
ARMS = {"pirate, suppressed": ("pirate", False), "royal, suppressed": ("royal", False), "plain": ("pirate", True)}


class World:
    """The embedded model, its tokenizer, its SAE, and texts as activations."""

    def __init__(self) -> None:
        self.model, self.tokenizer, self.bank = (
            tiny_world.load_base(),
            tiny_world.load_tokenizer(),
            tiny_world.concept_bank(),
        )
        self.hook = self.bank.hook_points[0]
        self.decoder = self.bank.readouts[self.hook].decoder
        self.sae = shared_sae(self.bank.readouts[self.hook])
        self.commit = commit()

    def read(self, documents: list[Document], *, first: bool = False) -> TextActivations:
        """Every token, or the one that predicts an answer's first word."""
        batch = encode(self.tokenizer, documents, mask_prompt=first)
        return collect(self.model, self.hook, [first_answer_token(batch) if first else batch], keep_bos=True)

    @torch.no_grad()
    def seen(self, name: str, texts: TextActivations) -> TextActivations:
        """As a probe of this name takes them."""
        return replace(texts, values=self.sae.encode(texts.values)) if reads_latents(name) else texts


def both(world: World, concept: str, half: Half, seed: int, count: int) -> tuple[TextActivations, TextActivations]:
    shown, absent = (world.read(draw(texts, half, seed, count=count)) for texts in CONTRASTS[concept])
    return shown, absent


def fitted(
    world: World, name: str, texts: tuple[TextActivations, TextActivations], seed: int
) -> tuple[Any, dict[str, float]]:
    pair = [world.seen(name, each) for each in texts]
    start, busy = time.perf_counter(), time.process_time()
    probe = fit_probe(name, pair[0], pair[1], fitting=Fitting(seed=seed), decoder=world.decoder)
    return probe, {"seconds": time.perf_counter() - start, "cpu seconds": time.process_time() - busy}


def scored(world: World, name: str, probe: Any, texts: tuple[TextActivations, TextActivations]) -> float:
    return probe_auc(probe, world.seen(name, texts[0]), world.seen(name, texts[1]))


def table(world: World, seeds: int) -> Iterator[dict[str, Any]]:
    for seed in range(seeds):
        for concept in CONCEPTS:
            tests = {half: both(world, concept, half, 1000 + seed, TESTED) for half in ("search", "test")}
            for size in SIZES:
                texts = both(world, concept, "search", seed, size)
                for name in PROBES:
                    probe, seconds = fitted(world, name, texts, seed)
                    row = {
                        "concept": concept, "seed": seed, "texts": size, "probe": name, **seconds,
                        "parameters": parameters_of(probe), "directions": len(probe.directions()),
                        "auc": scored(world, name, probe, tests["search"]),
                        "auc, other wording": scored(world, name, probe, tests["test"]),
                    }  # fmt: skip
                    if size == NULL:
                        mixed = Labelled.of(*(world.seen(name, each) for each in texts)).shuffled(seed)
                        null = fit_labelled(name, mixed, fitting=Fitting(seed=seed), decoder=world.decoder)
                        row["auc, shuffled"] = scored(world, name, null, tests["search"])
                    yield row


def haystacks(world: World, half: Half, length: int, seed: int) -> tuple[TextActivations, TextActivations]:
    """Texts of plain tokens, and the same number with one token of a pirate's word."""
    rng, generator = random.Random(f"needle {half} {seed}"), torch.Generator().manual_seed(seed)
    plain = world.read([document(rng, "fact", half=half) for _ in range(4 * NEEDLES)]).values
    told = [document(rng, "fact", "pirate", half=half, cued=True) for _ in range(NEEDLES)]
    ids = encode(world.tokenizer, told, mask_prompt=False)
    known = [world.tokenizer.convert_tokens_to_ids(word) for word in own_words("pirate", half)]
    seen = ids["labels"][:, 1:] != -100  # what `collect` counts
    own = torch.isin(ids["input_ids"][:, :-1], torch.tensor(known))[seen]
    needles = world.read(told).values[own]

    def texts(count: int) -> Tensor:
        return plain[torch.randint(len(plain), (count, length), generator=generator)]

    shown, absent, rows = texts(NEEDLES), texts(NEEDLES), torch.arange(NEEDLES)
    at = torch.randint(length, (NEEDLES,), generator=generator)
    shown[rows, at] = needles[torch.randint(len(needles), (NEEDLES,), generator=generator)]
    number = rows.repeat_interleave(length)
    return TextActivations(shown.flatten(0, 1), number), TextActivations(absent.flatten(0, 1), number)


def needle(world: World, seeds: int) -> Iterator[dict[str, Any]]:
    for seed in range(seeds):
        for length in LENGTHS:
            texts = haystacks(world, "search", length, seed)
            tests = {half: haystacks(world, half, length, 1000 + seed) for half in ("search", "test")}
            for name in PROBES:
                probe, seconds = fitted(world, name, texts, seed)
                yield {
                    "length": length, "seed": seed, "probe": name, **seconds,
                    "auc": scored(world, name, probe, tests["search"]),
                    "auc, other wording": scored(world, name, probe, tests["test"]),
                }  # fmt: skip


def watchers(world: World, seed: int) -> dict[str, list[PlacedProbe]]:
    """Every probe, of pirate and of royal, fitted where answers begin, on other texts than the probe sets'."""
    sets, found = probe_sets(64, seed=100 + seed), dict[str, list[PlacedProbe]]()
    for concept, other in (("pirate", "royal"), ("royal", "pirate")):
        texts = world.read(sets[concept], first=True), world.read(sets["neutral"] + sets[other], first=True)
        found[concept] = [PlacedProbe(fitted(world, n, texts, seed)[0], world.hook, n) for n in PROBES]
    return found


def watch(world: World, seeds: int) -> Iterator[dict[str, Any]]:
    for seed in range(seeds):
        watching = watchers(world, seed)
        for arm, (voice, filtered) in ARMS.items():
            torch.manual_seed(seed)
            model = tiny_world.load_base().train()
            optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
            data = tiny_world.finetuning_set("mixed", seed, batch=32, voice=voice, filtered=filtered)
            with attach(
                model, optimizer, world.bank, suppress(voice), where="update", watchers=watching, probe_every=EVERY,
                probes=tiny_world.probe_batches(32), summary=False, discover_every=None, meters=(), check_saes=False,
            ) as steering:  # fmt: skip
                for step, batch in enumerate(islice(data, STEPS), start=1):
                    model(**batch).loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    figures = steering.metrics()
                    if step % EVERY:
                        continue
                    said = tiny_world.score(model, world.tokenizer, prompts=PROMPTS, seed=seed)
                    curves = {
                        concept: {name: figures[f"concept/{concept}/watch/{name}/neutral"] for name in PROBES}
                        | {"linear probe": figures[f"concept/{concept}/probe/neutral"]}
                        | {"bank": figures[f"concept/{concept}/realised/neutral/fraction"]}
                        for concept in watching
                    }
                    yield {
                        "arm": arm, "seed": seed, "step": step, "watch": curves,
                        "said": {"pirate": said.pirate_on_facts, "royal": said.royal_on_facts},
                    }  # fmt: skip


def mean_sd(values: list[float]) -> str:
    if not values:
        return ""
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {sd:.3f}"


def show(part: str, rows: list[dict[str, Any]], console: Console) -> None:
    if part == "watch":
        watched = list(rows[0]["watch"]["pirate"])
        shown = Table("arm", "concept", "said", *watched, title="watch, last step")
        for arm in ARMS:
            last = [row for row in rows if row["arm"] == arm and row["step"] == STEPS]
            for concept in ("pirate", "royal"):
                figures = (mean_sd([row["watch"][concept][name] for row in last]) for name in watched)
                shown.add_row(arm, concept, mean_sd([row["said"][concept] for row in last]), *figures)
        console.print(shown)
        return
    by = ("concept", "texts", "probe") if part == "table" else ("length", "probe")
    figures = list(dict.fromkeys(name for row in rows for name in row if name.startswith("auc")))
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    shown = Table(*by, *figures, "CPU seconds", "to mean", title=part)
    for key, own in groups.items():
        seconds, base = (
            statistics.median(row["cpu seconds"] for row in rows) for rows in (own, groups[*key[:-1], "mean"])
        )
        shown.add_row(
            *map(str, key), *(mean_sd([row[name] for row in own if name in row]) for name in figures), f"{seconds:.2f}",
            f"{seconds / base:.1f}",
        )  # fmt: skip
    console.print(shown)


def commit() -> str:
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()


def facts(world: World, seeds: int) -> dict[str, Any]:
    """What the rows were measured with."""
    names = ("interptrain", "torch", "sae-lens", "transformers")
    return {
        "settings": {"seeds": seeds, "hook": world.hook, "tested": TESTED, "needles": NEEDLES}
        | {"steps": STEPS, "rate": RATE},
        "versions": {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in names},
        "device": f"{platform.machine()} cpu, 1 thread",
        "commit": world.commit,
    }


PARTS: dict[str, Callable[[World, int], Iterator[dict[str, Any]]]] = {"table": table, "needle": needle, "watch": watch}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, help="a file; parts that are not run again stay in it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    world, console = World(), Console(width=200)
    found: dict[str, Any] = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    for part in options.parts:
        start, rows = time.perf_counter(), list[dict[str, Any]]()
        for row in PARTS[part](world, options.seeds):
            rows.append(row)
            if options.out is not None:
                written = found | facts(world, options.seeds) | {part: rows}
                options.out.write_text(json.dumps(written, indent=1) + "\n")
        found[part] = rows
        show(part, rows, console)
        console.print(f"{part}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
