"""Boards: which panels, and what W&B would be sent."""

import socket

import pytest

from interptrain.recorders.dashboard import sections, usual_metrics
from interptrain.recorders.wandb_dashboard import specification, workspace
from tests.helpers.records import report

LOGGED = {
    *usual_metrics(["pirate", "royal"]), "concept/pirate/achieved", "concept/pirate/alarm", "train/loss", "epoch",
    "concept/pirate/realised/neutral/fraction", "interptrain/off_concept", "interptrain/unexplained/neutral",
    "interptrain/unexplained/neutral/null", "interptrain/step", "behaviour/skill",
}  # fmt: skip


def test_every_panel_shows_what_is_logged_and_nothing_else():
    found = sections(["pirate", "royal"], LOGGED)
    assert [section.name for section in found] == ["Overview", "pirate", "royal", "interptrain", "System"]
    shown = [metric for section in found for plot in section.plots for metric in plot.metrics]
    assert set(shown) == LOGGED - {"epoch", "interptrain/step"}
    assert sections(["pirate"], ["loss"])[0].plots[0].metrics == ("loss",)


def test_every_share_is_beside_its_null_and_the_null_is_dashed():
    pirate = sections(["pirate"], LOGGED)[1]
    for share in ("demand", "gradient", "write"):
        (plot,) = (plot for plot in pirate.plots if f"concept/pirate/{share}" in plot.metrics)
        assert plot.metrics == (f"concept/pirate/{share}", f"concept/pirate/{share}/null")
        assert plot.dashed == (f"concept/pirate/{share}/null",)
        assert (f"concept/pirate/{share}/z",) in [each.metrics for each in pirate.plots]
    assert ("concept/pirate/alarm",) in [plot.metrics for plot in pirate.plots]
    assert ("concept/pirate/gain", "concept/pirate/achieved") in [plot.metrics for plot in pirate.plots]


def test_what_is_usual_is_what_a_report_has():
    assert {
        "concept/pirate/demand",
        "concept/pirate/demand/null",
        "concept/pirate/demand/z",
        "concept/pirate/gain",
    } <= (report(0).scalars().keys() & set(usual_metrics(["pirate"])))


def test_the_specification_is_made_without_a_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("asked for a network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    found = sections(["pirate"], LOGGED)
    spec = specification(workspace("me", "mine", "a view", found, x="interptrain/step"))
    sent = spec["section"]["panelBankConfig"]["sections"]
    assert [each["name"] for each in sent] == [section.name for section in found]
    for section, each in zip(found, sent, strict=True):
        configs = [panel["config"] for panel in each["panels"]]
        assert [config["chartTitle"] for config in configs] == [plot.title for plot in section.plots]
        assert [tuple(config["metrics"]) for config in configs] == [plot.metrics for plot in section.plots]
    first = sent[1]["panels"][0]["config"]
    assert first["xAxis"] == "interptrain/step"
    assert first["overrideMarks"] == {"concept/pirate/demand/null": "dashed"}
    assert sent[-1]["panels"][0]["config"]["metricRegex"] == "^system[./]"


def test_a_name_that_wandb_refuses_is_an_error():
    with pytest.raises(ValueError, match="Emojis are not allowed"):
        workspace("me", "mine", "\N{GRINNING FACE}", [], x="Step")
