"""Does a model say what its own directions mean, and does the rule tell when it does not?

    python -m benchmarks.self_explaining [--seeds 5] [--out benchmarks/results/self_explaining.json]

On the embedded world, over seeds of the random controls. Directions whose meaning is known by construction, the
embeddings of a word `w`, in questions that the world has a language for:

    find 1 2 plus {} .       w = 0 to 7      right: the answer has the number 12 + w
    where is the {} ?        w an animal     right: the answer names w

and directions that no question of the world asks for the meaning of, in a question that is near it, `what is the {} ?`:
the demo's concepts at their own hook's SAE, and live latents drawn at random. Controls of the same run: held-out random
directions in every question (how often does the rule call one an answer?), and the known answers shuffled (how often is
an answer right of another word?).
"""

from __future__ import annotations

import argparse
import random
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
from interptrain.tiny_world.wordings import SLOTS

OUT = Path("benchmarks/results/self_explaining.json")
HELD_OUT, LATENTS = 20, 20  # random directions, and latents, a question and seed
EMBEDDINGS, MIDDLE, LAST = "blocks.0.hook_resid_pre", "blocks.2.hook_resid_pre", "blocks.3.hook_resid_post"
SUM, WHERE, WHAT = "<q> find 1 2 plus {} . <a>", "<q> where is the {} ? <a>", "<q> what is the {} ? <a>"


def number(word: str) -> str:
    return " ".join(str(12 + int(word)))


def asked_of(explainer: SelfExplainer, tokenizer: Any, directions: dict[str, Tensor], right: Any) -> dict[str, Any]:
    """Which directions say something, and of what is known by construction, whether it is right."""
    rows = {}
    for name, direction in directions.items():
        answer = explainer.explain(direction)
        text, why = tokenizer.decode(list(answer.words)), explainer.verdict(answer)
        rows[name] = {"answer": text, "why_not": why, "nats": answer.advantage}
        if right is not None:
            rows[name] |= {"right": right(name) in text}
    names = list(directions)
    said = [name for name in names if not rows[name]["why_not"]]
    found: dict[str, Any] = {"directions": len(names), "said": len(said), "rows": rows}
    if right is not None:
        found["right"] = sum(rows[name]["right"] for name in said)
        found["right_though_unsaid"] = sum(rows[name]["right"] for name in names if name not in said)
        shifted = dict(zip(names, names[1:] + names[:1], strict=True))
        found["shuffled_right"] = sum(right(shifted[name]) in rows[name]["answer"] for name in said)
    return found


def measure(seed: int, console: Console) -> dict[str, Any]:
    model, tokenizer = tiny_world.load_base(), tiny_world.load_tokenizer()
    table = model.get_input_embeddings().weight.detach()
    bank, sae = tiny_world.concept_bank(), tiny_world.load_sae()
    alive = bank.readouts[bank.hook_points[0]].alive.nonzero()[:, 0].tolist()
    drawn = random.Random(seed).sample(alive, LATENTS)
    decoder = unit_rows(sae.W_dec.detach().float())

    def embedded(words: list[str]) -> dict[str, Tensor]:
        return {word: unit_rows(table[[tokenizer.convert_tokens_to_ids(word)]])[0] for word in words}

    concepts = {name: unit_rows(bank.directions[list(bank.rows(name))].mean(0)[None])[0] for name in bank.names}
    animals = embedded(list(SLOTS["animal"]))
    questions = {
        "sum": (SUM, "0", EMBEDDINGS, LAST, {"digits": (embedded([str(digit) for digit in range(8)]), number)}),
        "where": (WHERE, "dog", EMBEDDINGS, LAST, {"animals": (animals, lambda word: f"the {word}")}),
        "what": (WHAT, "dog", MIDDLE, bank.hook_points[0], {
            "concepts": (concepts, None), "latents": ({str(each): decoder[each] for each in drawn}, None),
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
