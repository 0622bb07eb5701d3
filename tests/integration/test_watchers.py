"""Watchers in training: they change nothing, they are logged in every loop, and they see a behaviour come."""

from itertools import islice

import pytest
import torch

from interptrain import observe, suppress, tiny_world
from interptrain.callbacks.torch import attach
from interptrain.concepts.contrast import collect
from interptrain.concepts.placed import PlacedProbe
from interptrain.concepts.probes import Fitting, fit_probe
from interptrain.tiny_world import probe_sets
from interptrain.tiny_world.probes import first_answer_token
from interptrain.tiny_world.tokens import encode
from tests.helpers.loops import LOOPS, largest_difference, run
from tests.helpers.models import llama, two_concepts
from tests.unit.meters.test_probes import batch
from tests.unit.meters.test_watch import fitted

WORLD_HOOK = "blocks.2.hook_resid_post"


def sets():
    return {"neutral": [batch(seed=1)], "pirate": [batch(seed=3)]}


@pytest.mark.parametrize("loop", LOOPS)
def test_training_is_the_same_to_the_last_bit_with_and_without_and_the_curve_is_there(loop, tmp_path):
    bare = run(loop, llama(), tmp_path / "bare")
    watchers = {"pirate": [fitted("mean", sets()), fitted("attention", sets())]}
    watched = run(
        loop, llama(), tmp_path / "watched", two_concepts(), observe(), probes=sets(), probe_every=2, watchers=watchers
    )
    assert largest_difference(bare, watched) == 0.0
    for name in ("mean", "attention"):
        curve = [value for value in watched.curves[f"concept/pirate/watch/{name}/neutral"] if value is not None]
        assert len(curve) == 2
        assert any(value != 0 for value in curve)
        assert f"concept/royal/watch/{name}/neutral" not in watched.curves


def test_a_run_that_is_resumed_goes_on_from_what_they_saw_at_the_first_start():
    def trained(model, state=None):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        given = {"probes": sets(), "probe_every": 1, "watchers": {"pirate": fitted("mean", sets())}, "summary": False}
        with attach(model, optimizer, two_concepts(), state=state, **given) as steering:
            model(**batch(seed=9)).loss.backward()
            optimizer.step()
            return steering.metrics()["concept/pirate/watch/mean/neutral"], steering.state_dict()

    def start_of(state):
        return {name: float(value) for name, value in state["probes"]["watchers"]["pirate/mean"]["start"].items()}

    model = llama().train()
    first, state = trained(model)
    second, resumed = trained(model, state)
    _, anew = trained(model)
    assert 0.0 != first != second
    assert start_of(state) == start_of(resumed) != start_of(anew)


def watching(model, hook):
    """An attention probe of each voice, fitted where answers begin; the other voice is among what it is told from."""
    tokenizer, texts = tiny_world.load_tokenizer(), probe_sets(32, seed=7)

    def read(*names):
        documents = [each for name in names for each in texts[name]]
        return collect(model, hook, [first_answer_token(encode(tokenizer, documents))])

    return {
        voice: PlacedProbe(
            fit_probe("attention", read(voice), read("neutral", other), fitting=Fitting(steps=40)), hook, "attention"
        )
        for voice, other in (("pirate", "royal"), ("royal", "pirate"))
    }


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("voice", ["pirate", "royal"])
def test_a_voice_that_comes_although_its_directions_are_taken_out_is_seen_by_its_watcher_alone(voice):
    bank, model = tiny_world.concept_bank(), tiny_world.load_base().train()
    watchers = watching(tiny_world.load_base(), WORLD_HOOK)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    data = islice(tiny_world.finetuning_set("mixed", batch=32, voice=voice), 14)
    options = {"probes": tiny_world.probe_batches(16), "probe_every": 7, "watchers": watchers, "meters": ("write",)}
    seen = []
    with attach(model, optimizer, bank, suppress(voice), where="update", summary=False, **options) as steering:
        for each in data:
            model(**each).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.append(steering.metrics())
    said = tiny_world.score(model, tiny_world.load_tokenizer(), prompts=30)
    other = "royal" if voice == "pirate" else "pirate"
    assert getattr(said, f"{voice}_on_facts") > 0.8
    assert seen[-1][f"concept/{voice}/write"] < 1e-6
    assert seen[-1][f"concept/{voice}/watch/attention/neutral"] > 0.4
    assert seen[-1][f"concept/{other}/watch/attention/neutral"] < 0.1
