import io
import math

import pytest
from rich.console import Console

from interptrain.recorders import MemoryRecorder
from tests.helpers.records import report


def shown(renderable, *, encoding="utf-8"):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=file, width=100, force_terminal=False).print(renderable)
    file.flush()
    return file.buffer.getvalue().decode(encoding)


def recorded(shares, **options):
    recorder = MemoryRecorder()
    for step, share in enumerate(shares):
        recorder.record(report(step, share, **options))
    return recorder


def row(text, concept):
    (line,) = [line for line in text.splitlines() if concept in line]
    return [cell.strip() for cell in line.strip("│|").replace("|", "│").split("│")]


def test_curves_have_one_entry_a_report_and_none_for_what_is_missing():
    recorder = recorded([0.2, math.nan])
    assert recorder.curves()["step"] == [0.0, 1.0]
    assert recorder.curves()["concept/pirate/demand"] == [pytest.approx(0.2), None]


def test_a_concept_is_a_row_with_its_curve_its_ends_its_null_and_z():
    text = shown(recorded([0.0, 0.1, math.nan, 0.4, 0.7]))
    assert row(text, "pirate") == ["pirate", "▁▂▅█", "0", "0.7", "0.2", "5"]
    assert row(text, "sums")[1] == "▁▂▅█"


def test_another_metric_is_shown_on_request():
    table = recorded([0.2, 0.3]).curves_table("gain")
    assert row(shown(table), "pirate") == ["pirate", "██", "0.25", "0.25", "-", "-"]


def test_a_long_curve_is_as_wide_as_a_short_one_and_a_negative_one_has_zero_inside():
    recorder = recorded([step / 1000 for step in range(1000)])
    assert len(row(shown(recorder), "pirate")[1]) == 20
    assert row(shown(recorder.curves_table("demand/z")), "pirate")[1][0] == "▁"


def test_a_terminal_that_cannot_show_blocks_shows_plain_signs():
    text = shown(recorded([0.0, 0.1, 0.4, 0.7]), encoding="ascii")
    assert row(text, "pirate")[1] == "_.+#"


def test_a_metric_that_nobody_measured_is_an_error_that_names_the_measured_ones():
    with pytest.raises(ValueError, match=r"no report has the metric 'dmand' .*measured: demand, .*gain"):
        recorded([0.2]).curves_table("dmand")


def test_what_was_measured_is_shown_where_demand_was_not_and_nothing_where_nothing_was():
    assert row(shown(recorded([None, None])), "pirate")[1:3] == ["██", "0.25"]
    assert "over 0 reports" in shown(MemoryRecorder())


def test_names_are_text_and_no_markup():
    text = shown(recorded([0.2], concepts=("[red]pirate[/red]",)))
    assert row(text, "pirate")[0] == "[red]pirate[/red]"
