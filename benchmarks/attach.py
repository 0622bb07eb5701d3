"""What attaching to a model of 2 billion parameters takes: memory beyond the model, and seconds.

    python benchmarks/attach.py [--tunings lora full] [--modes gradient update] [--out benchmarks/results/attach.json]

Random weights in bfloat16 on the CPU, a read-out of 16,384 latents as wide as the stream (JumpReLU, float32, as Gemma
Scope's) and three concepts of eight latents behind the middle block; `attach` with its default options. Each row is a
process of its own. It builds the model, its optimizer and the bank, takes one step without steering, and then

    peak             largest resident memory while `attach` runs            -  resident memory just before
    attached         resident memory after `attach`                         -  the same
    after a step     that after the first steered step and `zero_grad`      -  the same
    a step's peak    largest resident memory of the first steered step      -  that of the step without

as the kernel counts them (`VmHWM`, which is set back to `VmRSS` before each, so Linux alone). The allocator is told to
map blocks from 64 KiB on by themselves, so that what is freed is given back at once. `dry_run` foretells what is held.

In full fine-tuning both steps are the optimizer's alone, without gradients, which would take as much as the model: the
sites are copied all the same, but no dictionary is read, whose rows are among what is foretold.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script's own path has its folder alone

import torch  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from rich.box import SIMPLE_HEAD  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig  # noqa: E402
from torch import nn  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402
from transformers.initialization import no_init_weights  # noqa: E402

from benchmarks.blocks import save  # noqa: E402
from interptrain import ConceptBank, observe, suppress  # noqa: E402
from interptrain.callbacks.torch import attach  # noqa: E402
from interptrain.callbacks.transformers import ConceptSteering  # noqa: E402
from interptrain.concepts.saelens import from_saelens  # noqa: E402

TUNINGS, MODES, RULES = ("lora", "full"), ("gradient", "update"), ("observe", "suppress")
RANK, TOKENS, CONCEPTS, LATENTS = 16, 8, ("pirate", "royal", "arithmetic"), 8
MIB = 2**20
BARE = ("demand", "gradient")  # the meters that keep no copy of the sites


@dataclass(frozen=True)
class Shape:
    """A model whose head is its embedding, and the width of the dictionary.

    Args:
        kind: as Transformers names the architecture.
        layers: blocks.
        width: of the residual stream.
        mlp: of its hidden layer.
        heads: of the queries, each 1 / 8 of the width or `head` wide.
        keys: heads of keys and values.
        head: width of a head.
        words: rows of the embedding.
        latents: of the read-out.
    """

    kind: str
    layers: int
    width: int
    mlp: int
    heads: int
    keys: int
    head: int
    words: int
    latents: int

    @property
    def hook(self) -> str:
        """Behind the middle block."""
        return f"blocks.{self.layers // 2 - 1}.hook_resid_post"


LARGE = Shape("gemma2", layers=26, width=2304, mlp=9216, heads=8, keys=4, head=256, words=256_000, latents=16_384)
SHAPES = {
    "small": Shape("llama", layers=2, width=512, mlp=2048, heads=2, keys=1, head=256, words=512, latents=16_384),
    "gemma-2-2b": LARGE,
    "gemma-2-2b, 131k latents": replace(LARGE, latents=131_072),
}


@dataclass(frozen=True)
class Row:
    """What is attached to what."""

    shape: str
    trained: str
    steered: str
    rule: str
    meters: str = "default"


def build(shape: Shape, tuning: str) -> nn.Module:
    """A model with random weights, adapted or not.

    Every row of a matrix is the same: 2.6 billion draws take longer than all that is measured.
    """
    config = AutoConfig.for_model(
        shape.kind, vocab_size=shape.words, hidden_size=shape.width, intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.keys,
        head_dim=shape.head, tie_word_embeddings=True,
    )  # fmt: skip
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.tie_weights()
    for matrix in (parameter for parameter in model.parameters() if parameter.ndim == 2):
        matrix.data.copy_(torch.randn(matrix.shape[1]).mul(0.02).expand_as(matrix))
    if tuning == "full":
        return model
    adapters = LoraConfig(r=RANK, target_modules="all-linear", lora_alpha=2 * RANK)
    return get_peft_model(model, adapters, autocast_adapter_dtype=False)


def concepts(shape: Shape) -> ConceptBank:
    """Three concepts and the whole read-out that they come from."""
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=shape.width, d_sae=shape.latents))
    chosen = {name: range(LATENTS * number, LATENTS * (number + 1)) for number, name in enumerate(CONCEPTS)}
    return from_saelens(sae, chosen, hook=shape.hook)


def measure(row: Row, threads: int) -> dict[str, Any]:
    """One row, in a process of its own."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    shape = SHAPES[row.shape]
    model = build(shape, row.trained)
    bank = concepts(shape)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)  # B stays at its start
    ids = torch.randint(0, shape.words, (1, TOKENS))

    def step() -> None:
        if row.trained == "lora":
            model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    rule = observe() if row.rule == "observe" else suppress(CONCEPTS[0])
    options: dict[str, Any] = {"where": row.steered} | ({"meters": BARE} if row.meters == "bare" else {})
    plain = watched(step)
    plan, planning = timed(lambda: ConceptSteering(bank, rule, **options).dry_run(model, show=False))
    before = resident("VmRSS")
    attaching = watched(lambda: attach(model, optimizer, bank, rule, summary=False, **options))
    attached = resident("VmRSS")
    steered = watched(step)
    held = resident("VmRSS")
    attaching["result"].detach()
    return {
        **asdict(row),
        "model_bytes": sum(parameter.nbytes for parameter in model.parameters()),
        "bank_bytes": sum(w.nbytes for readout in bank.readouts.values() for w in readout.weights.values()),
        "site_parameters": sum(site.parameter.numel() for site in plan.sites),
        "sites": len(plan.sites),
        "foretold_bytes": plan.extra_bytes,
        "planning_seconds": planning,
        "attaching_seconds": attaching["seconds"],
        "attaching_peak_bytes": attaching["peak"],
        "attached_bytes": attached - before,
        "held_bytes": held - before,
        "left_bytes": resident("VmRSS") - before,
        "step_peak_bytes": steered["peak"] - plain["peak"],
        "plain_step_seconds": plain["seconds"],
        "steered_step_seconds": steered["seconds"],
    }


def timed(act: Callable[[], Any]) -> tuple[Any, float]:
    """What comes of it, and the seconds."""
    started = time.perf_counter()
    return act(), time.perf_counter() - started


def watched(act: Callable[[], Any]) -> dict[str, Any]:
    """What comes of it, the seconds, and how far resident memory rose above where it was."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back
    before = resident("VmRSS")
    result, seconds = timed(act)
    peak = resident("VmHWM") - before
    gc.collect()
    return {"result": result, "seconds": seconds, "peak": peak}


def resident(key: str) -> int:
    """Bytes, as the kernel counts them."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {key}: this benchmark needs Linux")


def alone(act: Callable[..., Any], *given: Any) -> Any:
    """What a function of a module returns in a new process that gives memory back at once."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(64 * 1024)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(act, *given).result()


def rows(arguments: argparse.Namespace) -> Iterable[Row]:
    """Every combination that was asked for, and full fine-tuning without the meter that copies the sites.

    A wider dictionary is attached once, as observed: what is trained does not matter to it.
    """
    for case in product(arguments.shapes, arguments.tunings, arguments.modes, arguments.rules):
        yield Row(*case)
    for shape in arguments.shapes:
        if "full" in arguments.tunings and "gradient" in arguments.modes:
            yield Row(shape, "full", "gradient", "suppress", "bare")
    if "gemma-2-2b" in arguments.shapes:
        yield Row("gemma-2-2b, 131k latents", "lora", "gradient", "observe")


def show(results: Iterable[dict[str, Any]]) -> None:
    """The table."""
    table = Table(box=SIMPLE_HEAD, title="MiB beyond the model, its optimizer and the bank")
    for column in ("shape", "trained", "steered", "rule", "meters"):
        table.add_column(column)
    keys = ("attaching_peak_bytes", "attached_bytes", "held_bytes", "foretold_bytes", "step_peak_bytes")
    for column in ("peak", "attached", "after a step", "foretold", "a step's peak", "attaching, s", "dry_run, s"):
        table.add_column(column, justify="right")
    for row in results:
        table.add_row(
            *(row[key] for key in ("shape", "trained", "steered", "rule", "meters")),
            *(f"{row[key] / MIB:,.0f}" for key in keys),
            *(f"{row[key]:.1f}" for key in ("attaching_seconds", "planning_seconds")),
        )
    Console(width=140).print(table)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=("small", "gemma-2-2b"), default=["gemma-2-2b"])
    parser.add_argument("--tunings", nargs="+", choices=TUNINGS, default=list(TUNINGS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--rules", nargs="+", choices=RULES, default=["suppress"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/attach.json"))
    arguments = parser.parse_args(argv)
    settings = {"rank": RANK, "tokens": TOKENS, "concepts": dict.fromkeys(CONCEPTS, LATENTS)}
    results: list[dict[str, Any]] = []
    for row in rows(arguments):
        results.append(alone(measure, row, arguments.threads))
        measured = {each["shape"]: asdict(SHAPES[each["shape"]]) for each in results}
        libraries = ("torch", "transformers", "peft", "sae-lens")
        save(arguments, libraries, settings | {"models": measured}, results=results)  # a run that is stopped keeps them
    show(results)


if __name__ == "__main__":
    main()
