"""Watchers: where they stand before training, what they look at, and what does not fit."""

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from interptrain import Steerer, find_sites, tiny_world
from interptrain.concepts.contrast import TextActivations, collect
from interptrain.concepts.latent_probe import LatentProbe
from interptrain.concepts.placed import PlacedProbe
from interptrain.concepts.probes import PROBES, Fitting, fit_probe, reads_latents
from interptrain.concepts.saelens import from_saelens, shared_sae
from interptrain.concepts.text_probe import PooledProbe
from interptrain.meters.probe_meter import ProbeMeter
from interptrain.meters.probes import ProbeSets
from interptrain.meters.watch import WatchMeter
from tests.helpers.models import HOOK, WIDTH, llama
from tests.unit.meters.test_probes import added, batch, padded, small_bank, small_sets

QUICK = Fitting(steps=10, sparse=8)


def fitted(name="mean", sets=None, *, hook=HOOK, model=None):
    """A probe that tells the pirate set from the neutral one."""
    given = sets or small_sets()
    shown, absent = (collect(model or llama(), hook, given[each]) for each in ("pirate", "neutral"))
    return PlacedProbe(fit_probe(name, shown, absent, fitting=QUICK), hook, name)


def meter_of(watchers, sets=None, bank=None):
    return ProbeMeter(bank or small_bank(), ProbeSets.of(sets or small_sets()), watchers=watchers)


@pytest.mark.parametrize("name", [name for name in PROBES if not reads_latents(name)])
def test_before_training_the_neutral_set_is_at_zero_and_the_concept_s_own_at_one(name):
    meter, model = meter_of({"pirate": fitted(name)}), llama()
    meter.start(model)
    found = meter.read(model).watch
    assert list(found) == [f"{name}/neutral", f"{name}/pirate"]
    assert [float(values[0]) for values in found.values()] == pytest.approx([0.0, 1.0], abs=1e-5)
    assert all(bool(values[1].isnan()) for values in found.values())  # nothing watches the other concept


@pytest.mark.parametrize("name", [name for name in PROBES if reads_latents(name)])
def test_a_probe_of_latents_is_read_by_the_bank_s_own_dictionary(name):
    bank, model = tiny_world.concept_bank(), tiny_world.load_base()
    hook, sets = bank.hook_points[0], tiny_world.probe_batches(24)
    sae = shared_sae(bank.readouts[hook])

    def latents(of, name):
        there = collect(of, hook, sets[name])
        with torch.no_grad():
            return TextActivations(sae.encode(there.values), there.text)

    shown, neutral = latents(model, "pirate"), latents(model, "neutral")
    probe = fit_probe(name, shown, neutral, fitting=QUICK, decoder=bank.readouts[hook].decoder)
    meter = ProbeMeter(bank, ProbeSets.of(sets), watchers={"pirate": PlacedProbe(probe, hook, name)})
    meter.start(model)
    moved = added(tiny_world.load_base(), 2, 4 * probe.directions().sum(0))
    zero, one, now = (probe.score(each).mean() for each in (neutral, shown, latents(moved, "neutral")))
    assert now > zero
    torch.testing.assert_close(meter.read(moved).watch[f"{name}/neutral"][0], (now - zero) / (one - zero))


def test_it_sees_what_the_bank_s_directions_do_not():
    bank, watcher = small_bank(), fitted()
    meter = meter_of({"pirate": watcher}, bank=bank)
    meter.start(llama())
    basis = torch.linalg.qr(bank.directions.T)[0]
    hidden = watcher.probe.directions()[0]
    hidden = hidden - basis @ (basis.T @ hidden)
    reading = meter.read(added(llama(), 1, 3 * hidden))
    assert float(reading.realised["neutral"].value[0]) == pytest.approx(0.0, abs=1e-4)
    assert float(reading.watch["mean/neutral"][0]) > 0.3


def test_what_is_padded_and_how_texts_are_batched_do_not_matter():
    sets, model = small_sets(), llama()
    parts = [{key: value[half] for key, value in sets["pirate"][0].items()} for half in (slice(0, 1), slice(1, 4))]
    otherwise = {"neutral": [padded(each) for each in sets["neutral"]], "pirate": parts}
    scores = []
    for given in (sets, otherwise):
        meter = meter_of({"pirate": fitted()}, given)
        meter.start(model)
        scores.append(meter.read(added(llama(), 1, torch.ones(WIDTH))).watch["mean/neutral"][0])
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-5)


def test_the_start_is_kept_and_other_watchers_are_refused():
    model, watcher = llama(), fitted()
    meter = meter_of({"pirate": watcher})
    meter.start(model)
    state = meter.state_dict()
    moved = added(llama(), 1, watcher.probe.directions()[0])
    again = meter_of({"pirate": watcher})
    again.load_state_dict(state)
    again.start(moved)  # leaves the start of the earlier run as it is
    assert float(again.read(moved).watch["mean/neutral"][0]) == float(meter.read(moved).watch["mean/neutral"][0]) > 0
    other = PlacedProbe(PooledProbe(torch.ones(WIDTH), torch.tensor(0.0), "mean"), HOOK, "mean")
    with pytest.raises(ValueError, match="has another probe of that name, this run watches by 'pirate/mean'"):
        meter_of({"pirate": other}).load_state_dict(state)
    with pytest.raises(ValueError, match="has no watchers, this run watches by 'pirate/mean'"):
        meter_of({"pirate": watcher}).load_state_dict({**state, "watchers": {}})
    meter_of(None).load_state_dict(state)  # a run that watches less goes on


def blind():
    """Scores the concept's own set no higher than the neutral one."""
    return PlacedProbe(PooledProbe(torch.zeros(WIDTH), torch.tensor(0.0), "mean"), HOOK, "blind")


def of_another_sae():
    decoder = torch.eye(WIDTH)[:1]
    inner = PooledProbe(torch.ones(1), torch.zeros(()), "mean")
    return PlacedProbe(LatentProbe(torch.tensor([0]), decoder, torch.ones(1), inner, 64), HOOK, "latents")


def bank_with_an_sae():
    torch.manual_seed(0)
    sae = StandardSAE(StandardSAEConfig(d_in=WIDTH, d_sae=64))
    return from_saelens(sae, {"pirate": [1]}, hook=HOOK)


@pytest.mark.parametrize(
    ("watchers", "bank", "said"),
    [
        (lambda: {"corsair": fitted()}, small_bank, "watchers name 'corsair', not in the bank; it has pirate, sums"),
        (lambda: {"sums": fitted()}, small_bank, "'sums' needs the probe sets sums; there are neutral, pirate"),
        (lambda: {"pirate": [fitted(), fitted()]}, small_bank, "two watchers of 'pirate' have the name 'mean'"),
        (lambda: {"pirate": of_another_sae()}, small_bank, "the bank holds no SAE there"),
        (lambda: {"pirate": of_another_sae()}, bank_with_an_sae, "the latents of another SAE"),
        (lambda: {"pirate": blind()}, small_bank, "scores the concept's own probe set 0 and the neutral one 0"),
        (
            lambda: {"pirate": PlacedProbe(PooledProbe(torch.ones(9), torch.tensor(0.0), "mean"), HOOK, "narrow")},
            small_bank,
            "width 9, but the model has 32 at 'blocks.1.hook_resid_post'",
        ),
        (
            lambda: {"pirate": PlacedProbe(fitted().probe, "blocks.7.hook_resid_post", "high")},
            small_bank,
            "blocks.7.hook_resid_post",
        ),
    ],
)
def test_what_does_not_fit_is_an_error_when_it_is_attached_and_nothing_stays(watchers, bank, said):
    model, concepts = llama(), bank()
    before = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    with pytest.raises(ValueError, match=said):
        Steerer(
            concepts, find_sites(model, concepts), probes={"neutral": [batch(seed=1)], "pirate": [batch(seed=3)]},
            watchers=watchers(),
        ).attach(model)  # fmt: skip
    assert before == sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.usefixtures("unchecked_shapes")
def test_a_watcher_that_is_none_and_watchers_without_texts_are_errors():
    with pytest.raises(TypeError, match="is a PooledProbe, expected a PlacedProbe"):
        WatchMeter({"pirate": [fitted().probe]}, small_bank(), ProbeSets.of(small_sets()))
    model, bank = llama(), small_bank()
    with pytest.raises(ValueError, match="watchers of pirate look at probe sets, and there are none"):
        Steerer(bank, find_sites(model, bank), watchers={"pirate": fitted()})
