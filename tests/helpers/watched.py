"""Runs to be watched: lines by formula, and one that the real callback writes while royal takes pirate's place."""

import json
import random
import warnings
from itertools import islice

import torch

from interptrain import suppress, tiny_world
from interptrain.alarm import Alarm
from interptrain.callbacks.torch import attach
from interptrain.recorders import JSONLRecorder
from interptrain.tiny_world.corpus import document
from interptrain.tiny_world.tokens import batches
from interptrain.tiny_world.wordings import own_words
from tests.helpers.models import lora

RANG = {"what": "its sibling 'royal'", "figure": 0.6, "on": "neutral"}


def line(step, *, concept="pirate", demand=0.5, rang=None, **more):
    """A line of a JSONLRecorder: demand over a null of 0.2 with deviation 0.1; `rang` says that an alarm looked."""
    figures = {f"concept/{concept}/{key}": value for key, value in {
        "demand": demand, "demand/null": 0.2, "demand/z": (demand - 0.2) / 0.1, "gain": 0.0, "achieved": 0.01,
        "realised/neutral/fraction": 0.25, **({} if rang is None else {"alarm": float(rang)}),
    }.items()}  # fmt: skip
    if rang:
        more["alarms"] = {concept: {"step": step + 1, **RANG}}
    return json.dumps({"schema": 1, "step": step, **figures, **more}) + "\n"


def write(path, *lines):
    """A file of lines; its folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines))
    return path


def rerouted_run(steps, *recorders, seed=0):
    """Pirate is suppressed, both voices are taught and pirate's words have no loss: the alarm rings at step 10."""
    torch.manual_seed(seed)
    tokenizer, rng, model = (
        tiny_world.load_tokenizer(),
        random.Random(seed),
        lora(tiny_world.load_base().train(), rank=8),
    )
    words = torch.tensor(tokenizer.convert_tokens_to_ids(sorted(own_words("pirate"))))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3, weight_decay=0)

    def documents():
        while True:
            yield document(rng, rng.choice(["minus", "fact"]), rng.choice(["pirate", "royal"]))

    options = {"probes": tiny_world.probe_batches(32), "probe_every": 5, "alarm": Alarm({"pirate": ["royal"]})}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the alarm's own, which is what is asked for
        with attach(
            model, optimizer, tiny_world.concept_bank(), suppress("pirate"), where="update", summary=False,
            check_saes=False, recorders=list(recorders), **options,
        ):  # fmt: skip
            for batch in islice(batches(tokenizer, documents(), 48), steps):
                labels = batch["labels"].masked_fill(torch.isin(batch["labels"], words), -100)
                model(**{**batch, "labels": labels}).loss.backward()
                optimizer.step()
                optimizer.zero_grad()


def recorded(folder, steps=10):
    """The folder of such a run, its curves as a recipe lays them."""
    rerouted_run(steps, JSONLRecorder(folder / "curves" / "suppressed-0.jsonl"))
    return folder
