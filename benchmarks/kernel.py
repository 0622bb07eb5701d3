"""How long reading and steering a step's matrices takes: the kernels, torch, the naive loop, and the floor.

    python benchmarks/kernel.py [--device auto|cpu|cuda] [--sets PATTERN ...] [--rounds 15] [--markdown]

A set is one step's matrices: all factors of a LoRA model that touch the residual stream, the linears of a few whole
layers, or activation gradients. All but the last are steered (gain 0 of K directions: one direction set for every
writer, one a norm for its readers); where a row says so, energies along the directions are read too.

Before anything is timed, every arm's result is compared with the float64 formula; a wrong arm ends the run with
status 1. Then every round times every arm in a random order, so that a machine's drift meets all alike; a ratio is the
median over rounds of an arm's time over another's in the same round. Before each call, outside the timed part, the
gradients are restored and the last cache is flushed: a buffer four times its size is written, and read back so that no
call pays for another's unwritten lines. The matrices are described once, as views of gradients that stay where they
are.

    floor    every element read once, and written once where it is steered, at the rate of a large copy on the same
             device in the same run; directions are not counted, their bytes are in the result file
    device   CUDA events around a call, begun about a millisecond behind in the queue. What the host takes longer to
             start than that shows as gaps, and is counted.
    host     until the call returns, without waiting for the device

Compiling is timed apart. Where only a few layers are timed the figure is for one layer, and what a whole model of that
shape would take is extrapolated from it.
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
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.compiler import config as compiler_config

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script's own path has its folder alone

from interptrain import __version__  # noqa: E402
from interptrain.projection import Backend, Frame, Matrix, as_columns  # noqa: E402
from tests.helpers.baselines import Arm, Flat, Loop, PerParameter, Projected, energy_errors, largest_error  # noqa: E402

BACKENDS = ("torch", "cuda")
ALSO = ", energies too"  # a projector reads and then steers
ARMS = (
    "loop",
    "per parameter",
    "flat",
    "flat compiled",
    *(f"{name}{also}" for name in BACKENDS for also in ("", ALSO)),
)
MEGABYTE = 2**20


@dataclass(frozen=True)
class Model:
    """The linears of a Llama: how many layers, and their widths (`keys` of k_proj and v_proj)."""

    layers: int
    hidden: int
    intermediate: int
    keys: int


@dataclass(frozen=True)
class Site:
    """One matrix as it lies in memory, its residual axis, and the number of its direction set."""

    rows: int
    columns: int
    axis: int
    directions: int


@dataclass(frozen=True)
class ShapeSet:
    """One step's matrices.

    Args:
        model: whose.
        dtype: of the matrices.
        directions: `K` of each direction set.
        rank: of the LoRA factors; None for whole matrices.
        tokens: of activation gradients, which are the set then, and only read.
    """

    model: Model
    dtype: torch.dtype
    directions: int
    rank: int | None = None
    tokens: int | None = None

    @property
    def steered(self) -> bool:
        return self.tokens is None

    def timed_layers(self, layers: int) -> int | None:
        """How many layers are timed where that is not the whole model, or None."""
        return layers if self.rank is None and self.tokens is None else None

    def sites(self, layers: int) -> list[Site]:
        """The matrices that touch the residual stream, of `layers` layers where whole matrices are trained."""
        if self.tokens is not None:
            return [Site(self.tokens, self.model.hidden, axis=1, directions=0)]
        width, inner, keys = self.model.hidden, self.model.intermediate, self.model.keys
        found = []
        for layer in range(self.timed_layers(layers) or self.model.layers):
            attention, mlp = 1 + 2 * layer, 2 + 2 * layer
            readers = [(width, attention), (keys, attention), (keys, attention), (inner, mlp), (inner, mlp)]
            found += [Site(self.rank or out, width, axis=1, directions=norm) for out, norm in readers]
            found += [Site(width, self.rank or into, axis=0, directions=0) for into in (width, inner)]
        return found


LLAMA_8B = Model(layers=32, hidden=4096, intermediate=14336, keys=1024)
SMALL = Model(layers=32, hidden=512, intermediate=1376, keys=128)
BF16, FP32 = torch.bfloat16, torch.float32

SETS: dict[str, dict[str, ShapeSet]] = {
    "cuda": {
        "lora16-8b-bf16-k16": ShapeSet(LLAMA_8B, BF16, 16, rank=16),
        "lora16-8b-fp32-k16": ShapeSet(LLAMA_8B, FP32, 16, rank=16),
        "lora64-8b-bf16-k16": ShapeSet(LLAMA_8B, BF16, 16, rank=64),
        "lora64-8b-fp32-k16": ShapeSet(LLAMA_8B, FP32, 16, rank=64),
        "full-8b-bf16-k16": ShapeSet(LLAMA_8B, BF16, 16),
        "full-8b-fp32-k16": ShapeSet(LLAMA_8B, FP32, 16),
        "tokens16k-4096-bf16-k16": ShapeSet(LLAMA_8B, BF16, 16, tokens=2**14),
        "tokens16k-4096-bf16-k64": ShapeSet(LLAMA_8B, BF16, 64, tokens=2**14),
    },
    "cpu": {
        "lora16-512-fp32-k16": ShapeSet(SMALL, FP32, 16, rank=16),
        "lora16-512-fp32-k3": ShapeSet(SMALL, FP32, 3, rank=16),
        "full-512-fp32-k16": ShapeSet(SMALL, FP32, 16),
        "tokens2k-512-fp32-k16": ShapeSet(SMALL, FP32, 16, tokens=2**11),
    },
}


def chosen(patterns: Sequence[str], device: torch.device) -> dict[str, ShapeSet]:
    """The sets that match any pattern; `cpu` and `cuda` stand for those meant for that device.

    Raises:
        ValueError: a pattern matches nothing.
    """
    every = {name: each for group in SETS.values() for name, each in group.items()}
    found: dict[str, ShapeSet] = {}
    for pattern in patterns or [device.type]:
        matched = SETS.get(pattern) or {name: each for name, each in every.items() if fnmatch(name, pattern)}
        if not matched:
            raise ValueError(f"no set matches {pattern!r}; there are cpu, cuda, {', '.join(every)}")
        found |= matched
    return found


class Step:
    """The gradients of one step and what they are projected on; half of their energy lies along the directions."""

    def __init__(self, shapes: ShapeSet, layers: int, device: torch.device) -> None:
        random_numbers = torch.Generator(device).manual_seed(0)
        sites, width, count = shapes.sites(layers), shapes.model.hidden, shapes.directions
        normal = partial(torch.randn, generator=random_numbers, device=device)
        frames = {
            number: Frame.of(torch.nn.functional.normalize(normal(count, width), dim=-1))
            for number in sorted({site.directions for site in sites})
        }
        gains = torch.zeros(count, device=device)
        mixings = {number: frame.mixing(gains) if shapes.steered else None for number, frame in frames.items()}
        self.matrices: list[Matrix] = []
        self.originals: list[Matrix] = []
        self.gradients: list[Tensor] = []
        self._pristine: list[Tensor] = []
        for site in sites:
            gradient = normal(site.rows, site.columns)
            columns, basis = as_columns(gradient, site.axis), frames[site.directions].basis
            columns.addmm_(basis.T, normal(count, columns.shape[1]), alpha=math.sqrt(width / count))
            self._pristine.append(gradient.to(shapes.dtype))
            self.gradients.append(self._pristine[-1].clone())
            for tensors, matrices in ((self._pristine, self.originals), (self.gradients, self.matrices)):
                matrices.append(Matrix(as_columns(tensors[-1], site.axis), basis, mixings[site.directions]))
        self.elements = sum(gradient.numel() for gradient in self.gradients)
        self.direction_sets = len(frames)

    def restore(self) -> None:
        torch._foreach_copy_(self.gradients, self._pristine)


def moved_bytes(elements: int, dtype: torch.dtype, *, steered: bool) -> int:
    """What must cross the memory bus: each element read once, and written once where it is steered."""
    return elements * dtype.itemsize * (2 if steered else 1)


class Machine:
    """The device, its last cache, and how calls are timed on it."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats
        self.cuda = device.type == "cuda"
        self.cache = torch.cuda.get_device_properties(device).L2_cache_size if self.cuda else last_cache()
        self._buffer = torch.zeros(self.cache, device=device)  # float32: four times as many bytes

    def flush(self) -> None:
        """Leave nothing of use in the last cache; on CUDA also keep the device busy for about a millisecond."""
        for _ in range(16 if self.cuda else 1):
            self._buffer.zero_()
        self._buffer.sum()

    def seconds(self, call: Callable[[], object], before: Callable[[], None]) -> tuple[float, float]:
        """Medians over the repeats: of the device's time, and of the host's until the call returns."""
        host, events = [], []
        for _ in range(self.repeats):
            before()
            self.flush()
            if self.cuda:
                pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                events.append(pair)
                pair[0].record()
            started = time.perf_counter()
            call()
            host.append(time.perf_counter() - started)
            if self.cuda:
                pair[1].record()
                torch.cuda.synchronize(self.device)
        device = [start.elapsed_time(end) / 1e3 for start, end in events] or host
        return statistics.median(device), statistics.median(host)

    def copy_rate(self, rounds: int) -> float:
        """Bytes read and written a second by a copy of a buffer eight times the last cache."""
        source = torch.ones(2 * self.cache, device=self.device)
        target = torch.empty_like(source)
        times = [self.seconds(lambda: target.copy_(source), lambda: None)[0] for _ in range(rounds)]
        return 2 * source.nbytes / statistics.median(times)

    def name(self, threads: int) -> str:
        if self.cuda:
            return torch.cuda.get_device_name(self.device)
        return f"{platform.processor() or platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"


def last_cache() -> int:
    """Bytes of the CPU's largest cache, as Linux tells it; 64 MB elsewhere."""
    units = {"K": 2**10, "M": MEGABYTE}
    found = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) * units[size[-1]] for size in found if size[-1:] in units), default=64 * MEGABYTE)


class Skipped(Exception):  # noqa: N818 - nothing went wrong
    """Why an arm does not run here."""


def prepared(name: str, step: Step, device: torch.device) -> tuple[Arm, float | None]:
    """An arm, called once, and the seconds that its compilation took where it has one.

    Raises:
        Skipped: it cannot run here.
    """
    which = name.removesuffix(ALSO)
    if which in BACKENDS:
        arm: Arm = Projected(projector(which, device), step.matrices, reads=which != name)
        try:
            arm()
        except ValueError as why:  # the kernels take no matrix of this shape
            raise Skipped(str(why)) from why
        return arm, None
    if which != "flat compiled":
        makers: dict[str, Callable[[Sequence[Matrix]], Arm]] = {
            "loop": Loop,
            "per parameter": PerParameter,
            "flat": Flat,
        }
        arm = makers[which](step.matrices)
        arm()
        return arm, None
    try:
        torch.compiler.reset()
        arm = Flat(step.matrices, compiled=True)
        started = time.perf_counter()
        with compiler_config.patch(force_disable_caches=True), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="dynamo_pgo force disabled")
            arm()
            arm.energies().cpu()
        return arm, time.perf_counter() - started
    except RuntimeError as why:  # what torch.compile raises where it has no compiler, or cannot use it
        raise Skipped(f"torch.compile: {str(why).strip().splitlines()[0]}") from why


def projector(name: str, device: torch.device) -> Any:
    """A fresh projector of that name and no other.

    Raises:
        Skipped: the kernels cannot run here.
    """
    torch_path = Backend("torch").on(device)
    if name == "torch":
        return torch_path
    try:
        found = Backend(name).on(device)
    except RuntimeError as why:
        raise Skipped(str(why)) from why
    if isinstance(found, type(torch_path)):
        raise Skipped(f"Backend({name!r}) gave {type(found).__name__}")
    return found


def check(arm: Arm, step: Step) -> dict[str, Any]:
    """One call against the float64 formula.

    Errors are those of `largest_error` and `energy_errors`. The first may be `u` (what rounding to the
    matrices' type costs) for every time that the arm rounds, and 1e-5 for float32 sums, the second `4 u` and 1e-4.
    """
    step.restore()
    arm()
    rounding = torch.finfo(step.gradients[0].dtype).eps / 2
    pairs = zip(step.originals, step.matrices, strict=True)
    error = _largest(torch.stack([largest_error(original, matrix.columns) for original, matrix in pairs]))
    found = {
        "error": error,
        "output_roundings": error / rounding,
        "tolerance": rounding * arm.roundings(len(step.matrices[0].basis)) + 1e-5,
    }
    right = error <= found["tolerance"]
    if arm.reads:
        missed = _largest(energy_errors(step.originals, arm.energies()))
        found |= {"energy_error": missed, "energy_tolerance": 4 * rounding + 1e-4}
        right = right and missed <= found["energy_tolerance"]
    return {**found, "right": right}


def _largest(errors: Tensor) -> float:
    return float(torch.nan_to_num(errors, nan=math.inf).max())


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    return {"median": float(median), "low": float(low), "high": float(high)}


def summary(times: Mapping[str, Sequence[tuple[float, float]]], floor: float, cuda: bool) -> dict[str, dict[str, Any]]:
    """Of every arm the times, over the floor, and over those of every arm in the same round."""
    found: dict[str, dict[str, Any]] = {}
    for name, rounds in times.items():
        device, host = zip(*rounds, strict=True)
        found[name] = {"seconds": spread(device), "of_floor": spread([each / floor for each in device])}
        if cuda:
            found[name]["host_seconds"] = spread(host)
        found[name]["against"] = {
            other: spread([mine / theirs for mine, (theirs, _) in zip(device, times[other], strict=True)])
            for other in times
        }
    return found


def measure(
    shapes: ShapeSet, arguments: argparse.Namespace, machine: Machine, rate: float
) -> tuple[dict[str, Any], list[str]]:
    """All figures of one set, and what was wrong; nothing is timed where something was."""
    step = Step(shapes, arguments.layers, machine.device)
    moved = moved_bytes(step.elements, shapes.dtype, steered=shapes.steered)
    results: dict[str, dict[str, Any]] = {}
    arms: dict[str, Arm] = {}
    wrong = []
    for name in arguments.arms:
        if name.endswith(ALSO) and not shapes.steered:
            continue  # reading is all there is
        try:
            arm, compiling = prepared(name, step, machine.device)
        except Skipped as why:
            results[name] = {"skipped": str(why)}
            continue
        arms[name], checked = arm, check(arm, step)
        results[name] = {"energies": arm.reads, "check": checked}
        if compiling is not None:
            results[name]["compile_seconds"] = compiling
        if not checked["right"]:
            wrong.append(f"{name}: {checked}")
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    order, shuffled = list(arms), random.Random(0)
    for _ in range(0 if wrong else arguments.rounds):
        shuffled.shuffle(order)
        for name in order:
            times[name].append(machine.seconds(arms[name], step.restore))
    layers = shapes.timed_layers(arguments.layers)
    for name, found in summary(times, moved / rate, machine.cuda).items() if not wrong else ():
        results[name] |= found
        if layers is not None:
            a_layer = found["seconds"]["median"] / layers
            results[name] |= {"layer_seconds": a_layer, "extrapolated_seconds": a_layer * shapes.model.layers}
    described = {
        "matrices": len(step.matrices), "elements": step.elements, "dtype": str(shapes.dtype).removeprefix("torch."),
        "directions": shapes.directions, "direction_sets": step.direction_sets, "steered": shapes.steered,
        "timed_layers": layers, "extrapolated_layers": None if layers is None else shapes.model.layers,
        "moved_bytes": moved, "floor_seconds": moved / rate,
        "direction_bytes": 4 * step.direction_sets * shapes.directions * shapes.model.hidden,
    }  # fmt: skip
    return {**described, "arms": results}, wrong


def rows(sets: Mapping[str, Mapping[str, Any]], against: str) -> list[tuple[str, ...]]:
    """The table's cells, its header first, then a set after the other."""
    header = ("set", "arm", "energies", "time (quartiles)", "host", "x floor", f"x {against}", "extrapolated")
    found: list[tuple[str, ...]] = [header]
    for name, each in sets.items():
        layers = each["timed_layers"] or 1
        a_layer = f" (one of {layers} timed layers)" if each["timed_layers"] else ""
        floor = shown(each["floor_seconds"] / layers)
        whole = each["extrapolated_layers"]
        found.append((name + a_layer, "floor", "", floor, "", "1", "", ""))
        for arm, figures in each["arms"].items():
            if "skipped" in figures:
                found.append(("", arm, "", f"skipped: {figures['skipped']}", "", "", "", ""))
                continue
            seconds = {part: shown(value / layers) for part, value in figures["seconds"].items()}
            host, ratio = figures.get("host_seconds"), figures["against"].get(against)
            found.append((
                "", arm, "yes" if figures["energies"] else "no",
                f"{seconds['median']} ({seconds['low']} to {seconds['high']})",
                shown(host["median"] / layers) if host else "",
                f"{figures['of_floor']['median']:.3g}",
                f"{ratio['median']:.3g}" if ratio else "",
                f"{shown(figures['extrapolated_seconds'])}, {whole} layers" if whole else "",
            ))  # fmt: skip
    return found


def shown(seconds: float) -> str:
    """A time to three digits."""
    rounded = float(f"{seconds:.3g}")
    unit, size = next(((unit, size) for unit, size in (("s", 1.0), ("ms", 1e-3)) if rounded >= size), ("us", 1e-6))
    return f"{rounded / size:.3g} {unit}"


def print_table(cells: Sequence[Sequence[str]], title: str, markdown: bool) -> None:
    """Print it without the columns that hold nothing."""
    used = [number for number in range(len(cells[0])) if any(row[number] for row in cells[1:])]
    header, *body = [[row[number] for number in used] for row in cells]
    left = ("set", "arm", "energies")
    if markdown:
        lines = [header, ["---" if name in left else "---:" for name in header], *body]
        print("\n".join([title, "", *("| " + " | ".join(line) + " |" for line in lines)]))
        return
    table = Table(title=title)
    for name in header:
        table.add_column(name, justify="left" if name in left else "right")
    for row in body:
        if row[0]:
            table.add_section()
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def commit() -> str:
    """The short hash, with `dirty` behind it where the tree is not what was committed."""

    def git(*words: str) -> str:
        found = subprocess.run(["git", *words], capture_output=True, text=True, check=False, cwd=ROOT)
        return found.stdout.strip()

    return f"{git('rev-parse', '--short', 'HEAD') or 'unknown'}{' dirty' if git('status', '--porcelain') else ''}"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "interptrain": __version__, "torch": torch.__version__}
    for name in ("cuda-core", "triton"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--sets", nargs="+", default=[], help="names or patterns; `cpu`, `cuda`: that device's sets")
    parser.add_argument("--arms", nargs="+", choices=ARMS, metavar="ARM", help="; ".join(ARMS))
    parser.add_argument("--against", choices=ARMS, default="loop", metavar="ARM", help="what the table's ratios are to")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, help="calls a round, of which the median counts; 10 on cuda, 1 on cpu")
    parser.add_argument("--layers", type=int, default=4, help="of the sets of whole layers")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--markdown", action="store_true", help="print the table for the documentation")
    parser.add_argument("--out", type=Path, help="benchmarks/results/kernel-<device>.json where not given")
    arguments = parser.parse_args(argv)
    if arguments.device == "auto":
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments.arms = arguments.arms or [
        name for name in ARMS if arguments.device == "cuda" or not name.startswith("cuda")
    ]
    arguments.repeats = arguments.repeats or (10 if arguments.device == "cuda" else 1)
    arguments.out = arguments.out or ROOT / "benchmarks" / "results" / f"kernel-{arguments.device}.json"
    if min(arguments.rounds, arguments.repeats, arguments.layers, arguments.threads) < 1:
        parser.error("--rounds, --repeats, --layers and --threads are 1 or more")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parsed(argv)
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device, 0) if arguments.device == "cuda" else torch.device("cpu")
    try:
        sets = chosen(arguments.sets, device)
    except ValueError as why:
        sys.exit(f"kernel.py: {why}")
    machine = Machine(device, arguments.repeats)
    rate = machine.copy_rate(arguments.rounds)
    results, wrong = {}, []
    with torch.no_grad():
        for name, shapes in sets.items():
            results[name], found = measure(shapes, arguments, machine, rate)
            wrong += [f"{name}, {each}" for each in found]
    if wrong:
        sys.exit("\n".join(["wrong results; nothing was written:", *wrong]))
    title = f"{machine.name(arguments.threads)}, copy {rate / 1e9:.3g} GB/s; medians of {arguments.rounds} rounds"
    print_table(rows(results, arguments.against), title, arguments.markdown)
    document = {
        "settings": {**vars(arguments), "out": arguments.out.name, "sets": list(sets)},
        "versions": versions(),
        "device": machine.name(arguments.threads),
        "commit": commit(),
        "last_cache_bytes": machine.cache,
        "copy_bytes_a_second": rate,
        "sets": results,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
