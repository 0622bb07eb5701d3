import math
from dataclasses import replace

import pytest
import torch

from interptrain.report import Plain, Reading, StepReport, Window, average


def report(step, share, *, demand=True, nonfinite=0.0, capped=1.0):
    reading = Reading(torch.tensor([share, 0.1]), torch.tensor([[0.1, 0.2, 0.3], [0.0, 0.1, 0.2]]))
    signed = Reading(reading.share, reading.null, torch.tensor([2.0, -4.0]), torch.tensor([[-1.0, 0.0, 1.0]] * 2))
    return StepReport(
        step=step,
        concepts=("pirate", "sums"),
        readings={"gradient": reading, "gain": Plain(torch.tensor([0.0, 1.0]))}
        | ({"demand": signed} if demand else {}),
        cumulative={"demand": torch.tensor([float(step), 0.0])},
        overall={"off_concept": torch.tensor(math.nan if demand else 0.25)},
        nonfinite=torch.tensor(nonfinite),
        capped=torch.tensor(capped),
    )


def test_scalars_name_every_figure_with_its_null_and_z():
    figures = report(3, 0.5).scalars()
    assert figures["concept/pirate/demand"] == pytest.approx(0.5)
    assert figures["concept/pirate/demand/null"] == pytest.approx(0.2)
    assert figures["concept/pirate/demand/z"] == pytest.approx(3.0)
    assert figures["concept/pirate/demand/signed"] == pytest.approx(2.0)
    assert figures["concept/sums/demand/signed/z"] == pytest.approx(-4.0)
    assert figures["concept/pirate/demand/cumulative"] == pytest.approx(3.0)
    assert figures["concept/pirate/gain"] == 0.0
    assert "interptrain/nonfinite_sites" not in figures


def test_what_was_not_measured_is_absent():
    figures = report(0, math.nan).scalars()
    assert "concept/pirate/gradient" not in figures
    assert figures["concept/sums/gradient"] == pytest.approx(0.1)


def test_the_mean_skips_steps_that_measured_nothing():
    mean = average([report(0, 0.2), report(1, math.nan, demand=False), report(2, 0.6, nonfinite=2.0, capped=0.5)])
    figures = mean.scalars()
    assert figures["concept/pirate/demand"] == pytest.approx(0.4)
    assert figures["concept/pirate/demand/cumulative"] == pytest.approx(2.0)
    assert figures["interptrain/nonfinite_sites"] == 2.0
    assert figures["interptrain/norm_cap"] == 0.5
    assert figures["interptrain/off_concept"] == 0.25


def test_an_alarm_is_one_where_it_rings_zero_where_it_was_looked_for_and_absent_elsewhere():
    rung = {"step": 1, "what": "its sibling 'sums'", "figure": 0.5, "on": "neutral"}
    quiet, ringing = (replace(report(0, 0.2), alarms={"pirate": each}) for each in (None, rung))
    assert "concept/pirate/alarm" not in report(0, 0.2).scalars()
    assert quiet.scalars()["concept/pirate/alarm"] == 0.0
    assert ringing.scalars()["concept/pirate/alarm"] == 1.0
    assert "concept/sums/alarm" not in ringing.scalars()
    assert (quiet.ringing, ringing.ringing) == ({}, {"pirate": rung})


def test_an_alarm_that_rang_at_any_of_several_steps_rang_in_their_mean():
    first, later = ({"step": step, "what": "it", "figure": 0.5, "on": "neutral"} for step in (1, 2))
    reports = [replace(report(step, 0.2), alarms=each) for step, each in enumerate(
        [{"pirate": None}, {"pirate": first, "sums": None}, {"pirate": later}, {"pirate": None}, {}])]  # fmt: skip
    assert average(reports).alarms == {"pirate": first, "sums": None}
    assert average(reports[3:]).scalars()["concept/pirate/alarm"] == 0.0


def test_the_mean_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no reports"):
        average([])


def test_a_window_is_empty_after_it_is_drained():
    window = Window()
    window.record(report(0, 0.2))
    assert window.drain() is not None
    assert window.drain() is None
