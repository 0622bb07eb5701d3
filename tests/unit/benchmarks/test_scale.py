"""What a step costs across processes: the formulas by hand, and against what small runs ask for, call by call."""

from itertools import product

import pytest

from benchmarks import scale
from benchmarks.scale import MODES, OURS, SHAPES, SMALL, TUNINGS, Concepts, Shape, Step, added_bytes, fsdp2_bytes

TINY = Shape(layers=2, width=8, readers=(8, 6), writers=(8, 6), words=10)
KNOWN = {
    "Pythia-70m": 70.4e6,
    "GPT-2": 124.4e6,
    "Llama-3.1-8B": 8.03e9,
    "Llama-3.1-70B": 70.6e9,
    "Llama-3.1-405B": 405.9e9,
}
TALLY = 4 * 2 + 3 * 2 * 64 + 1  # of two concepts
INPUTS = (8 + 1) + (6 + 1)  # of the writers of the first block


@pytest.mark.parametrize("name", KNOWN)
def test_shapes_have_as_many_parameters_as_their_models(name):
    assert SHAPES[name].parameters == pytest.approx(KNOWN[name], rel=2e-3)


def test_full_fine_tuning_sums_coefficients_of_writers_and_energies_of_readers():
    writers = (3 * 8 + 1) + (3 * 6 + 1)  # coefficients of K = 3 directions, and a total
    readers = 4 * (2 * 3 + 1)  # of the second block's two readers, the embedding and the head
    norms, edit = 3 * 8, 3 * (8 + 6)
    found = scale.step(TINY, "full", "gradient", Concepts(1, 3))
    tally = 4 + 3 * 64 + 1
    assert found.measured == [tally + INPUTS + writers + readers, norms, edit, writers + readers + 8]
    assert found.other == [norms, edit]
    achieved = 2 * edit + 2
    steered = scale.step(TINY, "full", "update", Concepts(1, 3))
    assert steered.measured == [tally + INPUTS + writers + readers, norms, edit, writers + readers + 8 + achieved]


def test_lora_sums_r_columns_a_writer_or_gathers_both_factors():
    writers = 2 * (2 * 16 + 1)
    writing, reading = 16 * ((8 + 8) + (8 + 6)), 16 * ((8 + 8) + (8 + 6))
    found = scale.step(TINY, "lora", "gradient", Concepts(2, 1))
    assert found.measured == [TALLY + INPUTS + writers, 2 * writing, 2 * 2 * 16]
    assert found.other == [2 * 2 * 16]
    steered = scale.step(TINY, "lora", "update", Concepts(2, 1))
    assert steered.measured == [TALLY + INPUTS + writers + 2 * 5, 2 * (writing + reading)]
    assert steered.other == [2 * (writing + reading)]


def test_null_groups_take_another_collective_once_one_is_full():
    half = scale.BUCKET // scale.FIGURE // 64 // 2
    held = [scale.Held("rows", half), scale.Held("columns", 5), scale.Held("rows", half), scale.Held("rows", 3)]
    assert scale.null(held, Concepts(7, 1)) == [7 * 64, 2 * half * 64, 3 * 64]


def test_a_mean_step_is_weighted_by_how_often_it_comes():
    cost = Step(measured=[10, 20], other=[4], null=[100])
    assert cost.mean(1) == 30 + 10
    assert cost.mean(4) == (30 + 10 + 3 * 4) / 4
    assert cost.mean(4, len) == (2 + 0.1 + 3) / 4


def test_a_ring_moves_a_sum_twice_and_a_gather_once():
    assert added_bytes(100, 4) == 2 * 3 / 4 * 400
    assert fsdp2_bytes(TINY, "full", 4) == 3 / 4 * 2 * (3 * TINY.parameters - TINY.root)
    for row in scale.paper([16], [2, 4096], 2):
        assert row["ratio"] == pytest.approx(row["moved_bytes"][4096] / row["moved_bytes_fsdp2"][4096])


@pytest.mark.parametrize(("wrap", "tuning", "where"), [*product(["fsdp2"], TUNINGS, MODES), ("ddp", "lora", "update")])
def test_two_processes_ask_for_what_the_formulas_say(wrap, tuning, where):
    cost = (scale.step if wrap == "fsdp2" else scale.by_ddp)(SMALL, tuning, where, Concepts.of(scale.DIRECTIONS))
    found = scale.in_processes(2, scale.count_steps, tuning, wrap, where)
    assert sorted(found["measured"]) == sorted(cost.measured)
    assert sorted(found["with null groups"]) == sorted(cost.measured + cost.null)
    assert sorted(found["other"]) == sorted(cost.other)
    if wrap == "fsdp2":
        own = [sum(elements) for elements in found["own"].values()]
        assert sorted(own) == sorted(scale.fsdp2_elements(SMALL, tuning))
        assert sum(map(len, found["own"].values())) == scale.fsdp2_collectives(SMALL, tuning)
        assert OURS not in found["own"]


@pytest.mark.slow
def test_a_short_benchmark_writes_its_result(tmp_path):
    out = tmp_path / "scale.json"
    few = ["--processes", "2", "--wraps", "fsdp2", "--tunings", "lora", "--modes", "update", "--pairs", "1"]
    scale.main([*few, "--block", "2", "--out", str(out)])
    assert '"processes": 2' in out.read_text()
