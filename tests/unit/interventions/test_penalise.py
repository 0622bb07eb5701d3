"""Penalise: what is added to the gradients is that of the penalty, against a copy of the model before training."""

import math

import pytest
import torch

from interptrain import Steerer, find_sites, observe
from interptrain.callbacks.lightning import ConceptSteering
from interptrain.interventions import penalise
from interptrain.recorders import MemoryRecorder
from tests.helpers.interventions import (
    FIRST,
    LATER,
    LAYERS,
    MODELS,
    assert_alike,
    astray,
    attached,
    directions_of,
    gradients,
    make_bank_at_two_hooks,
    sgd,
    trainable,
    two_processes,
    unmetered,
)
from tests.helpers.models import HOOK, WIDTH, Sentences, fit, gpt2, llama, lora, weights

STARTS = {**MODELS, "pissa": lambda: lora(llama(), init_lora_weights="pissa")}
every_start = pytest.mark.parametrize("make", STARTS.values(), ids=STARTS)


@pytest.fixture
def bank():
    return make_bank_at_two_hooks()


def penalty(model, start, bank, batch, hooks=(HOOK, FIRST)):
    """`mean_t sum_k relu(d_k . h_t(theta) - d_k . h_t(theta_0))^2` over the tokens in the loss."""
    tokens = {"input_ids": batch["input_ids"], "attention_mask": batch.get("attention_mask")}
    now, before = (each(**tokens, output_hidden_states=True).hidden_states for each in (model, start))
    counted = batch["labels"][:, 1:] != -100
    summed = torch.zeros(int(counted.sum()))
    for hook in hooks:
        gained = (now[LAYERS[hook]] - before[LAYERS[hook]].detach())[:, :-1][counted] @ directions_of(bank, hook=hook).T
        summed = summed + gained.relu().square().sum(-1)
    return summed.mean()


def by_hand(model, start, bank, batch, **options):
    found = torch.autograd.grad(penalty(model, start, bank, batch, **options), trainable(model), allow_unused=True)
    return [torch.zeros_like(p) if each is None else each for p, each in zip(trainable(model), found, strict=True)]


def added(steerer, model, *batches, **scales):
    """What one step adds to the gradients of the user's loss, after these batches."""
    model.zero_grad()
    for batch in batches:
        steerer.watch(batch["labels"])
        model(**batch).loss.backward()
    plain = gradients(model)
    steerer.before_step(**scales)
    return [one - other for one, other in zip(gradients(model), plain, strict=True)]


@every_start
def test_what_is_added_is_the_weighted_gradient_of_the_penalty(bank, make):
    model, batch, recorder = make(), Sentences()[:8], MemoryRecorder()
    optimizer = sgd(model, lr=0.0)
    with unmetered(model, bank, penalise("pirate", 3.0), optimizer=optimizer, recorders=[recorder]) as steerer:
        start = astray(model)
        found = added(steerer, model, batch)
        optimizer.step()
    assert_alike(found, [3.0 * each for each in by_hand(model, start, bank, batch)], tolerance=1e-3)
    wanted = float(penalty(model, start, bank, batch).detach())
    assert recorder.curves()["interptrain/penalise/pirate/gained"] == [pytest.approx(wanted, rel=1e-4)]


@pytest.mark.parametrize("hooks", [[FIRST], [HOOK]])
def test_the_hook_points_can_be_chosen(bank, hooks):
    model, batch = llama(), Sentences()[:8]
    with unmetered(model, bank, penalise("pirate", 1.0, hooks=hooks)) as steerer:
        start = astray(model)
        found = added(steerer, model, batch)
    assert_alike(found, by_hand(model, start, bank, batch, hooks=hooks), tolerance=1e-3)


@every_start
def test_at_the_start_nothing_is_added(bank, make):
    """A PiSSA adapter is part of the model's start: without it the model is another."""
    model = make()
    with unmetered(model, bank, penalise("pirate", 1.0)) as steerer:
        assert all(each.abs().max() == 0 for each in added(steerer, model, Sentences()[:8]))


def test_of_a_pissa_adapter_the_start_values_are_kept_and_not_its_absence(bank):
    model = lora(llama(), init_lora_weights="pissa")
    started, tokens = weights(model), Sentences()[:8]["input_ids"]
    with model.disable_adapter():
        without = model(input_ids=tokens).logits
    assert (model(input_ids=tokens).logits - without).abs().max() > 0.01
    with unmetered(model, bank, penalise("pirate", 1.0)) as steerer:
        astray(model)
        kept = steerer.state_dict()["interventions"]
    assert len(kept) == len(trainable(model))
    inner = "base_model.model."
    assert all(torch.equal(value, started[inner + name.removeprefix("start/")]) for name, value in kept.items())


@pytest.mark.parametrize("by", [5.0, -5.0])
def test_what_lies_above_the_start_costs_its_square_and_what_lies_below_it_nothing(bank, by):
    model, recorder = gpt2(), MemoryRecorder()
    optimizer = sgd(model, lr=0.0)
    with unmetered(model, bank, penalise("sums", 1.0), optimizer=optimizer, recorders=[recorder]) as steerer:
        with torch.no_grad():  # as much for every token
            model.transformer.h[1].mlp.c_proj.bias += by * bank.directions[3]
        found = added(steerer, model, Sentences()[:8])
        optimizer.step()
    assert recorder.curves()["interptrain/penalise/sums/gained"] == [pytest.approx(max(by, 0) ** 2, rel=1e-4)]
    assert any(each.abs().max() > 0 for each in found) == (by > 0)


def test_only_tokens_in_the_loss_are_penalised(bank):
    model, batch = gpt2(), Sentences()[:8]
    with unmetered(model, bank, penalise("pirate", 1.0)) as steerer:
        with torch.no_grad():
            model.transformer.wpe.weight[2] += 1.0  # no token before it can know
        for last, expected in ((2, False), (3, True)):
            batch["labels"] = torch.where(torch.arange(12) <= last, batch["input_ids"], -100)
            found = added(steerer, model, batch)
            assert any(each.abs().max() > 0 for each in found) == expected


def test_of_several_batches_in_a_step_the_last_is_run_again(bank):
    model, batches = llama(), [Sentences(seed=number)[:8] for number in range(2)]
    positions = torch.arange(12).flip(0).expand(8, 12)
    with unmetered(model, bank, penalise("pirate", 1.0)) as steerer:
        start = astray(model)
        found = added(steerer, model, {**batches[0], "position_ids": positions}, batches[1])
    assert_alike(found, by_hand(model, start, bank, batches[1]), tolerance=1e-3)


def test_what_is_only_looked_at_is_not_penalised(bank):
    model, batch = llama(), Sentences()[:8]
    with unmetered(model, bank, penalise("pirate", 1.0)) as steerer:
        start = astray(model)
        steerer.watch(batch["labels"])
        model(**batch).loss.backward()
        plain = gradients(model)
        with torch.no_grad():
            model(input_ids=batch["input_ids"][:2])
            model(inputs_embeds=torch.zeros(1, 2, WIDTH))
        steerer.before_step()
        both = gradients(model)
        steerer.before_step()  # a step without a batch of its own
        assert all(torch.equal(one, other) for one, other in zip(gradients(model), both, strict=True))
    found = [one - other for one, other in zip(both, plain, strict=True)]
    assert_alike(found, by_hand(model, start, bank, batch), tolerance=1e-3)


def test_the_mask_of_the_batch_is_run_again_as_well(bank):
    model, batch = llama(), Sentences()[:8]
    batch["attention_mask"] = (torch.arange(12) >= 3).long().repeat(8, 1)
    with unmetered(model, bank, penalise("pirate", 1.0)) as steerer:
        start = astray(model)
        found = added(steerer, model, batch)
    assert_alike(found, by_hand(model, start, bank, batch), tolerance=1e-3)
    del batch["attention_mask"]
    other = by_hand(model, start, bank, batch)
    assert any((one - each).abs().max() > 0.01 * each.abs().max() > 0 for one, each in zip(found, other, strict=True))


def test_dropout_is_off_and_modes_and_random_numbers_are_given_back(bank):
    model, batch = lora(llama(), lora_dropout=0.5).train(), Sentences()[:8]
    modes = [module.training for module in model.modules()]
    with unmetered(model, bank, penalise("pirate", 1.0)) as steerer:
        start = astray(model)
        steerer.watch(batch["labels"])
        model(**batch).loss.backward()
        plain, state = gradients(model), torch.random.get_rng_state()
        steerer.before_step()
        assert torch.equal(torch.random.get_rng_state(), state)
        found = [one - other for one, other in zip(gradients(model), plain, strict=True)]
    assert [module.training for module in model.modules()] == modes
    assert_alike(found, by_hand(model.eval(), start.eval(), bank, batch), tolerance=1e-3)


def test_the_concept_rises_less_with_it_than_without(bank, tmp_path):
    after = []
    for acts in ([observe()], [penalise("pirate", 100.0)]):
        model = fit(llama(), tmp_path, ConceptSteering(bank, acts, summary=False)).model
        after.append(float(penalty(model, llama(), bank, Sentences()[:8]).detach()))
    assert after[1] < 0.5 * after[0]


def test_the_demand_meter_counts_no_pass_of_it(bank):
    found = []
    for acts in ([], [penalise("pirate", 1000.0)]):
        model, batch, recorder = llama(), Sentences()[:8], MemoryRecorder()
        optimizer = sgd(model, lr=0.0)
        with attached(model, bank, *acts, optimizer=optimizer, recorders=[recorder], meters=["demand"]) as steerer:
            astray(model)
            added(steerer, model, batch)
            optimizer.step()
        found.append({name: curve for name, curve in recorder.curves().items() if "demand" in name})
    assert found[0] == found[1] != {}


def test_what_is_added_is_scaled_as_the_gradients_are(bank):
    """Not as the loss was: by then they are unscaled, but where the optimizer does it in its own step."""
    found = []
    for scales in ({}, {"loss_scale": 64.0}, {"loss_scale": 64.0, "gradient_scale": 64.0}):
        model = llama()
        with unmetered(model, bank, penalise("pirate", 1.0)) as steerer:
            astray(model)
            found.append(added(steerer, model, Sentences()[:8], **scales))
    assert_alike(found[1], found[0])
    assert_alike(found[2], [64 * each for each in found[0]])


def test_processes_that_see_different_batches_add_the_mean_of_theirs(bank, monkeypatch):
    """Else their parameters would part."""
    model, batch = llama(), Sentences()[:8]
    two_processes(monkeypatch, lambda tensor: tensor.mul_(1 + 3))  # the other has three times
    with unmetered(model, bank, penalise("pirate", 1.0)) as steerer:
        start = astray(model)
        found = added(steerer, model, batch)
    assert_alike(found, [2.0 * each for each in by_hand(model, start, bank, batch)], tolerance=1e-3)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_a_weight_without_a_meaning_is_refused(weight):
    with pytest.raises(ValueError, match="finite weight above 0"):
        penalise("pirate", weight)


@pytest.mark.parametrize(
    ("acts", "words"),
    [
        ([penalise("ghost", 1.0)], "unknown concept 'ghost'"),
        ([penalise("pirate", 1.0, hooks=[LATER])], "no directions at 'blocks.2"),
        ([penalise("pirate", 1.0, hooks=[])], "no hook points of 'pirate' are chosen"),
        ([penalise("pirate", 1.0), penalise("pirate", 2.0)], "'penalise/pirate' is there already"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(bank, acts, words):
    with pytest.raises(ValueError, match=words):
        unmetered(llama(), bank, *acts)


def test_a_loop_that_does_not_name_its_tokens_is_refused_by_name(bank):
    model, batch = llama(), Sentences()[:8]
    with unmetered(model, bank, penalise("pirate", 1.0)):
        with pytest.raises(ValueError, match="needs input_ids by name, found labels"):
            model(batch["input_ids"], labels=batch["labels"])
        with pytest.raises(ValueError, match="needs input_ids by name, found inputs_embeds"):
            model(inputs_embeds=torch.zeros(1, 2, WIDTH))


def test_a_loop_that_does_not_announce_its_steps_is_refused(bank):
    model = llama()
    optimizer = sgd(model)
    with unmetered(model, bank, penalise("pirate", 1.0), optimizer=optimizer):
        model(**Sentences()[:8]).loss.backward()
        with pytest.raises(RuntimeError, match="stepped before penalise/pirate had acted"):
            optimizer.step()


def test_a_model_of_which_nothing_below_the_hook_trains_is_refused_by_name(bank):
    model = llama()
    for part in (model.model.embed_tokens, *model.model.layers[:2]):
        part.requires_grad_(False)
    steerer = Steerer(bank, find_sites(llama(), bank), [penalise("pirate", 1.0)], meters=())
    with steerer.attach(model, sgd(model)):
        model(**Sentences()[:8]).loss.backward()
        with pytest.raises(ValueError, match="nothing that trains has a part in what penalise/pirate reads"):
            steerer.before_step()
