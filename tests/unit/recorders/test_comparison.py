"""Two runs side by side."""

import copy
import math

import pytest

from interptrain.recorders.compare_page import compared, difference, over_seeds, render_comparison
from interptrain.recorders.comparison import (
    changed,
    first_difference,
    paired,
    parted,
    read_side,
    scores,
)
from interptrain.recorders.document import write_report
from tests.helpers.pages import Page
from tests.helpers.reports import small_report
from tests.helpers.watched import line, write

HOSTILE = "<script>alert(1)</script>\"'&$x^{$"


def side(folder, report):
    folder.mkdir(exist_ok=True)
    write_report(report, folder / "report.json")
    return read_side(folder)


def bare(path, demands, **more):
    return read_side(write(path, *(line(step, demand=each, **more) for step, each in enumerate(demands))))


def pair_of(a, b):
    ((pair), *_), _, _ = paired(a, b)
    return pair


def test_a_run_beside_itself_differs_in_nothing(tmp_path):
    a, b = side(tmp_path / "a", small_report()), side(tmp_path / "b", small_report())
    found = compared(a, b)
    assert (found["config"], found["versions"], found["notes"]) == ([], [], [])
    assert {row["apart"] for row in found["rows"]} == {None}
    assert all("the same, figure by figure" in words for words in found["starts"])
    assert {score.difference for score in found["scores"]} == {0.0}
    assert [row["concept"] for row in found["rows"]] == ["pirate", "royal"] * 2


def test_settings_that_differ_are_named_with_nested_ones_and_those_of_one_side_alone():
    a = {"steps": 3, "gate": ["pirate"], "memory": {"total": 1, "same": 2}, "only": True, "none": None}
    b = {"steps": 3, "gate": [], "memory": {"total": 5, "same": 2}, "none": None}
    assert [tuple(each) for each in changed(a, b)] == [
        ("gate", "pirate", "none"), ("memory.total", "1", "5"), ("only", "yes", "-"),
    ]  # fmt: skip
    assert changed(a, a) == []


def test_with_the_same_seeds_the_spread_is_that_of_the_differences(tmp_path):
    other = small_report()
    for arm in other["arms"]:
        for run in arm["runs"]:
            run["scores"]["skill"] += 0.2 + 0.1 * run["seed"]
    a, b = side(tmp_path / "a", small_report()), side(tmp_path / "b", other)
    skill, kept = (next(each for each in scores(a.report, b.report, paired(a, b)[0]) if each.measure == name)
                   for name in ("skill", "kept"))  # fmt: skip
    assert skill.difference == pytest.approx(0.25)
    assert skill.spread == pytest.approx(0.1 / math.sqrt(2))
    assert (kept.difference, kept.spread) == (0.0, 0.0)
    assert over_seeds(skill.a) == "0.55 ± 0.07"
    assert difference(skill) == "+0.25 ± 0.07"


def test_with_other_seeds_it_is_that_of_both_and_with_one_seed_there_is_none(tmp_path):
    other = small_report()
    for arm in other["arms"]:
        for run in arm["runs"]:
            run["seed"] += 7
    a, b = side(tmp_path / "a", small_report()), side(tmp_path / "b", other)
    assert scores(a.report, b.report, paired(a, b)[0])[0].spread == pytest.approx(math.hypot(0.1, 0.1) / math.sqrt(2))
    one = side(tmp_path / "one", small_report(seeds=1))
    score = scores(a.report, one.report, paired(a, one)[0])[0]
    assert score.spread is None
    assert difference(score) == "-0.05"


def test_demands_part_at_the_first_of_five_steps_in_a_row_beyond_both_nulls(tmp_path):
    flat = bare(tmp_path / "flat.jsonl", [0.2] * 20)
    far = 0.2 + 2.1 * math.hypot(0.1, 0.1)  # the nulls' deviations are 0.1
    near = 0.2 + 1.9 * math.hypot(0.1, 0.1)

    def apart(demands):
        return parted(pair_of(flat, bare(tmp_path / "other.jsonl", demands)), "pirate")

    # A demand on its null has z = 0 and tells of no spread: it is lifted a little.
    lifted = [0.2 + 1e-9] * 20
    flat = bare(tmp_path / "flat.jsonl", lifted)
    assert apart([*lifted[:8], *[far] * 12]) == 8
    assert apart([near] * 20) is None
    assert apart([far, far, far, far, *lifted[4:]]) is None
    assert apart([far, far, *lifted[2:5], *[far] * 15]) == 5


def test_the_first_step_that_is_not_the_same_is_named_with_its_figure_and_rounding_is_not_one(tmp_path):
    a = bare(tmp_path / "a.jsonl", [0.3] * 6)
    b = bare(tmp_path / "b.jsonl", [0.3, 0.3, 0.3 * (1 + 1e-6), 0.3, 0.31, 0.4])
    found = first_difference(pair_of(a, b))
    assert (found.step, found.metric, found.a, found.b) == (4, "concept/pirate/demand", 0.3, 0.31)
    assert first_difference(pair_of(a, bare(tmp_path / "b.jsonl", [0.3] * 3))) is None


def test_runs_of_other_arms_concepts_and_steps_are_compared_where_they_agree_and_the_rest_is_named(tmp_path):
    for name in ("a/curves/gate-0", "a/curves/hold-0", "b/curves/gate-0", "b/curves/prevent-1"):
        concept = "royal" if name == "a/curves/gate-0" else "sums"
        lines = [line(step) + line(step + 1, concept=concept) for step in range(0, 6 if "a/" in name else 4, 2)]
        write(tmp_path / f"{name}.jsonl", *lines)
    a, b = read_side(tmp_path / "a"), read_side(tmp_path / "b")
    found = compared(a, b)
    assert found["notes"] == ["Only in A: the arm hold.", "Only in B: the arm prevent.",
                              "Only in A: the concept royal.", "Only in B: the concept sums."]  # fmt: skip
    assert [row["concept"] for row in found["rows"]] == ["pirate"]
    assert found["starts"][0].startswith("gate: 6 measured steps in A, 4 in B; the same")
    assert not found["reports"]


def test_hostile_text_is_text_on_the_page_and_both_runs_are_in_each_panel(tmp_path):
    hostile = small_report(hostile=HOSTILE, seeds=1)
    other = copy.deepcopy(hostile)
    other["config"]["note"] = f"{HOSTILE} too"
    other["arms"] = other["arms"][:1]
    other["arms"][0]["runs"][0]["alarms"] = [
        {"concept": f"pirate{HOSTILE}", "step": 9, "what": HOSTILE, "figure": 1.0, "on": HOSTILE}
    ]
    page = render_comparison(side(tmp_path / "a", hostile), side(tmp_path / "b", other))
    found = Page(page)
    assert "script" not in found.tags
    assert not found.handlers
    assert " ".join(found.words).count(HOSTILE) > 10
    assert "alarm, step 9" in page
    assert all(address.startswith("#") for address in found.addresses)
    assert len(found.ids) == len(set(found.ids))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "does not exist"),
        (lambda folder: folder.mkdir(), "neither a report.json nor curves of a JSONLRecorder"),
        (lambda folder: write(folder / "report.json", "{"), "is not JSON"),
        (lambda folder: write(folder / "report.json", '{"schema": 9}'), "schema 9, this version reads 1"),
        (lambda folder: write(folder / "x.jsonl", '{"schema": 9, "step": 1}\n'), "schema 9, this version reads 1"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, make, message):
    make(tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        read_side(tmp_path / "run")
