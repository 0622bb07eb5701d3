"""Reports by formula for the tests of recorders, and the files that loggers write, read back without their help."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from interptrain import ConceptBank
from interptrain.concepts.bank import Readout
from interptrain.discovery import DiscoveryTable
from interptrain.meters.dictionary import DictionaryMeter
from interptrain.report import Plain, Reading, StepReport

HOOK = "blocks.1.hook_resid_post"


def report(step, share=0.5, *, concepts=("pirate", "sums"), discoveries=None, alarms=None, **extra):
    """A demand of `share` for every concept with a null of mean 0.2 and deviation 0.1; None measures none."""
    count = len(concepts)
    null = torch.tensor([[0.1, 0.2, 0.3]] * count)
    demand = {} if share is None else {"demand": Reading(torch.full((count,), share), null)}
    return StepReport(
        step=step,
        concepts=concepts,
        readings={**demand, "gain": Plain(torch.full((count,), 0.25))},
        cumulative={},
        overall={name: torch.tensor(value) for name, value in extra.items()},
        nonfinite=torch.tensor(0.0),
        capped=torch.tensor(1.0),
        discoveries=discoveries or {},
        alarms=alarms or {},
    )


def discovery(step, label="", *, concept="pirate"):
    """A table of two latents, the first of them a concept's, the second labelled."""
    bank = ConceptBank.from_directions({concept: torch.eye(4)[2]}, hook=HOOK, source={"latent": 2})
    dictionary = Readout({}, {"W_dec": torch.eye(4)}, alive=torch.ones(4, dtype=torch.bool))
    meter = DictionaryMeter(replace(bank, readouts={HOOK: dictionary}), count=2)
    meter.add(HOOK, torch.tensor([[0.0, 0.0], [1.0, 1.0], [-2.0, -3.0], [0.0, 0.0]]))
    return {HOOK: DiscoveryTable(meter.read()[HOOK], bank, HOOK, step, {1: label})}


def finite(curves):
    """`{metric: {step: value}}` of a recorder's curves, without what was not measured."""
    found = {
        key: {int(step): value for step, value in zip(curves["step"], values, strict=True) if value is not None}
        for key, values in curves.items()
        if key != "step"
    }
    return {key: points for key, points in found.items() if points}


def tensorboard_points(folder):
    """`{tag: [(step, value), ...]}` of every scalar in a folder of event files, as TensorBoard shows them."""
    found = _events(folder, "scalars")
    return {tag: [(step, value.item()) for step, value in events] for tag, events in found.items()}


def tensorboard_texts(folder):
    """`{tag: [(step, text), ...]}` of every text."""
    found = _events(folder, "text")
    return {tag: [(step, value.item().decode()) for step, value in events] for tag, events in found.items()}


def _events(folder, plugin):
    found = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    return {
        tag: [(each.step, make_ndarray(each.tensor_proto)) for each in found.Tensors(tag)]
        for tag in found.PluginTagToContent(plugin)
    }


def wandb_records(folder):
    """Every record of the one offline run below a folder, by W&B's own reader."""
    (path,) = Path(folder).glob("wandb/offline-run-*/*.wandb")
    command = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", path]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)  # it logs to ./wandb
    return [json.loads(line) for line in done.stdout.splitlines()]


def wandb_rows(folder):
    """The rows of its history without W&B's own columns but `_step`; a table is the path of its file."""
    rows = [record["history"]["item"] for record in wandb_records(folder) if record["type"] == "history"]
    return [_row(item) for item in rows]


def _row(item):
    tables = [key.removesuffix("._type") for key in item if key.endswith("._type")]
    parts = tuple(f"{table}." for table in tables)
    kept = {key: value for key, value in item.items() if key == "_step" or key[0] != "_"}
    figures = {key: value for key, value in kept.items() if not key.startswith(parts)}
    return figures | {table: item[f"{table}.path"] for table in tables}


def wandb_points(folder):
    """`{metric: {interptrain/step: value}}` of its history."""
    found = {}
    for row in wandb_rows(folder):
        for key, value in row.items():
            if key.startswith(("concept/", "interptrain/")) and key != "interptrain/step" and _is_finite(value):
                found.setdefault(key, {})[row["interptrain/step"]] = value
    return found


def _is_finite(value):
    return isinstance(value, (int, float)) and math.isfinite(value)
