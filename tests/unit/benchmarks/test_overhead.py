"""The blocks of the overhead benchmark, and that its loops train alike, steered and not."""

import csv
from itertools import cycle, islice

import pytest
import torch

from benchmarks import overhead
from benchmarks.blocks import Blocks
from benchmarks.overhead import ARMS, LOOPS, RUNS, Run
from interptrain import tiny_world


def test_every_second_block_is_steered_and_its_attaching_is_timed_apart():
    blocks, heard = Blocks(2), []
    for step in range(8):
        blocks.begin(step, lambda step=step: heard.append(("attach", step)))
        heard.append(blocks.on)
        blocks.end(step, lambda step=step: heard.append(("detach", step)))
    off, on = [False, False], [True, True]
    assert heard == [*off, ("attach", 2), *on, ("detach", 3), *off, ("attach", 6), *on, ("detach", 7)]
    assert [len(blocks.seconds[steered]) for steered in (False, True)] == [2, 2]
    assert len(blocks.attaching) == 2


def test_every_run_has_a_row_of_its_own():
    assert len({(run.tuning, run.row) for run in RUNS}) == len(RUNS)
    assert {run.row for run in RUNS if run.loop == "lightning"} == set(ARMS)


@pytest.mark.slow
def test_the_loops_train_alike_and_are_steered_in_every_second_block(tmp_path):
    batches = list(islice(cycle(islice(tiny_world.finetuning_set("mixed", batch=4), 5)), 20))
    rows = {}
    for loop, train in LOOPS.items():
        torch.manual_seed(0)
        folder = tmp_path / loop
        train(Run(loop, "lora", "suppress the update"), Blocks(5), batches, str(folder))
        rows[loop] = [row for row in logged(folder) if row.get("concept/pirate/demand")]
    steps = {"lightning": [9, 19], "hugging face": [10, 20], "torch": [9, 19]}
    for loop, found in rows.items():
        assert [int(row["step"]) for row in found] == steps[loop]
        for key in ("demand", "write", "gain", "achieved"):
            figures = [float(row[f"concept/pirate/{key}"]) for row in found]
            others = [float(row[f"concept/pirate/{key}"]) for row in rows["lightning"]]
            assert figures == pytest.approx(others, rel=1e-2, abs=1e-5), (loop, key)


@pytest.mark.slow
def test_a_short_benchmark_writes_its_result(tmp_path):
    out = tmp_path / "overhead.json"
    overhead.main(["--pairs", "1", "--block", "2", "--loops", "torch", "--arms", "observe", "--out", str(out)])
    assert '"loop": "torch"' in out.read_text()


def logged(folder):
    path = next(folder.rglob("metrics.csv"))
    return list(csv.DictReader(path.read_text().splitlines()))
