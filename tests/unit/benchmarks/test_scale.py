"""What a step costs across processes: the formulas by hand, and against what small runs ask for, call by call."""

from itertools import product

import pytest

from benchmarks import scale
from benchmarks.scale import (
    FIGURE,
    GATHER,
    MODES,
    SCATTER,
    SHAPES,
    SMALL,
    STORED,
    SUM,
    TUNINGS,
    Collective,
    Concepts,
    Shape,
    Step,
    fsdp2_bytes,
    gathered,
    moved_bytes,
    summed,
)

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
    norms, edit = Collective(GATHER, STORED * 3 * 8), 3 * (8 + 6)
    found = scale.step(TINY, "full", "gradient", Concepts(1, 3), 2)
    first = 4 + 3 * 64 + 1 + INPUTS + writers + readers
    assert found.measured == [*summed(first), norms, *summed(edit, writers + readers + 8)]
    assert found.other == [norms, *summed(edit)]
    achieved = 2 * edit + 2
    steered = scale.step(TINY, "full", "update", Concepts(1, 3), 2)
    assert steered.measured == [*summed(first), norms, *summed(edit, writers + readers + 8 + achieved)]


def test_lora_sums_r_columns_a_writer_or_gathers_both_factors():
    writers = 2 * (2 * 16 + 1)
    writing, reading = 16 * ((8 + 8) + (8 + 6)), 16 * ((8 + 8) + (8 + 6))
    found = scale.step(TINY, "lora", "gradient", Concepts(2, 1), 2)
    read = Collective(GATHER, STORED * 2 * writing)
    assert found.measured == [*summed(TALLY + INPUTS + writers), read, *summed(2 * 2 * 16)]
    assert found.other == summed(2 * 2 * 16)
    steered = scale.step(TINY, "lora", "update", Concepts(2, 1), 2)
    both = Collective(GATHER, STORED * 2 * (writing + reading))
    assert steered.measured == [*summed(TALLY + INPUTS + writers + 2 * 5), both]
    assert steered.other == [both]


def test_what_is_gathered_is_padded_and_summed_once_that_moves_less():
    assert gathered([(16, 5), (9, 16)], 8, 2) == [Collective(GATHER, 2 * (16 * 5 + 16 * 16))]
    assert gathered([(16, 5)], 32, 2) == [Collective(GATHER, 2 * 32 * 5)]
    assert gathered([(16, 5)], 33, 2) == [Collective(SUM, 2 * 16 * 5)]
    assert gathered([], 2, 2) == []


def test_null_groups_take_another_collective_once_one_is_full():
    half = scale.BUCKET // scale.FIGURE // 64 // 2
    held = [scale.Held("rows", half), scale.Held("columns", 5), scale.Held("rows", half), scale.Held("rows", 3)]
    assert scale.null(held, Concepts(7, 1)) == summed(7 * 64, 2 * half * 64, 3 * 64)


def test_a_mean_step_is_weighted_by_how_often_it_comes():
    cost = Step(measured=summed(10, 20), other=summed(4), null=summed(100))
    assert cost.mean(1, len) == 2 + 0.1
    assert cost.mean(4, len) == (2 + 0.1 + 3) / 4
    assert cost.mean(4, lambda found: moved_bytes(found, 2)) == FIGURE * (30 + 10 + 3 * 4) / 4


def test_a_ring_moves_a_sum_twice_and_a_gather_once():
    assert moved_bytes([Collective(SUM, 400), Collective(GATHER, 100)], 4) == 2 * 3 / 4 * 400 + 3 / 4 * 100
    assert fsdp2_bytes(TINY, "full", 4) == 3 / 4 * 2 * (3 * TINY.parameters - TINY.root)


@pytest.mark.parametrize(("wrap", "tuning", "where"), [*product(["fsdp2"], TUNINGS, MODES), ("ddp", "lora", "update")])
def test_two_processes_ask_for_what_the_formulas_say(wrap, tuning, where):
    cost = scale.small_step(2, tuning, wrap, where)
    found = {
        kind: sorted(Collective(*each) for each in made)
        for kind, made in scale.in_processes(2, scale.count_steps, tuning, wrap, where).items()
    }
    assert found["measured"] == sorted(cost.measured)
    assert found["with null groups"] == sorted(cost.measured + cost.null)
    assert found["other"] == sorted(cost.other)
    if wrap == "fsdp2":
        moved = [sum(each.size for each in found["others'"] if each.by == by) for by in (GATHER, SCATTER)]
        assert moved == [FIGURE * elements for elements in scale.fsdp2_elements(SMALL, tuning)]
        assert len(found["others'"]) == scale.fsdp2_collectives(SMALL, tuning)


@pytest.mark.slow
def test_a_short_benchmark_writes_its_result(tmp_path):
    out = tmp_path / "scale.json"
    few = ["--processes", "2", "--wraps", "fsdp2", "--tunings", "lora", "--modes", "update", "--pairs", "1"]
    scale.main([*few, "--block", "2", "--out", str(out)])
    assert '"processes": 2' in out.read_text()
