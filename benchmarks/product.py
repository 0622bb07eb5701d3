"""What an exact gain on a LoRA pair's product costs the rest of the step, beside the least that it can cost.

    python benchmarks/product.py [--seeds 3] [--steps 200] [--out benchmarks/results/product.json]

A noisy linear regression through a pair of rank 8, width 128, trained by AdamW at 2e-3; after every step the change of
the product is given its gain by `steer_product`, and training goes on. Every fifth step is scored in float64:

    miss      || Q dW'' - (I + T) Q dW || / || Q dW ||
    off       || P (dW'' - dW) || / || P dW ||,  P = I - Q^T Q
    optimum   the same of the best product of that rank that has the gains exactly (Golub, Hoffman & Stewart, 1987)

Figures are medians over steps and seeds, and the largest miss of any step.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import platform
import statistics
from itertools import product
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from interptrain.projection import Factors, Frame, steer_product

WIDTH, OTHER, RANK, RATE, SCORED = 128, 96, 8, 2e-3, 5
STARTS = ("zero, writer", "zero, reader", "random", "svd")
COUNTS, GAINS = (1, 3, 8, 16), ("0", "0.5", "2", "unlike")


def start(name: str, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The frozen weight, the target, and a pair: outer factor first."""
    frozen = torch.randn(WIDTH, OTHER, generator=random) / math.sqrt(OTHER)
    low = torch.randn(WIDTH, 12, generator=random) @ torch.randn(12, OTHER, generator=random)
    target = frozen + 0.5 * low / math.sqrt(12 * OTHER)
    inner = (torch.rand(RANK, OTHER, generator=random) * 2 - 1) / math.sqrt(OTHER)
    outer = 0.1 * torch.randn(WIDTH, RANK, generator=random) if name == "random" else torch.zeros(WIDTH, RANK)
    if name == "svd":
        u, s, v = torch.linalg.svd(frozen, full_matrices=False)
        outer, inner = u[:, :RANK] * s[:RANK].sqrt(), s[:RANK].sqrt()[:, None] * v[:RANK]
        frozen = frozen - outer @ inner
    if name == "zero, reader":
        return frozen.T, target.T, inner.T.contiguous(), outer.T.contiguous()
    return frozen, target, outer, inner


def optimum(before: Factors, after: Factors, basis: Tensor, mixing: Tensor) -> float:
    """`off` of the constrained best approximation; NaN where the rank does not allow the gains."""
    now, change = after.outer @ after.inner, after.outer @ after.inner - before.outer @ before.inner
    wanted = basis @ now + mixing @ (basis @ change)
    rest = now - basis.T @ (basis @ now)
    _, sizes, rows = torch.linalg.svd(wanted, full_matrices=False)
    needed = int((sizes > 1e-5 * (basis @ change).norm()).sum())  # what is less is rounding
    if needed > RANK:
        return math.nan
    rows = rows[:needed]
    _, _, more = torch.linalg.svd(rest - (rest @ rows.T) @ rows, full_matrices=False)
    rows = torch.cat([rows, more[: RANK - needed]])
    return float(((rest @ rows.T) @ rows - rest).norm() / (change - basis.T @ (basis @ change)).norm())


def score(before: Factors, after: Factors, new: Factors, frame: Frame, gains: Tensor) -> tuple[float, float, float]:
    """`miss`, `off` and `optimum` of one step."""
    before, after, new = (Factors(each.outer.double(), each.inner.double()) for each in (before, after, new))
    factor = frame.factor.double()
    basis = torch.linalg.solve_triangular(factor, factor @ frame.basis.double(), upper=False)
    mixing = torch.linalg.solve(factor, (gains.double() - 1)[:, None] * factor)
    start_of, step, steered = (each.outer @ each.inner for each in (before, after, new))
    change, edit = step - start_of, steered - step
    asked = mixing @ (basis @ change)
    miss = float((basis @ edit - asked).norm() / (basis @ change).norm())
    off = float((edit - basis.T @ (basis @ edit)).norm() / (change - basis.T @ (basis @ change)).norm())
    return miss, off, optimum(before, after, basis, mixing)


def run(name: str, count: int, gain: str, seed: int, steps: int) -> list[tuple[float, float, float]]:
    """The scored steps of one run."""
    random = torch.Generator().manual_seed(seed)
    frozen, target, outer, inner = start(name, random)
    directions = torch.nn.functional.normalize(torch.randn(count, len(outer), generator=random), dim=-1)
    unlike = 3 * torch.rand(count, generator=random)
    gains = unlike if gain == "unlike" else torch.full((count,), float(gain))
    frame = Frame.of(directions)
    pair = [outer.requires_grad_(), inner.requires_grad_()]
    optimizer = torch.optim.AdamW(pair, lr=RATE, weight_decay=0.01)
    scores = []
    for number in range(steps):
        x = torch.randn(inner.shape[1], 32, generator=random)
        y = target @ x + 0.5 * torch.randn(len(outer), 32, generator=random)
        optimizer.zero_grad()
        (10 * (frozen @ x + outer @ (inner @ x) - y).square().mean()).backward()
        before = Factors(*(each.detach().clone() for each in pair))
        optimizer.step()
        after = Factors(*(each.detach().clone() for each in pair))
        new = steer_product(before, after, frame.basis, frame.mixing(gains))
        if number % SCORED == 0:
            scores.append(score(before, after, new, frame, gains))
        with torch.no_grad():
            outer.copy_(new.outer)
            inner.copy_(new.inner)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/product.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(title=f"rank {RANK}, width {WIDTH}: medians over steps and seeds")
    for column in ("start", "directions", "gain", "miss", "largest miss", "off", "optimum"):
        table.add_column(column, justify="left" if column == "start" else "right")
    results = []
    for name, count, gain in product(STARTS, COUNTS, GAINS):
        scores = [one for seed in range(arguments.seeds) for one in run(name, count, gain, seed, arguments.steps)]
        miss, off, least = (statistics.median(column) for column in zip(*scores, strict=True))
        found = {"miss": miss, "largest_miss": max(one[0] for one in scores), "off": off,
                 "optimum": None if math.isnan(least) else least}  # fmt: skip
        results.append({"start": name, "directions": count, "gain": gain, **found})
        shown = ("-" if value is None else f"{value:.2g}" for value in found.values())
        table.add_row(name, str(count), gain, *shown)
    Console().print(table)
    document = {
        "settings": {**vars(arguments), "out": str(arguments.out)},
        "versions": {"python": platform.python_version(),
                     **{name: importlib.metadata.version(name) for name in ("interptrain", "torch")}},
        "device": f"{platform.processor() or platform.machine()} CPU, 1 thread",
        "results": results,
    }  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
