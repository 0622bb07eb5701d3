from __future__ import annotations

import io
import os

import pytest
from rich.console import Console

from interptrain.recipes.parallel import Tell, run_parallel


def square(number: int, tell: Tell) -> tuple[int, int]:
    tell(1, f"squaring {number}")
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number * number, os.getpid()


def test_results_come_in_the_order_of_the_jobs_and_from_other_processes():
    results = _run([3, 1, 2])
    assert [value for value, _ in results] == [9, 1, 4]
    assert os.getpid() not in {process for _, process in results}


def test_an_error_in_a_run_is_the_recipe_s_error():
    with pytest.raises(ValueError, match="-1 is negative"):
        _run([-1, 2], workers=1)


def test_the_display_shows_what_each_run_says():
    shown = io.StringIO()
    _run([5], workers=1, console=Console(file=shown, width=120))
    assert "job 5" in shown.getvalue()
    assert "squaring 5" in shown.getvalue()


def _run(numbers: list[int], *, workers: int = 2, console: Console | None = None) -> list[tuple[int, int]]:
    return run_parallel(
        square,
        numbers,
        names=[f"job {number}" for number in numbers],
        steps=1,
        workers=workers,
        console=console or Console(file=io.StringIO()),
    )
