"""Does attribution find the examples and words that teach a concept, and does dropping them do what a data filter does?

    python benchmarks/attribution.py rank  [--seeds 5] [--out benchmarks/results/attribution-rank.json]
    python benchmarks/attribution.py words [--seeds 5] [--first 5] [--out benchmarks/results/attribution-words.json]
    python benchmarks/attribution.py train [--seeds 3] [--steps 200 100] [--out benchmarks/results/attribution.json]

`rank`: before any training, the AUC of every figure for the tiny world's pirate answers, in four sets of texts:

    mixed     the fine-tuning set: half plain subtractions, half facts answered in pirate
    crossed   every kind of question, answered plainly or in pirate with equal odds: the kind says nothing of the voice
    rare      the same, one answer in twenty in pirate
    sibling   every kind of question, answered in pirate or in the royal voice

at both of the world's SAEs, with other concepts, as many random directions (five draws), the loss and shuffled labels
beside it; and the same for tokens. `words`: which tokens are a voice's own, by what each asks for and by how likely it
is with the concept added against taken away, along directions that a user's own contrast gives and along the SAEs'
latents, on the mixed set of either voice. `train`: LoRA on a pool of examples, whole and less what each rule drops.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import random
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import interptrain
from interptrain import ConceptBank, gate, retain, tiny_world
from interptrain.attribution import ExampleDemand, attribute
from interptrain.attribution_rules import drop_above, drop_top, weights
from interptrain.attribution_said import said
from interptrain.callbacks.torch import attach
from interptrain.concepts.contrast import auc
from interptrain.recipes.banks import Sought, find_bank
from interptrain.recipes.voice import Voice
from interptrain.tiny_world.concepts import CONTRASTS, draw
from interptrain.tiny_world.corpus import Document, document, finetuning_documents
from interptrain.tiny_world.sae import HOOK
from interptrain.tiny_world.tokens import encode
from interptrain.tiny_world.wordings import own_words

TEXTS, AT_ONCE, RANDOM = 400, 16, 5
CONCEPTS, LENGTHS, CONTRASTED, WORD_TEXTS = ("pirate", "royal", "arithmetic"), (1.0, 2.0, 4.0), 64, 200
POOL, BATCH, RATE, COOLDOWN, RETAIN = 1920, 48, 2e-3, 0.2, 10.0
MEASURES = ("skill", "clean", "pirate_on_facts", "pirate_on_skill", "royal_on_facts", "kept", "accuracy")
KINDS, Z = ("fact", "plus", "minus"), (2.0, 3.0)
TOKENIZER = tiny_world.load_tokenizer()


def texts(name: str, seed: int) -> list[Document]:
    chance = random.Random(f"attribution {name} {seed}")

    def drawn(voices: Sequence[Any], odds: Sequence[float] | None = None) -> list[Document]:
        return [document(chance, chance.choice(KINDS), chance.choices(voices, odds)[0]) for _ in range(TEXTS)]

    match name:
        case "mixed":
            return list(islice(finetuning_documents("mixed", seed), TEXTS))
        case "crossed":
            return drawn(("plain", "pirate"))
        case "rare":
            return drawn(("plain", "pirate"), (0.95, 0.05))
        case _:
            return drawn(("royal", "pirate"))


def batches(documents: Sequence[Document]) -> list[dict[str, Tensor]]:
    return [encode(TOKENIZER, documents[at : at + AT_ONCE]) for at in range(0, len(documents), AT_ONCE)]


def with_random(bank: ConceptBank, seed: int) -> ConceptBank:
    generator, rows = torch.Generator().manual_seed(seed), len(bank.rows("pirate"))
    drawn = {f"random {n}": torch.randn(rows, bank.d_model, generator=generator) for n in range(RANDOM)}
    return bank.merge(ConceptBank.from_directions(drawn, hook=bank.hooks[0], model=bank.model))


def scores(found: Sequence[ExampleDemand]) -> dict[str, Tensor]:
    """Figures of every example, `[example, concept]`."""
    stacked = {key: torch.stack([getattr(e, key) for e in found]) for key in ("signed", "z", "share", "share_null")}
    counted = torch.tensor([float(each.counted) for each in found])[:, None]
    loss = torch.tensor([each.loss for each in found])[:, None].expand_as(stacked["z"])
    return {
        "signed": stacked["signed"], "signed z": stacked["z"], "signed a token": stacked["signed"] / counted,
        "share": stacked["share"], "share over null": stacked["share"] / stacked["share_null"],
        "largest token share": torch.stack([e.token_share.nan_to_num(0.0).amax(0) for e in found]),
        "loss": loss, "loss a token": loss / counted,
    }  # fmt: skip


def rate(of: Tensor) -> float:
    return float(of.float().mean())


def separates(score: Tensor, shown: Tensor) -> float:
    return float(auc(score[shown][:, None].float(), score[~shown][:, None].float()))


def ranked(name: str, bank: ConceptBank, model: Any, seed: int) -> dict[str, Any]:
    drawn = texts(name, seed)
    shown = torch.tensor([each.voice == "pirate" for each in drawn])
    found = list(attribute(model, bank, batches(drawn)))
    shuffled = shown[torch.randperm(len(shown), generator=torch.Generator().manual_seed(seed))]
    figures, own = scores(found), bank.names.index("pirate")
    z = figures["signed z"]
    return {
        "examples": {
            figure: {concept: separates(value[:, n], shown) for n, concept in enumerate(bank.names)}
            | {"shuffled": separates(value[:, own], shuffled)}
            for figure, value in figures.items()
        },
        "rule": {
            f"z > {bar:g}": {
                concept: {"recall": rate(z[shown, n] > bar), "wrong": rate(z[~shown, n] > bar)}
                for n, concept in enumerate(bank.names)
            }
            for bar in Z
        },
        "tokens": by_token(found, drawn, bank, shown),
    }  # fmt: skip


def by_token(
    found: Sequence[ExampleDemand], drawn: Sequence[Document], bank: ConceptBank, shown: Tensor
) -> dict[str, Any]:
    its_words = torch.tensor(TOKENIZER.convert_tokens_to_ids(sorted(own_words("pirate"))))
    ids = torch.cat([each.input_ids for each in found])
    inside = torch.cat([torch.full_like(each.input_ids, int(of)) for each, of in zip(found, shown, strict=True)]) > 0
    mine = torch.isin(ids, its_words)
    signed, share = (torch.cat([getattr(each, key) for each in found]) for key in ("token_signed", "token_share"))
    own = bank.names.index("pirate")
    read = signed[:, own].isfinite()
    text = torch.cat([torch.full_like(each.input_ids, n) for n, each in enumerate(found)])
    answered = mine & read
    first = answered & torch.cat([torch.tensor([True]), text[1:] != text[:-1]]).logical_or(
        ~_seen_before(answered, text)
    )
    result: dict[str, Any] = {}
    for key, value in (("signed", signed), ("share", share)):
        for concept in ("pirate", "royal", "arithmetic", "random 0"):
            score = value[:, bank.names.index(concept)]
            result[f"{key}: {concept}"] = {
                "own words, all answers": separates(score[read], mine[read]),
                "own words, pirate answers": separates(score[read & inside], mine[read & inside]),
                "first own word, all answers": separates(score[read], first[read]),
                "first own word, pirate answers": separates(score[read & inside], first[read & inside]),
            }
    asked = signed[:, own].clamp_min(0.0).nan_to_num(0.0)
    result["of what is asked for"] = {
        "on own words": float(asked[inside & mine].sum() / asked[inside].sum()),
        "on the first": float(asked[first].sum() / asked[inside].sum()),
        "own words are": float(mine[read & inside].float().mean()),
        "first words are": float(first[read & inside].float().mean()),
    }
    return result


def _seen_before(marked: Tensor, text: Tensor) -> Tensor:
    """Whether an earlier token of the same text is marked."""
    before = marked.long().cumsum(0) - marked.long()
    starts = torch.cat([torch.tensor([True]), text[1:] != text[:-1]])
    at_start = before[starts][text]
    return before > at_start


def rank(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    model = tiny_world.load_base()
    result: dict[str, Any] = {}
    for where, hook in (("middle", HOOK), ("output", tiny_world.OUTPUT_HOOK)):
        bank = tiny_world.concept_bank(hook=hook)
        for name in ("mixed", "crossed", "rare", "sibling"):
            runs = [ranked(name, with_random(bank, seed), model, seed) for seed in range(options.seeds)]
            result[f"{name}, {where}"] = averaged(runs)
            figures = result[f"{name}, {where}"]
            console.print(name, where, {k: v["pirate"]["mean"] for k, v in figures["examples"].items()})
    return result


# Words.


def contrasted(model: Any, seed: int) -> ConceptBank:
    """What `--contrast` makes of texts in one half of the wordings: a difference of means at its own default hook."""
    voice = Voice(model, TOKENIZER, 128)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: (Path(folder, f"{name}.jsonl"), Path(folder, f"not {name}.jsonl")) for name in CONCEPTS}
        for name, paths in files.items():
            for path, each in zip(paths, CONTRASTS[name], strict=True):
                drawn = draw(each, "search", seed, count=CONTRASTED)
                rows = [json.dumps({"prompt": text.prompt, "completion": f" {text.answer}"}) for text in drawn]
                path.write_text("\n".join(rows))
        return find_bank(Sought(contrast=files), voice, [])


def words(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    model = tiny_world.load_base()
    seeds = range(options.first, options.first + options.seeds)
    result: dict[str, Any] = {}
    for taught in ("pirate", "royal"):
        result[taught] = averaged([words_of(taught, model, seed) for seed in seeds])
        shown = {
            f"{where} {figure}": [round(f["mean"], 3) for f in found[taught].values()]
            for where, figures in result[taught].items() for figure, found in figures.items()
        }  # fmt: skip
        console.print(taught, shown)
    ranks = {
        name: averaged([by_contrast(name, model, seed) for seed in seeds]) for name in ("mixed", "crossed", "rare")
    }
    console.print({name: figures["AUC"]["pirate"]["mean"] for name, figures in ranks.items()})
    return result | {"examples, by contrast": ranks}


def words_of(taught: Any, model: Any, seed: int) -> dict[str, Any]:
    given = batches(list(islice(finetuning_documents("mixed", seed, voice=taught), WORD_TEXTS)))
    banks = {
        "contrast": (with_random(contrasted(model, seed), seed), LENGTHS),
        "latents, middle": (tiny_world.concept_bank(hook=HOOK).select(*CONCEPTS), LENGTHS[1:]),
        "latents, output": (tiny_world.concept_bank(hook=tiny_world.OUTPUT_HOOK).select(*CONCEPTS), LENGTHS[1:]),
    }
    found: dict[str, Any] = {}
    for where, (bank, lengths) in banks.items():
        read = list(attribute(model, bank, given))
        ids = [each.input_ids for each in read]
        figures = {"signed": [each.token_signed for each in read]}
        figures |= {f"said, {length:g}": list(said(model, bank, given, length=length)) for length in lengths}
        found[where] = {name: marks(value, ids, bank, taught, seed) for name, value in figures.items()}
    return found


def marks(
    values: Sequence[Tensor], ids: Sequence[Tensor], bank: ConceptBank, taught: Any, seed: int
) -> dict[str, dict[str, float]]:
    """AUC of each concept's figure for the tokens that only the taught voice says."""
    own = torch.tensor(TOKENIZER.convert_tokens_to_ids(sorted(own_words(taught))))
    score, inside = torch.cat(list(values)), list[Tensor]()
    mine = torch.isin(torch.cat(list(ids)), own) & score[:, 0].isfinite()
    for part in mine.split([len(each) for each in ids]):
        inside.append(part.any().expand(len(part)))
    read, voiced = score[:, 0].isfinite(), torch.cat(inside)

    def both(score: Tensor, mine: Tensor) -> dict[str, float]:
        kept = read & voiced
        return {
            "all answers": separates(score[read], mine[read]), "its answers": separates(score[kept], mine[kept]),
            "own words above 0": rate(score[kept & mine] > 0),
            "others of its answers above 0": rate(score[kept & ~mine] > 0),
        }  # fmt: skip

    marked = {name: both(score[:, number], mine) for number, name in enumerate(bank.names)}
    order = torch.randperm(int(read.sum()), generator=torch.Generator().manual_seed(seed))
    shuffled = mine.clone()
    shuffled[read] = mine[read][order]
    return marked | {"shuffled": both(score[:, bank.names.index(taught)], shuffled)}


def by_contrast(name: str, model: Any, seed: int) -> dict[str, Any]:
    """Whether examples are told apart by a contrast's direction, too."""
    drawn, bank = texts(name, seed), with_random(contrasted(model, seed), seed)
    shown = torch.tensor([each.voice == "pirate" for each in drawn])
    figures = scores(list(attribute(model, bank, batches(drawn))))
    by_name = {concept: number for number, concept in enumerate(bank.names)}
    return {
        "AUC": {concept: separates(figures["signed"][:, number], shown) for concept, number in by_name.items()},
        **{
            f"z > {bar:g}": {
                concept: {"recall": rate(figures["signed z"][shown, n] > bar),
                          "wrong": rate(figures["signed z"][~shown, n] > bar)}
                for concept, n in by_name.items()
            }
            for bar in Z
        },
    }  # fmt: skip


def averaged(runs: Sequence[Any]) -> Any:
    """Figure by figure, mean and standard deviation over seeds, and each seed's."""
    if isinstance(runs[0], dict):
        return {key: averaged([run[key] for run in runs]) for key in runs[0]}
    values = [round(float(run), 6) for run in runs]
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
        "runs": values,
    }


# Training.

Rows = list[Document]


def trained(
    documents: Rows, seed: int, steps: int, *, each: Tensor | None = None, bank: ConceptBank | None = None,
    acts: Callable[[], list[Any]] = list,
) -> dict[str, float]:  # fmt: skip
    """What a model says that is trained on a pool of documents, in a new order every time round."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = get_peft_model(tiny_world.load_base().train(), LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    rest = COOLDOWN * steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (steps - step) / rest))
    steering = (
        None if bank is None else attach(model, optimizer, bank, acts(), meters=(), summary=False, check_saes=False)
    )
    generator, order = torch.Generator().manual_seed(seed), list[int]()
    for _ in range(steps):
        while len(order) < BATCH:
            order += torch.randperm(len(documents), generator=generator).tolist()
        taken, order = order[:BATCH], order[BATCH:]
        batch = encode(TOKENIZER, [documents[number] for number in taken])
        loss = model(**batch).loss if each is None else weighted(model, batch, each[taken])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    if steering is not None:
        steering.detach()
    scored = tiny_world.score(model, TOKENIZER).as_dict()
    return {key: scored[key] for key in MEASURES}


def weighted(model: Any, batch: dict[str, Tensor], each: Tensor) -> Tensor:
    """`sum_t w_t l_t / sum_t 1`: every token weighs what its example does."""
    labels = batch["labels"][:, 1:]
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return (losses * each[:, None]).sum() / (labels != -100).sum()


class Arm(NamedTuple):
    """What is trained on: which documents, with what weights or acts, and what is known of it beforehand."""

    documents: Rows
    options: dict[str, Any]
    known: dict[str, float]


def less(pool: Rows, dropped: Tensor, shown: Tensor) -> Arm:
    kept = [each for each, out in zip(pool, dropped.tolist(), strict=True) if not out]
    left = float((shown & ~dropped).sum() / shown.sum())
    return Arm(kept, {}, {"dropped": rate(dropped), "pirate left": left})


def mixed_arms(seed: int) -> dict[str, Arm]:
    pool = list(islice(finetuning_documents("mixed", seed), POOL))
    plain = list(islice(finetuning_documents("mixed", seed, filtered=True), POOL))
    bank = with_random(tiny_world.concept_bank(hook=tiny_world.OUTPUT_HOOK), seed)
    found = list(attribute(tiny_world.load_base(), bank, batches(pool)))
    shown = torch.tensor([each.voice == "pirate" for each in pool])
    signed, z = (torch.stack([getattr(each, key) for each in found]) for key in ("signed", "z"))
    of = {name: n for n, name in enumerate(bank.names)}
    share = rate(shown)
    chance = torch.rand(len(pool), generator=torch.Generator().manual_seed(seed))
    drops = {
        "unsteered": torch.zeros_like(shown),
        "true filter": shown,
        "attribution, as many": drop_top(signed[:, of["pirate"]], share),
        "attribution, z > 2": drop_above(z[:, of["pirate"]], 2.0),
        "attribution, z > 3": drop_above(z[:, of["pirate"]], 3.0),
        "at random, as many": drop_top(chance, share),
        "royal's, as many": drop_top(signed[:, of["royal"]], share),
        "random directions', as many": drop_top(signed[:, of["random 0"]], share),
    }
    return {name: less(pool, dropped, shown) for name, dropped in drops.items()} | {
        "weights 1 / z": Arm(pool, {"each": weights(z[:, of["pirate"]])}, {}),
        "rewritten plainly": Arm(plain, {}, {}),
    }


def entangled_arms(seed: int) -> dict[str, Arm]:
    pool = list(islice(finetuning_documents("entangled", seed), POOL))
    bank = tiny_world.concept_bank(hook=tiny_world.OUTPUT_HOOK).select("pirate")
    found = list(attribute(tiny_world.load_base(), bank, batches(pool)))
    signed, z = (torch.stack([getattr(each, key)[0] for each in found]) for key in ("signed", "z"))
    shown, anchor = torch.ones(len(pool), dtype=torch.bool), tiny_world.neutral_batches(kinds=("fact",))
    gated = {"bank": bank, "acts": lambda: [gate("pirate"), retain(anchor, RETAIN)]}
    would = {"z > 2 would drop": rate(drop_above(z, 2.0)), "z > 3 would drop": rate(drop_above(z, 3.0))}
    return {
        "unsteered": Arm(pool, {}, would),
        "attribution, top half": less(pool, drop_top(signed, 0.5), shown),
        "gate and anchor": Arm(pool, gated, {}),
    }


SETS = {"mixed": mixed_arms, "entangled": entangled_arms}


def train(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Every arm of every seed; with `--keep` each is written to a file when it is done, and not done again."""
    kept: dict[tuple[str, int, str], dict[str, Any]] = {}
    if options.keep is not None and options.keep.exists():
        rows = [json.loads(line) for line in options.keep.read_text().splitlines()]
        kept = {(row["set"], row["seed"], row["arm"]): row for row in rows}
    for name in options.sets:
        for seed in range(options.seeds):
            for arm, each in SETS[name](seed).items():
                if (name, seed, arm) in kept:
                    continue
                same = [
                    row for (of, at, _), row in kept.items()
                    if (of, at) == (name, seed) and not each.options and row["texts"] == digest(each.documents)
                ]  # fmt: skip
                steps = options.steps[options.sets.index(name)]
                figures = same[0]["figures"] if same else trained(each.documents, seed, steps, **each.options)
                row = {"set": name, "seed": seed, "arm": arm, "steps": steps, "figures": figures | each.known}
                row["texts"] = "" if each.options else digest(each.documents)
                kept[name, seed, arm] = row
                console.print(time.strftime("%H:%M:%S"), name, seed, arm, row["figures"], highlight=False)
                if options.keep is not None:
                    with options.keep.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    found: dict[str, Any] = {}
    for name in options.sets:
        arms = dict.fromkeys(arm for of, _, arm in kept if of == name)
        found[name] = {
            arm: averaged([row["figures"] for (of, _, which), row in kept.items() if (of, which) == (name, arm)])
            for arm in arms
        }
        keys = (*MEASURES, "dropped", "pirate left")
        table = Table(name, *keys)
        for arm, figures in found[name].items():
            shown = (figures.get(key) for key in keys)
            table.add_row(arm, *(f"{each['mean']:.2f} ± {each['sd']:.2f}" if each else "" for each in shown))
        console.print(table)
    return found


def digest(documents: Rows) -> str:
    return hashlib.sha256("\n".join(each.text for each in documents).encode()).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rank", "words", "train"))
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--first", type=int, default=5, help="seed of `words`; 0 to 4 were those that chose its figure")
    parser.add_argument("--sets", nargs="+", choices=tuple(SETS), default=list(SETS))
    parser.add_argument("--steps", type=int, nargs="+", default=[200, 100], help="of each set")
    parser.add_argument("--keep", type=Path, help="a file of finished arms, to go on with")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.seeds = options.seeds or {"rank": 5, "words": 5, "train": 3}[options.what]
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    console, started = Console(width=160), time.monotonic()
    found = {"rank": rank, "words": words, "train": train}[options.what](options, console)
    document = {
        "about": {
            "seeds": options.seeds, "texts": TEXTS,
            **({"first seed": options.first, "texts of words": WORD_TEXTS} if options.what == "words" else {}),
            **({"steps": options.steps, "pool": POOL, "batch": BATCH, "rate": RATE} if options.what == "train" else {}),
            "device": f"CPU, one thread ({platform.processor() or platform.machine()})", "torch": torch.__version__,
            "interptrain": interptrain.__version__, "seconds": round(time.monotonic() - started),
            "commit": subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], text=True).strip(),
        },
        **found,
    }  # fmt: skip
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
