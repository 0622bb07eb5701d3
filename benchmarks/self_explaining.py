"""Does a model say what its own directions mean, and does the rule tell when it does not?

    python -m benchmarks.self_explaining [--seeds 5] [--out benchmarks/results/self_explaining.json]

On the embedded world, over seeds of the random controls. Directions whose meaning is known by construction, the
embeddings of a word `w`, in questions that the world has a language for:

    find 1 2 plus {} .       w = 0 to 7      right: the answer has the number 12 + w
    where is the {} ?        w an animal     right: the answer names w

and directions that no question of the world asks for the meaning of, in a question that is near it, `what is the {} ?`:
the demo's concepts, and live latents of their SAE drawn at random

    latents                          right: the answer has the token that the latent fires on most, in the mean over
                                     its occurrences in the world's texts

A word that the question is answered with anyway is no right answer. Controls of the same run: held-out random
directions in every question (how often does the rule call one an answer?), and the known words shuffled (how often is
an answer right of another's?).
"""

from __future__ import annotations

import argparse
import random
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.blocks import save
from interptrain import tiny_world
from interptrain.concepts.bank import unit_rows
from interptrain.concepts.injection import Asked
from interptrain.concepts.self_explaining import SelfExplainer, Sweep
from interptrain.recipes.question import Question
from interptrain.sites.hooks import HookPoint
from interptrain.tiny_world.corpus import pretraining_documents
from interptrain.tiny_world.tokens import batches
from interptrain.tiny_world.wordings import SLOTS

OUT = Path("benchmarks/results/self_explaining.json")
HELD_OUT, LATENTS = 20, 40  # random directions, and latents, a question and seed
TEXTS, OFTEN = 1024, 5  # of the world, and how often a token must be in them
EMBEDDINGS, MIDDLE, LAST = "blocks.0.hook_resid_pre", "blocks.2.hook_resid_pre", "blocks.3.hook_resid_post"
SUM, WHERE, WHAT = "<q> find 1 2 plus {} . <a>", "<q> where is the {} ? <a>", "<q> what is the {} ? <a>"


def number(word: str) -> str:
    return " ".join(str(12 + int(word)))


def asked_of(explainer: SelfExplainer, tokenizer: Any, directions: dict[str, Tensor], right: Any) -> dict[str, Any]:
    """Which directions say something, and of what is known by construction, whether it is right."""
    rows, bare = {}, tokenizer.decode(list(explainer.bare))

    def says(text: str, words: str) -> bool:
        return f" {words} " in f" {text} " and f" {words} " not in f" {bare} "

    for name, direction in directions.items():
        answer = explainer.explain(direction)
        text, why = tokenizer.decode(list(answer.words)), explainer.verdict(answer)
        rows[name] = {"answer": text, "why_not": why, "nats": answer.advantage}
        if right is not None:
            rows[name] |= {"word": right(name), "right": says(text, right(name))}
    names = list(directions)
    said = [name for name in names if not rows[name]["why_not"]]
    found: dict[str, Any] = {"directions": len(names), "said": len(said), "rows": rows}
    if right is not None:
        found["right"] = sum(rows[name]["right"] for name in said)
        found["right_though_unsaid"] = sum(rows[name]["right"] for name in names if name not in said)
        shifted = dict(zip(names, names[1:] + names[:1], strict=True))
        found["shuffled_right"] = sum(says(rows[name]["answer"], right(shifted[name])) for name in said)
    return found


def fired_on(model: Any, tokenizer: Any, sae: Any, hook: str) -> list[str]:
    """The token that each latent fires on most, in the mean over the token's occurrences."""
    documents = list(islice(pretraining_documents(0), TEXTS))
    sums, counts = torch.zeros(len(tokenizer), sae.cfg.d_sae), torch.zeros(len(tokenizer), 1)
    for batch in batches(tokenizer, iter(documents), 64, mask_prompt=False):
        seen: list[Tensor] = []
        handle = HookPoint.parse(hook).listen(model, seen.append)
        with torch.no_grad():
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            kept = batch["attention_mask"].bool()
            sums.index_add_(0, batch["input_ids"][kept], sae.encode(seen[0][kept]))
        counts.index_add_(0, batch["input_ids"][kept], torch.ones(int(kept.sum()), 1))
        handle.remove()
    often = (counts >= OFTEN).float()
    return [str(word) for word in tokenizer.convert_ids_to_tokens((often * sums / counts.clamp_min(1)).argmax(0))]


def measure(seed: int, console: Console) -> dict[str, Any]:
    model, tokenizer = tiny_world.load_base(), tiny_world.load_tokenizer()
    table = model.get_input_embeddings().weight.detach()
    bank, sae = tiny_world.concept_bank(), tiny_world.load_sae()
    alive = bank.readouts[bank.hook_points[0]].alive.nonzero()[:, 0].tolist()
    drawn = random.Random(seed).sample(alive, LATENTS)
    words = fired_on(model, tokenizer, sae, bank.hook_points[0])
    decoder = unit_rows(sae.W_dec.detach().float())

    def embedded(words: list[str]) -> dict[str, Tensor]:
        return {word: unit_rows(table[[tokenizer.convert_tokens_to_ids(word)]])[0] for word in words}

    concepts = {name: unit_rows(bank.directions[list(bank.rows(name))].mean(0)[None])[0] for name in bank.names}
    latents = {str(each): decoder[each] for each in drawn}
    animals = embedded(list(SLOTS["animal"]))
    questions = {
        "sum": (SUM, "0", EMBEDDINGS, LAST, {"digits": (embedded([str(digit) for digit in range(8)]), number)}),
        "where": (WHERE, "dog", EMBEDDINGS, LAST, {"animals": (animals, lambda word: f"the {word}")}),
        "what": (WHAT, "dog", MIDDLE, bank.hook_points[0], {
            "concepts": (concepts, None), "latents": (latents, lambda latent: words[int(latent)]),
        }),
    }  # fmt: skip
    found = {}
    for name, (prompt, word, at, reads, kinds) in questions.items():
        question = Question(prompt, "", word).in_tokens(tokenizer)
        asked = Asked(question.ids, question.places, at)
        explainer = SelfExplainer(model, asked, Sweep(seed=seed), end=[tokenizer.eos_token_id], reads=reads)
        generator = torch.Generator().manual_seed(1000 + seed)
        rows = unit_rows(torch.randn(HELD_OUT, table.shape[1], generator=generator))
        held_out = {f"random {row}": direction for row, direction in enumerate(rows)}
        for kind, (directions, right) in (kinds | {"random": (held_out, None)}).items():
            found[f"{name}: {kind}"] = asked_of(explainer, tokenizer, directions, right)
            console.print(seed, name, kind, {k: v for k, v in found[f"{name}: {kind}"].items() if k != "rows"})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="2 or more")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--threads", type=int, default=1)
    options, console = parser.parse_args(), Console()
    torch.set_num_threads(options.threads)
    runs = [measure(seed, console) for seed in range(options.seeds)]
    shown = Table("question: directions", "say something", "of them right", "right of another", "right, not said")
    for kind in runs[0]:
        share = torch.tensor([run[kind]["said"] / run[kind]["directions"] for run in runs])
        rest = [str([run[kind].get(key) for run in runs]) for key in ("right", "shuffled_right", "right_though_unsaid")]
        shown.add_row(kind, f"{share.mean():.2f} ± {share.std():.2f}", *rest)
    console.print(shown)
    save(
        options, ("torch", "transformers", "sae-lens"), {"scales": Sweep.scales, "controls": Sweep.controls}, runs=runs
    )


if __name__ == "__main__":
    main()
