"""What attaching is measured by, and that it holds what was foretold."""

import json
import sys

import pytest
import torch

from benchmarks import attach
from benchmarks.attach import MIB, Row, alone, measure, watched
from interptrain.concepts.bank import ConceptBank, Readout
from interptrain.meters import Spans

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read as Linux counts it")
HOOK = "blocks.0.hook_resid_post"


def held_for_a_moment_and_kept():
    """What 192 MiB for a moment beside 64 MiB that are kept look like."""
    kept = []

    def act():
        kept.append(torch.ones(64 * MIB // 4))
        return float(torch.ones(192 * MIB // 4).sum())

    before = attach.resident("VmRSS")
    return watched(act), attach.resident("VmRSS") - before


def test_the_peak_is_what_was_held_for_a_moment_and_what_is_kept_stays():
    found, stays = alone(held_for_a_moment_and_kept)  # other tests leave memory that is taken again
    assert found["peak"] / MIB == pytest.approx(256, abs=16)
    assert stays / MIB == pytest.approx(64, abs=16)
    assert found["result"] == 192 * MIB // 4


@pytest.mark.slow
def test_a_row_holds_what_dry_run_foretold():
    row = alone(measure, Row("small", "lora", "update", "suppress"), 1)
    assert row["held_bytes"] / MIB == pytest.approx(row["foretold_bytes"] / MIB, abs=16)  # and the libraries' own


@pytest.mark.slow
def test_full_fine_tuning_holds_one_copy_of_the_sites_and_gives_it_back():
    row = alone(measure, Row("small", "full", "update", "suppress"), 1)
    copy = 2 * row["site_parameters"]  # bfloat16
    assert row["held_bytes"] - row["attached_bytes"] == pytest.approx(copy, rel=0.25)
    assert row["held_bytes"] - row["left_bytes"] == pytest.approx(copy, rel=0.25)
    assert row["foretold_bytes"] > copy


def test_null_groups_are_drawn_from_a_wide_dictionary_without_a_copy_of_it():
    decoder = torch.randn(65_536, 512)
    readout = Readout({}, {"W_dec": decoder}, torch.ones(len(decoder), dtype=torch.bool))
    bank = ConceptBank.from_directions({"pirate": decoder[:8]}, hook=HOOK)
    bank = ConceptBank(bank.directions, bank.concepts, bank.hooks, bank.sources, readouts={HOOK: readout})
    found = watched(lambda: Spans.of(bank, range(8)))
    assert found["result"].from_dictionary
    assert found["peak"] < decoder.nbytes / 2


@pytest.mark.slow
def test_a_short_benchmark_writes_its_result(tmp_path):
    out = tmp_path / "attach.json"
    options = ["--shapes", "small", "--tunings", "lora", "--modes", "gradient", "--rules", "observe", "suppress"]
    attach.main([*options, "--out", str(out)])
    results = json.loads(out.read_text())["results"]
    assert [row["rule"] for row in results] == ["observe", "suppress"]
