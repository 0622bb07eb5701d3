"""Runs that are steered in every second block of steps, what that costs, and the file where it is kept."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any


class Blocks:
    """Every second block of steps is steered; how long each block took, and each attaching.

    Args:
        size: steps of a block.
    """

    def __init__(self, size: int) -> None:
        self.size, self.on, self._started = size, False, 0.0
        self.seconds: dict[bool, list[float]] = {False: [], True: []}
        self.attaching: list[float] = []

    def begin(self, step: int, attach: Callable[[], object]) -> None:
        """Before a step: where a block begins, attach if it is to be steered, and start its clock."""
        if step % self.size:
            return
        self.on = (step // self.size) % 2 == 1
        if self.on:
            started = time.perf_counter()
            attach()
            self.attaching.append(time.perf_counter() - started)
        self._started = time.perf_counter()

    def end(self, step: int, detach: Callable[[], object]) -> None:
        """After a step: where a block ends, stop its clock, and detach if it was steered."""
        if (step + 1) % self.size:
            return
        self.seconds[self.on].append(time.perf_counter() - self._started)
        if self.on:
            detach()
        self.on = False

    def figures(self) -> dict[str, Any]:
        """Over pairs of neighbouring blocks, the time with the steering over the time without it; and the seconds."""
        pairs = list(zip(self.seconds[True], self.seconds[False], strict=True))
        ratios = [on / off for on, off in pairs]
        return {
            "ratio": statistics.median(ratios),
            "ratios": ratios,
            "plain_seconds_a_step": statistics.median(self.seconds[False]) / self.size,
            "added_seconds_a_step": statistics.median(on - off for on, off in pairs) / self.size,
            "attaching_seconds": statistics.median(self.attaching),
        }


def save(arguments: argparse.Namespace, libraries: Iterable[str], settings: Mapping[str, Any], **results: Any) -> None:
    """Write a benchmark's results to `arguments.out`, with its settings, the versions, the device and the commit."""
    options = {name: value for name, value in vars(arguments).items() if name != "out"}
    versions = {name: importlib.metadata.version(name) for name in ("interptrain", *libraries)}
    document = {
        "settings": {**options, **settings},
        "versions": {"python": platform.python_version(), **versions},
        "device": f"{platform.processor() or platform.machine()} CPU, {arguments.threads} threads",
        "commit": commit(),
        **results,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")


def commit() -> str:
    """Of the working directory."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"
