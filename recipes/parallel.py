"""Runs of a recipe, several at a time in processes of their own, under one live display."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TypeAlias, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Job = TypeVar("Job")
Result = TypeVar("Result")
Tell: TypeAlias = "Callable[[int, str], None]"


@dataclass(frozen=True)
class Teller:
    """What a run tells the display: how many steps are done, and a word about them. Travels between processes."""

    put: Callable[[tuple[int, int, str]], None]
    number: int

    def __call__(self, step: int, note: str) -> None:
        """Say it."""
        self.put((self.number, step, note))


def run_parallel(
    work: Callable[[Job, Tell], Result],
    jobs: Sequence[Job],
    *,
    names: Sequence[str],
    steps: int,
    workers: int,
    console: Console,
) -> list[Result]:
    """`[work(job, tell) for job in jobs]`, `workers` at a time; the first error ends the others that wait.

    Args:
        work: a function of a module, so that a fresh process can import it.
        jobs: what each call gets; pickled.
        names: of the jobs, on the display.
        steps: of each job, as told by `tell(step, note)`.
        workers: processes; each gets its share of the cores.
        console: where the display goes.
    """
    context = get_context("spawn")  # a fork would copy a torch that has already started its threads
    threads = max(1, (os.cpu_count() or 1) // workers)
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(workers, mp_context=context, initializer=_share_cores, initargs=(threads,)) as pool,
        display(console) as bars,
    ):
        queue = manager.Queue()
        tasks = [bars.add_task(name, total=steps, note="waiting", start=False) for name in names]
        futures = [pool.submit(work, job, Teller(queue.put, number)) for number, job in enumerate(jobs)]
        pending = set(futures)
        try:
            while pending:
                finished, pending = wait(pending, timeout=0.1)
                while not queue.empty():
                    number, step, note = queue.get()
                    bars.start_task(tasks[number])
                    bars.update(tasks[number], completed=step, note=note)
                for future in finished:
                    future.result()
        finally:
            for future in pending:
                future.cancel()
    return [future.result() for future in futures]


def display(console: Console) -> Progress:
    """A bar a run: how many steps are done, since when, and a word."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=10), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[note]}"), console=console,
    )  # fmt: skip


def _share_cores(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
