import math

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


def test_the_mean_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no reports"):
        average([])


def test_a_window_is_empty_after_it_is_drained():
    window = Window()
    window.record(report(0, 0.2))
    assert window.drain() is not None
    assert window.drain() is None
