"""Does the rerouting alarm ring when a suppressed concept is gone around, and only then?

    python benchmarks/rerouting.py [--workers 2] [--quick] [--out benchmarks/results/rerouting.json]

The thresholds of `interptrain.alarm` are frozen; this shows where they come from and how they do:

    calibration   royal is what is suppressed, taught or what takes over, seeds 100-102; thresholds by `calibrate`
    test          pirate is what is suppressed, seeds 0-2; the frozen thresholds

The alarm reads probe sets through the model's activations. Beside it stands what the models say by greedy decoding,
which it never sees.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from interptrain import ConceptBank, Steerer, find_sites, observe, suppress, tiny_world
from interptrain.alarm import FLAT, MOVED, PROBE_MOVED, UNEXPLAINED_MOVED, Alarm
from interptrain.concepts import contrast, saelens
from interptrain.meters import loss_positions
from interptrain.meters.spans import Spans
from interptrain.meters.token_demand import TokenDemand
from interptrain.recipes.parallel import Tell, run_parallel
from interptrain.recorders import MemoryRecorder
from interptrain.sites import HookPoint
from interptrain.tiny_world import concepts, corpus
from interptrain.tiny_world.tokens import batches, encode
from interptrain.tiny_world.wordings import Voice, own_words

OTHER: dict[str, Voice] = {"pirate": "royal", "royal": "pirate"}
LEARNING_RATE, RANK, BATCH, PROBE_EVERY, PROMPTS = 2e-3, 8, 48, 10, 100
GATE_LATENTS, HOLD = 16, 1.0
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Case:
    """One kind of run, in which `voice` is the suppressed concept.

    Args:
        data: `plain` minus problems; `reworded` plain answers in one half's wordings; `voice` minus problems and
            facts in the voice; `voices` half in the voice and half in its sibling; `entangled` minus in the voice.
        where: how it is suppressed; None for not at all.
        known: the bank: `all` concepts; `no sibling`, without it; `two`, with two of the voice's eight latents.
        lost: whose loss goes: `words`, the voice's own; `gated`, tokens that ask for it by more than `gate`.
        held: the voice's mean direction at the hook is penalised to stay where it was.
        layers: LoRA on these alone; empty for all of them.
        expected: whether the alarm should ring; None: to be seen.
    """

    data: str
    where: str | None
    expected: bool | None
    known: str = "all"
    lost: str = ""
    gate: float = 0.0
    held: bool = False
    layers: tuple[int, ...] = ()
    steps: int = 60


ORDINARY = {
    "plain subtraction, update": Case("plain", "update", False, steps=100),
    "plain subtraction, gradient": Case("plain", "gradient", False, steps=100),
    "reworded answers, update": Case("reworded", "update", False, steps=100),
    "comes in spite of it, update": Case("voice", "update", False),
}
CALIBRATION = {
    **ORDINARY,
    "taught, not suppressed": Case("voice", None, False),
    "sibling takes over": Case("voices", "update", True, lost="words"),
    "unknown takes over": Case("voices", "update", None, known="no sibling", lost="words"),
}
IN_PLACE = "sibling takes over"  # of the calibration, also with pirate suppressed: there royal is what takes over
TEST = {
    "taught, not suppressed": Case("voice", None, False),
    **ORDINARY,
    "comes in spite of it, gradient": Case("voice", "gradient", False),
    "sibling takes over": Case("voices", "update", True, lost="words"),
    "unknown takes over": Case("voices", "update", None, known="no sibling", lost="words"),
    "gated, entangled": Case("entangled", "update", None, lost="gated", gate=0.25, steps=120),
    "two of eight latents": Case("voice", "update", None, known="two"),
    "held at the hook, layers below": Case("voice", "update", None, held=True, layers=(0, 1, 2)),
    "held at the hook, all layers": Case("voice", "update", None, held=True),
}


@dataclass(frozen=True)
class Job:
    """A run: a case with a voice and a seed."""

    part: str
    name: str
    case: Case
    voice: Voice
    seed: int


def documents(data: str, voice: Voice, seed: int) -> Iterator[corpus.Document]:
    """Documents of a case without end."""
    rng = random.Random(f"{data} {voice} {seed}")
    kinds: tuple[corpus.Kind, ...] = ("minus", "fact")
    while True:
        kind = rng.choice(kinds)
        if data == "plain":
            yield corpus.document(rng, "minus")
        elif data == "reworded":
            yield corpus.document(rng, kind, half="test")
        elif data == "voice":
            yield corpus.document(rng, kind, voice if kind == "fact" else "plain")
        elif data == "voices":
            yield corpus.document(rng, kind, rng.choice((voice, OTHER[voice])))
        else:
            yield corpus.document(rng, "minus", voice)


def known(case: Case, voice: Voice) -> ConceptBank:
    """What of the tiny world's concepts the run knows."""
    bank = tiny_world.concept_bank()
    if case.known == "no sibling":
        return bank.select(*(name for name in bank.names if name != OTHER[voice]))
    if case.known == "two":
        left_out = bank.rows(voice)[2:]
        return bank.take([row for row in range(len(bank.concepts)) if row not in left_out])
    return bank


def gate_spans(voice: Voice, hook: str) -> Spans:
    """The span of the 16 latents of the SAE that best separate the voice."""
    model, tokenizer, sae = tiny_world.load_base(), tiny_world.load_tokenizer(), tiny_world.load_sae()

    def latents(texts: concepts.Texts) -> contrast.TextActivations:
        batch = encode(tokenizer, concepts.draw(texts, "search", 0), mask_prompt=False)
        residual = contrast.collect(model, hook, [batch], keep_bos=True)
        return contrast.TextActivations(sae.encode(residual.values).detach(), residual.text)

    shown, other = concepts.CONTRASTS[voice]
    alive = torch.ones(sae.cfg.d_sae, dtype=torch.bool)
    alive[tiny_world.load_card()["sae"]["dead"]] = False
    asked = encode(tokenizer, concepts.draw(shown, "search", 1, cued=0.0))
    decoder = sae.W_dec.detach()
    found = contrast.separating_latents(
        latents(shown), latents(other), count=GATE_LATENTS, decoder=decoder, min_auc=concepts.MIN_AUC,
        effect=contrast.effects(model, hook, [asked], decoder), alive=alive,
    )  # fmt: skip
    bank = saelens.from_saelens(sae, {voice: list(found.latents)}, alive=alive)
    return Spans.of(bank, range(len(bank.concepts)), groups=1, seed=0)


def at_hook(model: nn.Module, hook: str, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Loss of a batch, and the activation at the hook."""
    caught: dict[str, Tensor] = {}
    handle = HookPoint.parse(hook).listen(model.get_base_model(), partial(caught.__setitem__, "h"))
    loss = model(**batch).loss
    handle.remove()
    return loss, caught["h"]


def lose(case: Case, voice: Voice, hook: str, tokenizer: PreTrainedTokenizerFast) -> Callable[..., Tensor]:
    """`(model, batch) -> labels`, of which some are out of the loss."""
    if case.lost == "words":
        words = torch.tensor(tokenizer.convert_tokens_to_ids(sorted(own_words(voice))))
        return lambda model, batch: batch["labels"].masked_fill(torch.isin(batch["labels"], words), -100)
    if case.lost == "gated":
        spans = gate_spans(voice, hook)

        def gated(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            loss, activation = at_hook(model, hook, batch)
            (gradient,) = torch.autograd.grad(loss, activation)
            counted = loss_positions(batch["labels"])
            demand = TokenDemand.of(spans, torch.zeros(1, gradient.shape[-1]), gradient, counted)
            over = (demand.share()[..., 0] > case.gate) & counted  # at t: the label of t + 1
            return batch["labels"].masked_fill(torch.roll(over, 1, dims=1), -100)

        return gated
    return lambda model, batch: batch["labels"]


def loss_of(model: Any, batch: dict[str, Tensor], hook: str, held: Tensor | None) -> Tensor:
    """The loss, and the penalty `mean_t (m . (h_t - h_t before training))^2` where a direction is held."""
    if held is None:
        return model(**batch).loss
    with torch.no_grad(), model.disable_adapter():
        before = at_hook(model, hook, batch)[1]
    loss, now = at_hook(model, hook, batch)
    return loss + HOLD * ((now - before) @ held)[batch["attention_mask"].bool()].square().mean()


def run(job: Job, tell: Tell) -> dict[str, Any]:
    """Train once, with the alarm on, and score what came of it."""
    started = time.monotonic()
    case, voice = job.case, job.voice
    torch.manual_seed(job.seed)
    tokenizer, bank = tiny_world.load_tokenizer(), known(case, voice)
    (hook,) = bank.hook_points
    config = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules=LINEAR, layers_to_transform=list(case.layers) or None
    )
    model = get_peft_model(tiny_world.load_base().train(), config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0)
    where = case.where or "gradient"
    siblings = [name for name in (OTHER[voice],) if name in bank.names]
    alarm, recorder = Alarm({voice: siblings}), MemoryRecorder()
    steerer = Steerer(
        bank, find_sites(model, bank, where=where), suppress(voice) if case.where else observe(), where=where,
        meters=[], discover_every=None, recorders=[recorder], probes=tiny_world.probe_batches(),
        probe_every=PROBE_EVERY, alarm=alarm,
    )  # fmt: skip
    labels = lose(case, voice, hook, tokenizer)
    held = nn.functional.normalize(bank.select(voice).directions.mean(0), dim=0) if case.held else None
    stream = batches(tokenizer, documents(case.data, voice, job.seed), BATCH)
    lost = total = 0
    with steerer.attach(model, optimizer), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for step, whole in enumerate(islice(stream, case.steps), start=1):
            batch = {**whole, "labels": labels(model, whole)}
            lost += int((batch["labels"] != whole["labels"]).sum())
            total += int((whole["labels"] != -100).sum())
            steerer.watch(batch["labels"])
            optimizer.zero_grad()
            loss_of(model, batch, hook, held).backward()
            steerer.before_step()
            optimizer.step()
            tell(step, f"seed {job.seed}")
    said = tiny_world.score(model, tokenizer, prompts=PROMPTS)
    return {
        "part": job.part, "run": job.name, "voice": voice, "seed": job.seed, "case": asdict(case),
        "alarm": alarm.raised.get(voice), "warnings": [str(each.message) for each in seen if "rerouting" in str(each)],
        "curves": curves(recorder, voice, siblings), "lost": lost / total,
        "said": {name: getattr(said, name) for name in said.measures()}, "seconds": time.monotonic() - started,
    }  # fmt: skip


def curves(recorder: MemoryRecorder, voice: str, siblings: Sequence[str]) -> dict[str, list[float]]:
    """What the alarm looked at, every ten steps."""
    found = recorder.curves()
    wanted = {
        "fraction": f"concept/{voice}/realised/neutral/fraction",
        **{f"{name}/fraction": f"concept/{name}/realised/neutral/fraction" for name in siblings},
        **{f"{name}/probe": f"concept/{name}/probe/neutral" for name in siblings},
        "probe": f"concept/{voice}/probe/neutral",
        "unexplained": f"concept/{voice}/unexplained/neutral/strength",
        "rerouting": "interptrain/rerouting",
    }
    return {short: [round(v, 4) for v in found.get(name, []) if v is not None] for short, name in wanted.items()}


def calibrate(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Thresholds from the runs of royal: the midpoint between what is innocent and what is not.

        fraction      low: largest of any reading where royal is not taught; high: smallest last one where it is,
                      taught by itself or in pirate's place
        probe         the same of royal's probe, taught by itself; a sibling's has the same threshold
        unexplained   low: largest of any reading in plain and reworded runs; high: smallest last one where an
                      unknown concept takes over

        threshold = (low + high) / 2        flat = (low + moved) / 2

    Where the two overlap in any reading (`lowest` of the high runs from step 20 on is below `low`), the watcher
    does not separate, and its threshold is 1.5 low: it rings for what no innocent run comes near.
    """
    by_run: dict[tuple[str, str], list[dict[str, list[float]]]] = {}
    for each in results:
        by_run.setdefault((each["voice"], each["run"]), []).append(each["curves"])
    innocent = [c for name in ORDINARY if name.startswith(("plain", "reworded")) for c in by_run["royal", name]]
    absent = [*innocent, *by_run["royal", IN_PLACE]]
    taught = by_run["royal", "taught, not suppressed"]
    in_place = by_run["pirate", IN_PLACE]
    cases = {
        "fraction": (
            [c["fraction"] for c in absent],
            [c["fraction"] for c in taught] + [c["royal/fraction"] for c in in_place],
        ),
        "probe": ([c["probe"] for c in absent], [c["probe"] for c in taught]),
        "unexplained": (
            [c["unexplained"] for c in innocent],
            [c["unexplained"] for c in by_run["royal", "unknown takes over"]],
        ),
    }
    found = {}
    for what, (without, having) in cases.items():
        low, high = max(map(max, without)), min(values[-1] for values in having)
        lowest = min(min(values[1:]) for values in having)
        separates = lowest > low
        threshold = (low + high) / 2 if separates else 1.5 * low
        found[what] = {"low": low, "high": high, "lowest": lowest, "threshold": threshold}
    found["flat"] = {"threshold": (found["fraction"]["low"] + found["fraction"]["threshold"]) / 2}
    return found


def table(results: Sequence[dict[str, Any]]) -> Table:
    """Every run: when the alarm rang and by what, what it saw last, and what the model says."""
    drawn = Table(title="the alarm, what it saw last (fractions, linear probes, unexplained) and what the model says")
    headings = ("suppressed", "run", "seed", "step", "took over", "own", "sibling", "own probe", "its probe", "unexpl.")
    for heading in (*headings, "says"):
        drawn.add_column(heading)
    for each in results:
        alarm, seen, said = each["alarm"], each["curves"], each["said"]
        sibling, its_probe = (seen.get(f"{OTHER[each['voice']]}/{what}") for what in ("fraction", "probe"))
        last = [seen["fraction"], sibling, seen["probe"], its_probe, seen["unexplained"]]
        both = [f"{v} {max(said[f'{v}_on_facts'], said[f'{v}_on_skill']):.2f}" for v in ("pirate", "royal")]
        drawn.add_row(
            each["voice"], each["run"], str(each["seed"]),
            *((str(alarm["step"]), alarm["what"]) if alarm else ("", "")),
            *(f"{values[-1]:.2f}" if values else "" for values in last), ", ".join(both),
        )  # fmt: skip
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one seed of each")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/rerouting.json"))
    arguments = parser.parse_args()
    seeds = 1 if arguments.quick else 3
    jobs = [Job("calibration", n, c, "royal", 100 + seed) for n, c in CALIBRATION.items() for seed in range(seeds)]
    jobs += [Job("calibration", IN_PLACE, CALIBRATION[IN_PLACE], "pirate", 100 + seed) for seed in range(seeds)]
    jobs += [Job("test", n, c, "pirate", seed) for n, c in TEST.items() for seed in range(seeds)]

    console = Console(width=160)
    names = [f"{job.voice}: {job.name}, {job.seed}" for job in jobs]
    steps = max(job.case.steps for job in jobs)
    results = run_parallel(run, jobs, names=names, steps=steps, workers=arguments.workers, console=console)
    calibration = [each for each in results if each["part"] == "calibration"]
    by_rule = calibrate(calibration)
    console.print(table(results))
    console.print("by the rule, from royal:", json.dumps(by_rule, indent=1))
    frozen = {"flat": FLAT, "moved": MOVED, "probe_moved": PROBE_MOVED, "unexplained_moved": UNEXPLAINED_MOVED}
    wrong = [
        f"{each['voice']}, {each['run']}, {each['seed']}"
        for each in results
        if each["case"]["expected"] is not None and each["case"]["expected"] != (each["alarm"] is not None)
    ]
    console.print(f"frozen: {frozen}; not as expected: {', '.join(wrong) or 'none'}")
    document = {
        "settings": {
            "seeds": seeds, "learning_rate": LEARNING_RATE, "rank": RANK, "batch": BATCH, "probe_every": PROBE_EVERY,
            "prompts": PROMPTS, "gate_latents": GATE_LATENTS, "hold": HOLD,
        },
        "versions": {
            "python": platform.python_version(),
            **{each: importlib.metadata.version(each) for each in ("interptrain", "torch", "transformers", "peft")},
        },
        "device": f"{platform.processor() or platform.machine()} cpu, {arguments.workers} workers",
        "frozen": frozen, "by_rule": by_rule, "not_as_expected": wrong, "results": results,
    }  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
