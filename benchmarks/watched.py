"""A run to be watched: pirate is suppressed, royal takes its place, and the alarm rings. docs/watching.md shows it.

python benchmarks/watched.py [--out runs/watched] [--seeds 2] [--steps 40]
interptrain watch runs/watched                  # in another terminal
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # a script's own path has its folder alone

from interptrain.recorders import JSONLRecorder  # noqa: E402
from tests.helpers.watched import rerouted_run  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/watched"), help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=40, help="default: %(default)s")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in range(options.seeds):
        rerouted_run(options.steps, JSONLRecorder(options.out / "curves" / f"suppressed-{seed}.jsonl"), seed=seed)


if __name__ == "__main__":
    main()
