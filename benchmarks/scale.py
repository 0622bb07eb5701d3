"""What a step costs across processes: collectives and bytes, on paper for large models and counted on small ones.

    python benchmarks/scale.py --paper [--directions 1 16 64] [--ranks 8 512 4096]
    python benchmarks/scale.py [--processes 2 4] [--pairs 3] [--block 40] [--out benchmarks/results/scale.json]

FSDP2 divides every parameter on its first axis. With `K` directions, of a matrix on the stream with `n` columns:

    the stream's axis is divided      Q M = sum_ranks Q[:, rows] M[rows]               K n + 1 figures are summed
    the other axis is divided         ||q M||^2 = sum_ranks ||q M[:, columns]||^2      2 K + 1
    a LoRA pair, `write` or update    both factors, before and after the step          2 r (d_out + d_in) are gathered

All sums of one moment take one all-reduce, in float32; what is gathered takes one all-gather, in its own dtype (bf16)
and padded to pieces of `ceil(rows / N)` rows, or one all-reduce where that is less. A ring moves, per rank, of `N`,

    sums           2 (N - 1) / N * 4 * figures
    gathers        (N - 1) / N * 2 * min(padded, 2 * elements)
    FSDP2          (N - 1) / N * 2 * (2 P - root + trained)

where FSDP2 gathers the `P` parameters in the forward pass and again in the backward pass, but for the root module's
(embedding, head and last norm), which it keeps, and scatters the trained ones' gradients; what it pads itself is left
out. So the ratio depends on `N` by the padding alone; the time before a collective's first byte arrives depends on it
more.

The measured part trains a small Llama on this CPU (gloo): what one step asks for is counted call by call, and the
steering is switched off and on for blocks of steps in turn, as in `overhead.py`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed
import torch.multiprocessing
from peft import LoraConfig, get_peft_model
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script's own path has its folder alone

from benchmarks.blocks import Blocks, save  # noqa: E402
from interptrain import ConceptBank, Steerer, find_sites, processes, suppress  # noqa: E402
from interptrain.meters import NULL_GROUPS  # noqa: E402
from interptrain.meters.dictionary import FLIPS  # noqa: E402

FIGURE, STORED = 4, 2  # bytes: sums are float32, parameters and gradients bf16 on paper
EVERY, NULL_EVERY = 2, 10  # steps between measures, measures between null groups: those of the recipes
BUCKET = 2**26  # bytes of null groups' coefficients after which a collective is full
RANK = 16
WIDTH = 128  # of a table, at least
SUM, GATHER, SCATTER = "all-reduce", "all-gather", "reduce-scatter"
TUNINGS, MODES, WRAPS = ("lora", "full"), ("gradient", "update"), ("ddp", "fsdp2")


@dataclass(frozen=True)
class Shape:
    """A pre-norm transformer, as far as its size goes.

    Args:
        layers: blocks.
        width: of the residual stream.
        readers: outputs of the linear maps that read the stream, in a block.
        writers: inputs of those that write to it.
        words: rows of the embedding.
        places: rows of a table of positions; 0 without one.
        biases: whether the linear maps have them, and the norms too.
        transposed: weights are stored `[in, out]`, as GPT-2's.
        tied: the head is the embedding; where it trains it is counted as left out (`skip`).
        norms: in a block; each stands in front of its own readers.
    """

    layers: int
    width: int
    readers: tuple[int, ...]
    writers: tuple[int, ...]
    words: int
    places: int = 0
    biases: bool = False
    transposed: bool = False
    tied: bool = False
    norms: int = 2

    @property
    def root(self) -> int:
        """Parameters beside the blocks: the tables, the last norm and the head."""
        tables = (self.words if self.tied else 2 * self.words) + self.places
        return tables * self.width + self._norm

    @property
    def parameters(self) -> int:
        """How many there are."""
        linear = self.width * (sum(self.readers) + sum(self.writers))
        biases = sum(self.readers) + len(self.writers) * self.width if self.biases else 0
        return self.layers * (linear + biases + self.norms * self._norm) + self.root

    @property
    def adapters(self) -> int:
        """Elements of the LoRA factors of every linear map of the blocks."""
        return self.layers * RANK * sum(self.width + other for other in (*self.readers, *self.writers))

    @property
    def _norm(self) -> int:
        return self.width * (2 if self.biases else 1)


def llama(layers: int, width: int, keys: int, mlp: int, words: int) -> Shape:
    """A Llama: grouped queries, a gated MLP, no biases, untied."""
    return Shape(layers, width, (width, keys, keys, mlp, mlp), (width, mlp), words)


SHAPES = {
    "Pythia-70m": Shape(6, 512, (1536, 2048), (512, 2048), 50304, biases=True),
    "GPT-2": Shape(12, 768, (2304, 3072), (768, 3072), 50257, 1024, biases=True, transposed=True, tied=True),
    "Llama-3.1-8B": llama(32, 4096, 1024, 14336, 128256),
    "Llama-3.1-70B": llama(80, 8192, 1024, 28672, 128256),
    "Llama-3.1-405B": llama(126, 16384, 1024, 53248, 128256),
}


class Concepts(NamedTuple):
    """A bank at one hook point, behind the first half of the blocks."""

    number: int
    directions: int  # of each

    @classmethod
    def of(cls, directions: int) -> Concepts:
        """Concepts of four directions each."""
        size = math.gcd(directions, 4)
        return cls(directions // size, size)

    @property
    def all(self) -> int:
        """`K`."""
        return self.number * self.directions


@dataclass(frozen=True)
class Held:
    """A site whose parameter is divided on its first axis.

    Args:
        split: `"rows"` where that is the stream's axis, else `"columns"`.
        other: how long the other axis is.
        received: width of what a writer's module receives; 0 where no mean input is asked for.
        pair: rows and columns of both LoRA factors; nothing where it is none.
    """

    split: Literal["rows", "columns"]
    other: int
    received: int = 0
    pair: tuple[tuple[int, int], ...] = ()


def sites(shape: Shape, tuning: str, where: str) -> Iterator[Held]:
    """Writers of the first half of the blocks and readers of the second, as `find_sites` finds them."""
    first, second = shape.layers // 2, shape.layers - shape.layers // 2
    for width in shape.writers * first:
        if tuning == "lora":
            yield Held("rows", RANK, width, ((shape.width, RANK), (RANK, width)))
        else:
            yield Held("columns" if shape.transposed else "rows", width, width)
            if shape.biases:
                yield Held("rows", 1)
    for width in shape.readers * second:
        if tuning == "full":
            yield Held("rows" if shape.transposed else "columns", width)
        elif where == "update":
            yield Held("columns", RANK, pair=((width, RANK), (RANK, shape.width)))
    if tuning == "full":
        yield from (
            Held("columns", rows) for rows in (shape.places, *(() if shape.tied else [shape.words] * 2)) if rows
        )


class Collective(NamedTuple):
    """What is summed or gathered at once.

    Args:
        by: an all-reduce goes around a ring twice, an all-gather once.
        size: bytes of what every process has afterwards.
    """

    by: str
    size: int

    @property
    def ring(self) -> int:
        """What a rank moves of it, over `(N - 1) / N`."""
        return self.size * (2 if self.by == SUM else 1)


def summed(*figures: int) -> list[Collective]:
    """An all-reduce for each number of figures that is not 0."""
    return [Collective(SUM, FIGURE * each) for each in figures if each]


def gathered(shapes: Sequence[tuple[int, int]], ranks: int, stored: int) -> list[Collective]:
    """One all-gather of tensors' rows, padded to as many in every rank, or one all-reduce where that moves less."""
    whole = stored * sum(rows * columns for rows, columns in shapes)
    padded = stored * sum(ranks * math.ceil(rows / ranks) * columns for rows, columns in shapes)
    found = Collective(GATHER, padded) if padded <= 2 * whole else Collective(SUM, whole)
    return [found] if whole else []


@dataclass(frozen=True)
class Step:
    """The collectives of a step that is measured, of one that is not, and of null groups beside."""

    measured: list[Collective]
    other: list[Collective]
    null: list[Collective]

    def mean(self, every: int, cost: Callable[[list[Collective]], float]) -> float:
        """What a step costs, where every n-th is measured."""
        measured = cost(self.measured) + cost(self.null) / NULL_EVERY
        return (measured + (every - 1) * cost(self.other)) / every


def step(shape: Shape, tuning: str, where: str, concepts: Concepts, ranks: int, stored: int = STORED) -> Step:
    """What a step asks for under FSDP2, where every direction is steered to a fixed gain.

    In the order of a step: `demand`, the writers' mean inputs and `gradient`; the trained norms' weights; the pairs'
    factors; the edit; `write` and the achieved gains.
    """
    held = list(sites(shape, tuning, where))
    factors = [factor for site in held for factor in site.pair]
    coefficients = concepts.all * sum(site.other for site in held if site.split == "rows")
    read = reading(held, concepts)
    trained = 0 if tuning == "lora" else shape.norms * (shape.layers - shape.layers // 2) + (not shape.tied)
    norms = gathered([(shape.width, 1)] * trained, ranks, stored)
    pairs = gathered(factors * 2, ranks, stored)
    edit = summed(0 if where == "update" and pairs else coefficients)
    write = 0 if pairs else read + shape.width
    if where == "update" and not pairs:
        write += 2 * coefficients + 2 * concepts.number
    first = tally(concepts) + sum(site.received + 1 for site in held if site.received) + read
    return Step(
        measured=[*summed(first), *norms, *pairs, *edit, *summed(write)],
        other=[*norms, *(pairs if where == "update" else []), *edit],
        null=null(held, concepts) * (1 if pairs else 2),  # of the gradients; where nothing is gathered, of `write` too
    )


def by_ddp(shape: Shape, tuning: str, where: str, concepts: Concepts) -> Step:
    """The same under DDP, where gradients are whole: `demand` and the mean inputs alone."""
    received = sum(site.received + 1 for site in sites(shape, tuning, where) if site.received)
    return Step(summed(tally(concepts) + received), [], [])


def tally(concepts: Concepts) -> int:
    """Figures of `demand`, of `reinforced` and of their null groups."""
    return 4 * concepts.number + 3 * concepts.number * NULL_GROUPS + 1


def reading(held: Iterable[Held], concepts: Concepts) -> int:
    """Figures of the energies of all sites: coefficients and a total, or energies, signed sums and a total."""
    return sum((concepts.all * site.other if site.split == "rows" else 2 * concepts.all) + 1 for site in held)


def null(held: Iterable[Held], concepts: Concepts) -> list[Collective]:
    """The null groups' all-reduces: one of energies, and coefficients in as many as their size asks for."""
    found, bucket, by_columns = [], 0, False
    for site in held:
        if site.split == "columns":
            by_columns = True
            continue
        bucket += NULL_GROUPS * concepts.directions * site.other
        if bucket * FIGURE >= BUCKET:
            found.append(bucket)
            bucket = 0
    return summed(concepts.number * NULL_GROUPS if by_columns else 0, *found, bucket)


def discovery(shape: Shape) -> int:
    """Figures of a look at the whole dictionary: `sum g`, `sum g g^T` and the sign flips, and how many tokens."""
    return shape.width * (1 + shape.width + FLIPS) + 1


def fsdp2_elements(shape: Shape, tuning: str) -> tuple[int, int]:
    """What FSDP2 itself gathers in a step, and what it scatters."""
    adapters = shape.adapters if tuning == "lora" else 0
    return 2 * (shape.parameters + adapters) - shape.root, adapters or shape.parameters


def fsdp2_collectives(shape: Shape, tuning: str) -> int:
    """A block's two gathers and one scatter, the root's gather and, where it trains, its scatter."""
    return 3 * shape.layers + (1 if tuning == "lora" else 2)


def fsdp2_bytes(shape: Shape, tuning: str, ranks: int) -> float:
    """What of it a rank moves."""
    return (ranks - 1) / ranks * STORED * sum(fsdp2_elements(shape, tuning))


def moved_bytes(collectives: Iterable[Collective], ranks: int) -> float:
    """What of collectives a rank moves."""
    return (ranks - 1) / ranks * sum(each.ring for each in collectives)


def paper(directions: Sequence[int], ranks: Sequence[int], every: int) -> list[dict[str, Any]]:
    """One row a model, tuning, mode and number of directions."""
    found = []
    for (name, shape), tuning, where, number in product(SHAPES.items(), TUNINGS, MODES, directions):
        costs = {n: step(shape, tuning, where, Concepts.of(number), n) for n in ranks}
        moved = {n: cost.mean(every, partial(moved_bytes, ranks=n)) for n, cost in costs.items()}
        moved_fsdp2 = {n: fsdp2_bytes(shape, tuning, n) for n in ranks}
        cost = costs[ranks[-1]]
        found.append(
            {
                "model": name,
                "trained": tuning,
                "steered": where,
                "directions": number,
                "collectives": {kind: len(each) for kind, each in vars(cost).items()},
                "collectives_a_step": cost.mean(every, len),
                "collectives_fsdp2": fsdp2_collectives(shape, tuning),
                "bytes": {kind: sum(one.size for one in each) for kind, each in vars(cost).items()},
                "bytes_discovery": FIGURE * discovery(shape),
                "bytes_largest": max(each.size for each in (*cost.measured, *cost.null)),
                "moved_bytes": moved,
                "moved_bytes_fsdp2": moved_fsdp2,
                "ratio": {n: moved[n] / moved_fsdp2[n] for n in ranks},
            }
        )
    return found


def show(rows: Iterable[dict[str, Any]], ranks: Sequence[int], every: int) -> None:
    """The table of `--paper`."""
    table = grid(
        f"on paper, MB a rank and step: measured every {every} steps, null groups every {NULL_EVERY} measures; "
        f"FSDP2's, and the ratio to them, with N = {ranks[-1]}",
        ("model", "trained", "steered"),
        ("K", "collectives", "FSDP2's", *(f"N = {n}" for n in ranks), "FSDP2's", "ratio"),
    )
    for row in rows:
        counts = row["collectives"]
        table.add_row(
            row["model"], row["trained"], row["steered"], str(row["directions"]),
            f"{counts['measured']} or {counts['other']}", str(row["collectives_fsdp2"]),
            *(f"{row['moved_bytes'][n] / 1e6:,.1f}" for n in ranks),
            f"{row['moved_bytes_fsdp2'][ranks[-1]] / 1e6:,.0f}", f"{row['ratio'][ranks[-1]]:.2%}",
        )  # fmt: skip
    print_wide(table)


def grid(title: str, names: Iterable[str], figures: Iterable[str]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1))
    for name in names:
        table.add_column(name, no_wrap=True)
    for figure in figures:
        table.add_column(figure, justify="right", no_wrap=True)
    return table


def print_wide(table: Table) -> None:
    """A table as wide as it has to be, also into a file."""
    console = Console()
    console.width = max(console.width, WIDTH)
    console.print(table)


# Counted and timed.

SMALL = llama(4, 128, 64, 384, 512)
ROWS, LENGTH, DIRECTIONS = 8, 64, 16
COUNTED = {
    "all_reduce": SUM, "all_gather": GATHER, "all_gather_into_tensor": GATHER, "all_gather_single": GATHER,
    "reduce_scatter": SCATTER, "reduce_scatter_tensor": SCATTER, "reduce_scatter_single": SCATTER,
    "broadcast": "broadcast",
}  # fmt: skip


@dataclass
class Traffic:
    """Collectives that a process makes from Python: the package's, and others'."""

    ours: list[Collective] = field(default_factory=list)
    others: list[Collective] = field(default_factory=list)


@contextmanager
def counted() -> Iterator[Traffic]:
    """Counts the collectives made meanwhile from Python; DDP's own, which are not, are left out."""
    traffic = Traffic()
    real = {name: getattr(torch.distributed, name) for name in COUNTED if hasattr(torch.distributed, name)}

    def counting(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            ours = sys._getframe(1).f_globals["__name__"] == processes.__name__
            given = [each.nbytes for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
            # of two tensors the larger is the whole, the other this process's part
            (traffic.ours if ours else traffic.others).append(Collective(COUNTED[name], max(given, default=0)))
            return real[name](*args, **kwargs)

        return call

    for name in real:
        setattr(torch.distributed, name, counting(name))
    try:
        yield traffic
    finally:
        for name, function in real.items():
            setattr(torch.distributed, name, function)


def small(tuning: str) -> nn.Module:
    """`SMALL` with random weights; whole, or with LoRA in every linear map of its blocks."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=SMALL.words, hidden_size=SMALL.width, intermediate_size=SMALL.readers[-1],
            num_hidden_layers=SMALL.layers, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
        )
    )  # fmt: skip
    return model if tuning == "full" else get_peft_model(model, LoraConfig(r=RANK, target_modules="all-linear"))


def bank(concepts: Concepts) -> ConceptBank:
    """Random directions behind the first half of the blocks."""
    rows = torch.randn(concepts.number, concepts.directions, SMALL.width, generator=torch.Generator().manual_seed(1))
    named = {f"concept{number}": each for number, each in enumerate(rows)}
    return ConceptBank.from_directions(named, hook=f"blocks.{SMALL.layers // 2 - 1}.hook_resid_post")


class Training:
    """A small model in training in one of several processes, and what steers all its concepts.

    Args:
        tuning: one of `TUNINGS`.
        wrap: one of `WRAPS`.
        where: one of `MODES`.
        options: of the steerer.
    """

    def __init__(self, tuning: str, wrap: str, where: str, **options: Any) -> None:
        model = small(tuning)
        inner = model if tuning == "full" else model.get_base_model()
        if wrap == "fsdp2":
            for block in inner.model.layers:
                fully_shard(block, mesh=mesh())
            fully_shard(model, mesh=mesh())
        self.model = DistributedDataParallel(model) if wrap == "ddp" else model
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-3, foreach=True)
        directions = bank(Concepts.of(DIRECTIONS))
        found = find_sites(model, directions, where=where)
        rule = [suppress(name) for name in directions.names]
        self.steerer = Steerer(directions, found, rule, where=where, **options)
        self.random = torch.Generator().manual_seed(torch.distributed.get_rank())

    def attach(self) -> None:
        """Steer from now on."""
        self.steerer.attach(self.model, self.optimizer)

    def step(self, *, steered: bool) -> None:
        """One step, on this process's own tokens."""
        ids = torch.randint(1, SMALL.words, (ROWS, LENGTH), generator=self.random)
        self.model(input_ids=ids, labels=ids).loss.backward()
        if steered:
            self.steerer.before_step()
        self.optimizer.step()
        self.optimizer.zero_grad()


def mesh() -> Any:
    return torch.distributed.device_mesh.init_device_mesh("cpu", (torch.distributed.get_world_size(),))


def count_steps(tuning: str, wrap: str, where: str) -> dict[str, list[Collective]]:
    """The collectives of a step that is measured, of one with null groups too, and of one that is not measured.

    After the first step, which also gathers what does not change.
    """

    def last(steps: int, **options: Any) -> Traffic:
        training = Training(tuning, wrap, where, discover_every=None, **options)
        training.attach()
        for _ in range(steps):
            with counted() as traffic:
                training.step(steered=True)
        training.steerer.detach()
        return traffic

    measured = last(2, null_every=2)
    return {
        "measured": measured.ours,
        "with null groups": last(3, null_every=2).ours,
        "other": last(3, every=3).ours,
        "others'": measured.others,
    }


def time_steps(tuning: str, wrap: str, where: str, every: int, pairs: int, block: int) -> dict[str, Any]:
    """The paired ratio of a step's time."""
    training, blocks = Training(tuning, wrap, where, every=every, null_every=NULL_EVERY), Blocks(block)
    for _ in range(3):
        training.step(steered=False)
    for number in range(2 * pairs * block):
        blocks.begin(number, training.attach)
        training.step(steered=blocks.on)
        blocks.end(number, training.steerer.detach)
    return blocks.figures()


def in_processes(count: int, run: Callable[..., Any], *arguments: Any, threads: int = 1) -> Any:
    """What `run(*arguments)` returns, as JSON takes it, in the first of several processes (gloo)."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _process, (count, folder, threads, run, arguments), nprocs=count, start_method="fork"
        )
        return json.loads((Path(folder) / "result.json").read_text())


def _process(
    rank: int, count: int, folder: str, threads: int, run: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(threads)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=count)
    found = run(*arguments)
    if rank == 0:
        (Path(folder) / "result.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def small_step(ranks: int, tuning: str, wrap: str, where: str) -> Step:
    """What the formulas say of `SMALL`, whose parameters are float32."""
    concepts = Concepts.of(DIRECTIONS)
    if wrap == "ddp":
        return by_ddp(SMALL, tuning, where, concepts)
    return step(SMALL, tuning, where, concepts, ranks, FIGURE)


def measure(ranks: int, tuning: str, wrap: str, where: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row: what was counted, what the formulas say of it, and the time."""
    options = {"threads": arguments.threads}
    return {
        "processes": ranks,
        "wrap": wrap,
        "trained": tuning,
        "steered": where,
        "counted": in_processes(ranks, count_steps, tuning, wrap, where, **options),
        "formula": vars(small_step(ranks, tuning, wrap, where)),
        **in_processes(
            ranks, time_steps, tuning, wrap, where, arguments.every, arguments.pairs, arguments.block, **options
        ),
    }


def show_measured(rows: Iterable[dict[str, Any]]) -> None:
    """The table of what was counted and timed."""
    table = grid(
        "collectives and kB a rank moves in a step (measured, other), and time with the steering over time without it",
        ("processes", "wrap", "trained", "steered"),
        ("collectives", "kB", "ratio", "a step, ms", "added, ms"),
    )
    for row in rows:
        steps = [[Collective(*each) for each in row["counted"][kind]] for kind in ("measured", "other")]
        table.add_row(
            str(row["processes"]), row["wrap"], row["trained"], row["steered"],
            ", ".join(str(len(each)) for each in steps),
            ", ".join(f"{moved_bytes(each, row['processes']) / 1e3:.1f}" for each in steps),
            f"{row['ratio']:.3f} ({min(row['ratios']):.3f} to {max(row['ratios']):.3f})",
            *(f"{1e3 * row[key]:.1f}" for key in ("plain_seconds_a_step", "added_seconds_a_step")),
        )  # fmt: skip
    print_wide(table)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paper", action="store_true", help="print what the formulas say of large models, and end")
    parser.add_argument("--directions", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 512, 4096])
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--wraps", nargs="+", choices=WRAPS, default=list(WRAPS))
    parser.add_argument("--tunings", nargs="+", choices=TUNINGS, default=list(TUNINGS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--every", type=int, default=EVERY, help="steps between measures")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--block", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scale.json"))
    arguments = parser.parse_args(argv)
    on_paper = paper(arguments.directions, arguments.ranks, arguments.every)
    if arguments.paper:
        show(on_paper, arguments.ranks, arguments.every)
        return
    cases = product(arguments.processes, arguments.tunings, arguments.wraps, arguments.modes)
    results = [measure(*case, arguments) for case in cases]
    show_measured(results)
    settings = {"null_every": NULL_EVERY, "rank": RANK, "directions_measured": DIRECTIONS,
                "rows": ROWS, "length": LENGTH, "model": vars(SMALL)}  # fmt: skip
    save(arguments, ("torch", "transformers", "peft"), settings, paper=on_paper, results=results)


if __name__ == "__main__":
    main()
