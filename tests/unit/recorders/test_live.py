"""The page of a run that trains now."""

import json

import pytest
from matplotlib.figure import Figure

from interptrain.recorders.curves import draw_concept
from interptrain.recorders.document import read_report, write_report
from interptrain.recorders.follow import Followers
from interptrain.recorders.html import render
from interptrain.recorders.live import render_live
from interptrain.recorders.pages import replace_page
from interptrain.recorders.token_view import shown_tokens
from tests.helpers.pages import Page
from tests.helpers.reports import small_report
from tests.helpers.watched import RANG, line, write

HOSTILE = "<script>alert(1)</script>\"'&$x^{$"


def page(folder, **options):
    runs = Followers(folder)
    runs.look()
    return render_live(folder, list(runs), notes=runs.complaints, **options)


def tokens(concept="pirate", words=("who", " <b>"), **more):
    figures = {concept: [None, 0.5]}
    example = {"tokens": list(words), "share": figures, "signed": {concept: [None, -0.5]}}
    return {"schema": 1, "step": 7, "concepts": [concept], "hook": "blocks.2", "examples": [example], **more}


def test_hostile_names_are_text_wherever_they_stand(tmp_path):
    lines = [line(step, concept=HOSTILE, rang=step == 2) for step in range(4)]
    write(tmp_path / f"{HOSTILE.replace('/', '')}-0.jsonl", *lines, f"{HOSTILE}\n")
    (tmp_path / "tokens.json").write_text(json.dumps(tokens(HOSTILE, (HOSTILE, HOSTILE), hook=HOSTILE)))
    found = Page(page(tmp_path))
    assert "script" not in found.tags
    assert not found.handlers
    assert " ".join(found.words).count("<script>alert(1)") > 8
    assert all(address.startswith("#") for address in found.addresses)
    assert len(found.ids) == len(set(found.ids))


def test_the_page_loads_itself_anew_only_while_a_run_is_followed(tmp_path):
    write(tmp_path / "curves.jsonl", line(0))
    assert '<meta http-equiv="refresh" content="10">' in page(tmp_path, refresh=10)
    assert 'http-equiv="refresh"' not in page(tmp_path)


def test_every_concept_has_its_curve_in_its_null_and_an_alarm_its_mark(tmp_path):
    write(tmp_path / "curves.jsonl", *(line(step, rang=step == 2) for step in range(6)))
    text = page(tmp_path)
    assert "demand for pirate" in text
    assert "alarm, step 3" in text
    assert "▼ an alarm began to ring" in text
    quiet = tmp_path / "quiet"
    write(quiet / "curves.jsonl", *(line(step, rang=False) for step in range(6)))
    assert "alarm" not in page(quiet)


def test_the_tokens_of_the_last_batch_are_shown_where_they_are_kept(tmp_path):
    write(tmp_path / "curves.jsonl", line(0))
    assert "Tokens of the last batch" not in page(tmp_path)
    (tmp_path / "tokens.json").write_text(json.dumps(tokens()))
    text = page(tmp_path)
    assert "Tokens of the last batch" in text
    assert '<span class="t less" style="--s:.75" title="-0.5"> &lt;b&gt;</span>' in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "schema 'list'"),
        (json.dumps(tokens(schema=2)), "schema 2, this version reads 1"),
        (json.dumps(tokens(words=("one",))), "2 figures of 'pirate' for 1 tokens"),
        (json.dumps(tokens(examples=[{"tokens": ["a"], "signed": {"x": ["deep"]}}])), "expected a step, and examples"),
        (json.dumps(tokens(examples=[3])), "expected a step, and examples"),
    ],
)
def test_tokens_that_cannot_be_read_are_said_and_the_page_goes_on(tmp_path, content, message):
    write(tmp_path / "curves.jsonl", line(0))
    file = tmp_path / "tokens.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        shown_tokens(file)
    assert "demand for pirate" in page(tmp_path)
    assert message in " ".join(Page(page(tmp_path)).words)


def test_only_a_page_of_our_own_is_written_over(tmp_path):
    path = tmp_path / "live.html"
    replace_page(path, render_live(tmp_path, []))
    replace_page(path, "second")
    assert path.read_text() == "second"
    with pytest.raises(ValueError, match="is no page of interptrain's"):
        replace_page(path, "third")
    assert path.read_text() == "second"
    assert [file.name for file in tmp_path.iterdir()] == ["live.html"]


def rung_report(hostile=""):
    report = small_report(hostile=hostile)
    report["arms"][1]["runs"][0]["alarms"] = [{"concept": f"pirate{hostile}", "step": 12, **RANG}]
    return report


def test_a_reports_page_has_the_alarm_as_a_mark_with_its_step_and_hostile_words_stay_text(tmp_path):
    report = rung_report(HOSTILE)
    assert read_report(write_report(report, tmp_path / "report.json")) == report
    text = render(report)
    assert text.count("alarm, step 12") >= 2  # among all arms, and beside the arm's own null
    found = Page(text)
    assert "script" not in found.tags
    assert f"alarm at step 12: 'pirate{HOSTILE}' is suppressed and flat" in " ".join(found.words)


def test_without_an_alarm_neither_a_mark_nor_a_word_of_one_is_drawn():
    for report, marks in ((small_report(), 0), (rung_report(), 1)):
        axes = Figure().add_subplot()
        draw_concept(axes, report, "pirate")
        assert len([each for each in axes.texts if "alarm" in each.get_text()]) == marks
        assert len([each for each in axes.lines if each.get_label() == "alarm"]) == marks
        draw_concept(axes, report, "royal")
        assert len(axes.texts) == marks
