"""The pure parts of the calibration: mixtures, running sums, correlations, the verdict; and a short run of it all."""

import json
from collections import Counter
from dataclasses import asdict
from itertools import islice

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks import calibration
from benchmarks.calibration import (
    BASELINES,
    LEARNING_RATES,
    SHARES,
    SUMS,
    TRAITS,
    Mixture,
    Settings,
    above_null,
    correlation,
    correlations,
    finished,
    look_up,
    mixtures,
    pearson,
    ranks,
    verdicts,
    weight_cosine,
)
from interptrain.tiny_world.score import speaks


def test_a_longer_benchmark_begins_with_the_runs_of_a_shorter_one():
    assert mixtures(40)[:7] == mixtures(7)
    assert mixtures(7, seed=1) != mixtures(7)


def test_every_mixture_is_of_the_stated_shares_and_sums_to_one():
    drawn = mixtures(300)
    assert {each.pirate for each in drawn} == {each.royal for each in drawn} == set(SHARES)
    assert {each.learning_rate for each in drawn} == set(LEARNING_RATES)
    for each in drawn:
        parts = [each.pirate, each.royal, each.minus, each.plus, each.facts]
        assert min(parts) >= 0
        assert sum(parts) == pytest.approx(1)


def test_voices_and_rates_are_drawn_apart_from_each_other():
    drawn = [(each.pirate, each.royal, each.learning_rate) for each in mixtures(3000)]
    assert np.abs(np.corrcoef(np.array(drawn).T) - np.eye(3)).max() < 0.06


def test_documents_come_in_the_mixture_s_shares_and_are_asked_plainly():
    mixture = Mixture(pirate=0.3, royal=0.1, minus=0.2, plus=0.15, facts=0.25, learning_rate=1e-3)
    drawn = list(islice(mixture.documents(0), 4000))
    found = Counter((each.kind, each.voice) for each in drawn)
    expected = {("fact", "pirate"): 0.3, ("fact", "royal"): 0.1, ("minus", "plain"): 0.2, ("plus", "plain"): 0.15}
    for which, share in expected.items():
        assert found[which] / len(drawn) == pytest.approx(share, abs=0.03)
    assert not any(speaks(each.question, voice) for each in drawn for voice in ("pirate", "royal"))
    assert [each.text for each in drawn[:20]] != [each.text for each in islice(mixture.documents(1), 20)]


def test_the_null_holds_until_it_is_measured_again():
    assert above_null([0.3, 0.3, None, 0.5], [0.1, None, None, 0.4]) == pytest.approx(0.2 + 0.2 + 0 + 0.1)


def test_correlations_are_those_of_scipy_with_ties():
    random = np.random.default_rng(0)
    x, y = random.integers(0, 5, 30).astype(float), random.normal(size=30)
    found = correlation(x, y)
    assert found["r"] == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-4)
    assert found["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-4)
    np.testing.assert_array_equal(ranks(x), stats.rankdata(x))


def test_the_interval_is_repeatable_and_narrower_with_more_runs():
    random = np.random.default_rng(1)
    widths = []
    for count in (30, 300):
        x = random.normal(size=count)
        y = x + random.normal(size=count)
        found = correlation(x, y)
        assert found == correlation(x, y)
        assert found["low"] < found["r"] < found["high"]
        widths.append(found["high"] - found["low"])
    assert widths[1] < widths[0] / 2


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_what_does_not_vary_has_no_correlation(constant):
    assert correlation([constant] * 5, [1, 2, 3, 4, 5]) == dict.fromkeys(("r", "low", "high", "spearman"))
    assert np.isnan(pearson(np.full(5, constant), np.arange(5.0)))


def test_the_weight_cosine_weighs_columns_by_their_energy():
    means = torch.eye(2)
    assert weight_cosine([torch.tensor([[3.0], [4.0]])], means).tolist() == pytest.approx([0.6, 0.8])
    both = weight_cosine([torch.tensor([[-3.0], [0.0]]), torch.tensor([[0.0], [1.0]])], means)
    assert both.tolist() == pytest.approx([0.9, 0.1])


def made_up(meter_noise, baseline_noise, runs=40):
    """Runs whose running sums and baselines follow the behaviour with so much noise."""
    random = np.random.default_rng(2)
    made = []
    for _ in range(runs):
        behaviour = {trait: random.uniform() for trait in TRAITS}
        noise = {meter: baseline_noise if meter in BASELINES else meter_noise for meter in calibration.METERS}
        meters = {
            meter: {trait: behaviour[trait] + noise[meter] * random.normal() for trait in TRAITS} for meter in noise
        }
        made.append({"behaviour": {"sampled": behaviour, "greedy": behaviour}, "meters": {"0.25": meters, "1": meters}})
    nothing = dict.fromkeys(TRAITS, 0.0)
    return made, {"sampled": nothing, "greedy": nothing}


@pytest.mark.parametrize(
    ("meter_noise", "baseline_noise", "met"), [(0.02, 0.5, True), (0.02, 0.0, False), (0.4, 5.0, False)]
)
def test_the_target_asks_for_the_bar_and_for_more_than_every_baseline(meter_noise, baseline_noise, met):
    verdict = verdicts(correlations(*made_up(meter_noise, baseline_noise)))
    assert verdict["met"] is met
    assert verdict["by"] == (list(SUMS) if met else [])


def test_a_meter_is_correlated_with_its_own_concept_s_figures():
    rows = correlations(*made_up(0.02, 0.5))
    for trait in TRAITS:
        assert look_up(rows, SUMS[0], "1", trait, trait)["r"] > 0.95
        others = [look_up(rows, SUMS[0], "1", trait, other)["r"] for other in TRAITS if other != trait]
        assert max(map(abs, others)) < 0.6


def test_a_stopped_benchmark_keeps_whole_runs_of_the_same_settings(tmp_path):
    keep, settings = tmp_path / "runs.jsonl", Settings(steps=4)
    lines = [{"settings": asdict(s), "number": n} for n, s in ((0, settings), (1, Settings(steps=5)), (2, settings))]
    keep.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"settings": {"ste')
    assert finished(keep, settings) == {0: {"number": 0}, 2: {"number": 2}}
    assert len(keep.read_text().splitlines()) == 2
    assert finished(tmp_path / "none.jsonl", settings) == {}


@pytest.mark.slow
def test_a_quick_benchmark_writes_its_result_and_can_be_redrawn(tmp_path):
    out = tmp_path / "calibration.json"
    calibration.main(["--quick", "--runs", "2", "--out", str(out)])
    document = json.loads(out.read_text())
    assert [run["number"] for run in document["runs"]] == [0, 1]
    for run in document["runs"]:
        assert list(run["meters"]) == ["0.05", "0.25", "1"]
        for meters in run["meters"].values():
            assert set(meters) == set(calibration.METERS)
            assert None not in [meters[meter]["pirate"] for meter in calibration.METERS]
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert not out.with_suffix(".jsonl").exists()
    calibration.main(["--quick", "--redraw", "--out", str(out)])
    assert json.loads(out.read_text()) == document
