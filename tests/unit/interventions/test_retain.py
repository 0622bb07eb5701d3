"""Retain: what is added to the gradients is that of a KL term, once a step, whatever they are scaled by."""

import math
from functools import partial

import pytest
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch.nn.functional import kl_div

from interptrain import observe, suppress
from interptrain.callbacks.lightning import ConceptSteering
from interptrain.interventions import retain
from interptrain.recorders import MemoryRecorder
from tests.helpers.interventions import (
    Bare,
    assert_alike,
    astray,
    every_model,
    gradients,
    make_bank,
    sgd,
    trainable,
    unmetered,
)
from tests.helpers.models import Sentences, fit, llama, weights


@pytest.fixture
def bank():
    return make_bank().select("pirate")


def texts(seed=5):
    sentences = Sentences(count=4, seed=seed)
    return {
        "input_ids": sentences.tokens,
        "attention_mask": torch.ones_like(sentences.tokens),
        "labels": sentences.labels,
    }


def kl(model, start, batch):
    counted = batch["labels"][:, 1:] != -100
    now, before = (
        each(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1][counted]
        for each in (model, start)
    )
    return kl_div(now.log_softmax(-1), before.log_softmax(-1).detach(), log_target=True, reduction="batchmean")


@every_model
def test_what_is_added_is_the_weighted_gradient_of_the_divergence(bank, make):
    model, recorder = make(), MemoryRecorder()
    optimizer = sgd(model, lr=0.0)
    with unmetered(model, bank, retain([texts()], 0.3), optimizer=optimizer, recorders=[recorder]) as steerer:
        start = astray(model)
        model(**Sentences()[:8]).loss.backward()
        plain = gradients(model)
        steerer.before_step()
        found = [one - other for one, other in zip(gradients(model), plain, strict=True)]
        optimizer.step()
    wanted = kl(model, start, texts())
    assert_alike(found, [0.3 * each for each in torch.autograd.grad(wanted, trainable(model))])
    assert recorder.curves()["interptrain/retain/kl"] == [pytest.approx(float(wanted.detach()), rel=1e-4)]


def test_gradients_that_are_missing_are_made(bank):
    model = llama()
    with unmetered(model, bank, retain([texts()])) as steerer:
        start = astray(model)
        steerer.before_step()
    assert_alike(gradients(model), torch.autograd.grad(kl(model, start, texts()), trainable(model)))


def test_at_the_start_nothing_is_added(bank):
    model = llama()
    model(**Sentences()[:8]).loss.backward()
    plain = gradients(model)
    with unmetered(model, bank, retain([texts()], 1.0)) as steerer:
        steerer.before_step()
    assert_alike(gradients(model), plain, tolerance=1e-6)


def test_batches_of_texts_come_in_turn(bank):
    model = llama()
    with unmetered(model, bank, retain([texts(5), texts(6)])) as steerer:
        start = astray(model)
        for seed in (5, 6, 5):
            model.zero_grad()
            steerer.before_step()
            assert_alike(gradients(model), torch.autograd.grad(kl(model, start, texts(seed)), trainable(model)))


def test_several_backward_passes_are_one_step_and_it_is_added_once(bank):
    model = llama()
    with unmetered(model, bank, retain([texts()], 0.5)) as steerer:
        start = astray(model)
        for number in range(3):
            (model(**Sentences(seed=number)[:8]).loss / 3).backward()
        plain = gradients(model)
        steerer.before_step()
    wanted = torch.autograd.grad(0.5 * kl(model, start, texts()), trainable(model))
    assert_alike([one - other for one, other in zip(gradients(model), plain, strict=True)], wanted)


def test_under_lightning_it_is_added_once_an_optimizer_step(bank, tmp_path):
    callback = ConceptSteering(bank, [retain([texts(seed) for seed in range(9)])], summary=False)
    fit(llama(), tmp_path, callback, steps=3, accumulate_grad_batches=2)
    assert int(callback.state_dict()["interventions"]["retain/turn"]) == 3


def trained(bank, *, scale=None, fused=False):
    """Parameters after two steps, under a GradScaler or without one."""
    model = llama()
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-3, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    with unmetered(model, bank, retain([texts()], 2.0), optimizer=optimizer) as steerer:
        astray(model)
        for number in range(2):
            steerer.watch(Sentences(seed=number)[:8]["labels"])
            scaler.scale(model(**Sentences(seed=number)[:8]).loss).backward()
            still = scaler.get_scale() if fused else 1.0
            if not fused:
                scaler.unscale_(optimizer)
            steerer.before_step(loss_scale=scaler.get_scale(), gradient_scale=still)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    return list(weights(model).values())


@pytest.mark.parametrize("fused", [False, True], ids=["unscaled before the step", "unscaled in the step"])
def test_loss_scaling_leaves_no_trace(bank, fused):
    for one, other in zip(trained(bank, scale=2.0**12, fused=fused), trained(bank), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True], ids=["unscaled before the step", "unscaled in the step"])
def test_loss_scaling_under_lightning_leaves_no_trace(bank, fused, tmp_path):
    after = []
    for scale in (2.0**6, 2.0**10):
        plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale))
        callback = ConceptSteering(bank, [retain([texts()], 50.0)], summary=False)
        sgd_of = partial(torch.optim.SGD, lr=0.1, fused=fused)
        after.append(weights(fit(llama(), tmp_path, callback, make_optimizer=sgd_of, plugins=[plugin])))
    for name, value in after[0].items():
        torch.testing.assert_close(value, after[1][name], rtol=0, atol=1e-4)


def test_a_rule_steers_what_is_added_as_well(bank):
    """Also at sites that the user's loss gives no gradient at all."""
    model = llama()
    with unmetered(model, bank, suppress("pirate"), retain([texts()]), where="gradient") as steerer:
        astray(model)
        steerer.before_step()
    for layer in model.model.layers[:2]:
        assert (bank.directions @ layer.mlp.down_proj.weight.grad).abs().max() < 1e-6
        assert layer.mlp.down_proj.weight.grad.abs().max() > 1e-4


def test_training_stays_nearer_to_the_start_with_it_than_without(bank, tmp_path):
    found = []
    for acts in ([observe()], [retain([texts()], 20.0)]):
        module = fit(llama(), tmp_path, ConceptSteering(bank, acts, summary=False))
        found.append(float(kl(module.model, llama(), texts()).detach()))
    assert found[1] < 0.5 * found[0]


def test_a_divergence_that_is_not_finite_adds_nothing(bank):
    model = llama()
    with unmetered(model, bank, retain([texts()])) as steerer:
        model(**Sentences()[:8]).loss.backward()
        plain = gradients(model)
        model.register_forward_hook(lambda _module, _args, output: setattr(output, "logits", output.logits * math.nan))
        steerer.before_step()
    assert all(torch.equal(one, other) for one, other in zip(gradients(model), plain, strict=True))


def test_a_loop_that_does_not_announce_its_steps_is_refused(bank):
    model = llama()
    optimizer = sgd(model)
    with unmetered(model, bank, retain([texts()]), optimizer=optimizer):
        model(**Sentences()[:8]).loss.backward()
        with pytest.raises(RuntimeError, match=r"stepped before retain had acted: call before_step\(\) first"):
            optimizer.step()


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_a_weight_without_a_meaning_is_refused(weight):
    with pytest.raises(ValueError, match="finite weight above 0"):
        retain([texts()], weight)


def test_what_does_not_fit_is_refused_before_training(bank):
    with pytest.raises(ValueError, match="is empty"):
        unmetered(llama(), bank, retain([]))
    with pytest.raises(ValueError, match="'retain' is there already"):
        unmetered(llama(), bank, retain([texts()]), retain([texts(6)]))
    with pytest.raises(ValueError, match=r"output \(Tensor\) has no logits"):
        unmetered(Bare(), bank, retain([texts()]))
