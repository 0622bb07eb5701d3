"""`interptrain compare` on two recipes' runs and on bare curves."""

import json
import random

import pytest

from interptrain import cli
from interptrain.recorders.document import read_report
from interptrain.tiny_world.corpus import document
from tests.helpers.pages import Page
from tests.helpers.watched import line, write


def trained(folder, data, *options):
    """A run of the recipe for one's own data, on the embedded model."""
    status = cli.main([
        "recipe", "run", "sft", "--model", "tiny-world", "--data", str(data), "--out", str(folder), "--sae",
        "tiny-world", "--latents", "pirate=117,78", "royal=29,113", "--steps", "3", "--probe-every", "2", "--seeds",
        "2", "--batch", "4", *options,
    ])  # fmt: skip
    assert status == 0
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on the same data, of which the second suppresses pirate and learns faster."""
    folder, rng, rows = tmp_path_factory.mktemp("runs"), random.Random(0), []
    for _ in range(40):
        prompt, answer = document(rng, "fact", "pirate").text.removesuffix(" <e>").split(" <a> ")
        rows.append(json.dumps({"prompt": f"{prompt} <a>", "completion": f" {answer}"}))
    data = folder / "data.jsonl"
    data.write_text("\n".join(rows))
    one = trained(folder / "one", data)
    return one, trained(folder / "two", data, "--suppress", "pirate", "--learning-rate", "1e-2")


def refused(capsys, *options):
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", *map(str, options)])
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


def test_two_reports_stand_side_by_side_in_the_terminal_and_on_a_page(runs, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert cli.main(["compare", *map(str, runs), "--out", str(page)]) == 0
    said = capsys.readouterr().out
    for setting, (one, two) in {"learning_rate": ("none", "0.01"), "suppress": ("none", "pirate")}.items():
        (row,) = (row.split() for row in said.splitlines() if row.split()[:1] == [setting])
        assert row == [setting, one, two]
    a, b = (read_report(run / "report.json") for run in runs)
    losses = [[run["scores"]["held_out_loss"] for run in report["arms"][0]["runs"]] for report in (a, b)]
    differences = [two - one for one, two in zip(*losses, strict=True)]
    assert f"{sum(differences) / 2:+.2f} ± {abs(differences[0] - differences[1]) / 2**0.5:.2f}" in said
    assert "observed | steered: 3 measured steps in A, 3 in B; not the same from step" in " ".join(said.split())
    found = Page(page.read_text())
    shown = " ".join(found.words)
    for words in ("learning_rate", "pirate", "royal", "What was set otherwise", "The same in both."):
        assert words in shown
    assert found.tags.count("svg") > 4
    assert cli.main(["compare", *map(str, runs), "--out", str(page)]) == 0  # over its own page


def test_a_run_and_its_own_curves_are_the_same(runs, capsys):
    one, _ = runs
    assert cli.main(["compare", str(one), str(one / "curves")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "observed: 3 measured steps in A, 3 in B; the same, figure by figure" in said
    assert "set otherwise" not in said


def test_a_mistake_is_said_before_anything_is_written(tmp_path, capsys):
    run = write(tmp_path / "one" / "curves" / "gate-0.jsonl", line(0))
    other = write(tmp_path / "two" / "a" / "curves.jsonl", line(0)).parents[1]
    write(other / "b" / "curves.jsonl", line(0))
    mine = write(tmp_path / "mine.html", "mine")
    assert "does not exist" in refused(capsys, run, tmp_path / "none")
    assert "have no arm in common: gate; a, b" in refused(capsys, run, other)
    assert "is no page of interptrain's and is left as it is" in refused(capsys, run, run, "--out", mine)
    assert "is no folder" in refused(capsys, run, run, "--out", tmp_path / "no" / "page.html")
    assert mine.read_text() == "mine"
