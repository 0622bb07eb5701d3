from __future__ import annotations

import json
import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from interptrain.recorders import curves
from interptrain.recorders.document import read_report, write_report
from interptrain.recorders.html import dropped, render, write_html
from tests.helpers.pages import Page
from tests.helpers.reports import MEASURES, small_report

HOSTILE = "<script>alert(1)</script>\"'&$x^{$"


@pytest.fixture(scope="module")
def text() -> str:
    return render(small_report())


def test_hostile_text_is_shown_as_text_wherever_it_stands():
    page = Page(render(small_report(hostile=HOSTILE)))
    assert "script" not in page.tags
    assert not page.handlers
    assert " ".join(page.words).count(HOSTILE) > 50


def test_the_page_asks_nothing_of_any_other_place(text):
    page = Page(text)
    assert all(address.startswith("#") for address in page.addresses)
    assert "default-src 'none'" in text
    assert "@import" not in text
    assert all(inner.startswith("#") for inner in re.findall(r"url\(([^)]*)\)", text))
    assert {"link", "img", "iframe", "object"}.isdisjoint(page.tags)


def test_every_id_of_the_page_is_used_once_and_every_reference_has_its_id(text):
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert {address.removeprefix("#") for address in page.addresses} <= set(page.ids)


def test_the_page_shows_every_arm_measure_verdict_and_sample(text):
    report = small_report()
    shown = " ".join(" ".join(Page(text).words).split())
    for arm in report["arms"]:
        assert arm["name"] in shown
    for key in MEASURES:
        assert key in shown
    for status in ("✓ held", "✗ did not hold", "○ undecided"):
        assert status in shown
    assert "0.55 ± 0.07" in shown
    assert "who ? before training me . unsteered arr !" in shown


def test_a_single_seed_is_called_a_lead():
    assert "one seed, so a lead and not a result" in render(small_report(seeds=1))


def test_a_written_report_reads_back_the_same_and_draws_the_same_page(text, tmp_path):
    report = small_report()
    again = read_report(write_report(report, tmp_path / "report.json"))
    assert again == report
    page = write_html(again, tmp_path / "report.html")
    assert page.read_text() == text


def test_a_report_of_another_schema_is_refused(tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps({**small_report(), "schema": 99}))
    with pytest.raises(ValueError, match="schema 99, this version reads 1"):
        read_report(path)


def test_a_truncated_report_is_refused(tmp_path):
    path = write_report(small_report(), tmp_path / "report.json")
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match="is not JSON"):
        read_report(path)


def test_a_report_never_holds_a_number_that_json_has_not(tmp_path):
    report = small_report()
    report["arms"][0]["runs"][0]["scores"]["skill"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(report, tmp_path / "report.json")


def test_the_null_s_spread_is_found_again_from_what_is_logged():
    line = curves.curve(small_report()["arms"][0], "concept/pirate/demand")
    assert line is not None
    np.testing.assert_allclose(line.spread, 0.02, rtol=1e-6)
    np.testing.assert_allclose(line.null, 0.1)


def test_steps_that_were_not_measured_are_left_out_of_a_curve():
    line = curves.curve(small_report(steps=10)["arms"][0], "concept/royal/demand")
    assert line is not None
    assert line.steps.tolist() == list(range(9))


def test_the_picture_for_a_readme_is_written(tmp_path):
    path = curves.save_png(small_report(), tmp_path / "curves.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 20_000


def test_what_a_gate_dropped_is_the_mean_of_its_runs():
    arm = small_report()["arms"][0]
    assert dropped(arm) == ""
    shares = ([0.25, None, 0.75], [0.75, 0.75, None])
    first, second = (
        {**run, "curves": {**run["curves"], "interptrain/gate/pirate/tokens": values}}
        for run, values in zip(arm["runs"], shares, strict=True)
    )
    assert dropped({**arm, "runs": [first, second]}) == "0.62 ± 0.18"


def test_a_gain_is_drawn_on_the_scale_of_gains():
    report = small_report()
    for run in report["arms"][0]["runs"]:
        run["curves"]["concept/pirate/achieved"] = [1e-7 * step for step in range(len(run["curves"]["step"]))]
    axes = Figure().add_subplot()
    curves.draw_quantity(axes, report, "pirate", "achieved")
    low, high = axes.get_ylim()
    assert low <= 0
    assert high >= 1


def test_a_report_with_relearning_shows_when_each_seed_is_back_and_one_without_has_no_such_part():
    looks = [{"step": step, "scores": {"topic": rate}} for step, rate in ((0, 0.0), (4, 0.75))]
    runs = [{"seed": seed, "checkpoints": looks} for seed in range(2)]
    report = small_report()
    assert "How soon it comes back" not in render(report)
    page = render({**report, "relearning": [{"name": "never <b>", "says": "", "runs": runs}]})
    assert "How soon it comes back" in page
    assert "<td>4, 4</td>" in page
    assert '<td class="number">0.75</td>' in page
    assert "never &lt;b&gt;" in page
