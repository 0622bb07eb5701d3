"""A loop of one's own: closures, scalers, compiled models, accelerate, and what the handle does."""

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from interptrain import amplify, gate, hold, observe, suppress
from interptrain.callbacks.torch import attach
from interptrain.recorders import MemoryRecorder
from tests.helpers.loops import adamw
from tests.helpers.models import Sentences, llama, lora, two_concepts, weights

BATCHES = list(DataLoader(Sentences(), batch_size=8))[:4]
quiet = {"summary": False}


@pytest.fixture
def bank():
    return two_concepts()


def plainly(model, optimizer, *, forward=None):
    for batch in BATCHES:
        (model if forward is None else forward)(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return weights(model)


def steered_weights(bank, rule):
    model = llama()
    optimizer = adamw(model.parameters())
    with attach(model, optimizer, bank, rule, **quiet):
        return plainly(model, optimizer)


def assert_equal(one, other):
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0, msg=name)


def differ(one, other):
    return max(float((value - other[name]).abs().max()) for name, value in one.items())


def test_the_steered_run_differs_and_nothing_is_left_behind(bank):
    model = llama()
    optimizer = adamw(model.parameters())
    with attach(model, optimizer, bank, [suppress("pirate"), gate("royal", tokens=0.2)], **quiet):
        steered = plainly(model, optimizer)
    assert differ(steered, plainly(*_fresh())) > 1e-3
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def _fresh():
    model = llama()
    return model, adamw(model.parameters())


def test_nothing_is_left_behind_after_an_interruption(bank):
    model, optimizer = _fresh()

    def interrupted():
        with attach(model, optimizer, bank, suppress("pirate"), **quiet):
            assert any(m._forward_hooks for m in model.modules())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not optimizer._optimizer_step_pre_hooks


def test_a_failed_attach_leaves_nothing_behind(bank):
    model, optimizer = _fresh()
    with pytest.raises(ValueError, match="the rule names parrot"):
        attach(model, optimizer, bank, suppress("parrot"), **quiet)
    texts = [{"input_ids": BATCHES[0]["input_ids"], "attention_mask": torch.ones(8, 12, dtype=torch.long)}]
    with pytest.raises(ValueError, match="hold/pirate"):
        attach(model, optimizer, bank, [hold("pirate", texts), hold("pirate", texts)], **quiet)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not optimizer._optimizer_step_pre_hooks


def test_a_closure_is_steered_like_a_plain_step(bank):
    model, optimizer = _fresh()
    with attach(model, optimizer, bank, suppress("pirate"), **quiet):
        for batch in BATCHES:

            def closure(batch=batch):
                optimizer.zero_grad()
                loss = model(**batch).loss
                loss.backward()
                return loss

            loss = optimizer.step(closure)
            assert torch.isfinite(loss)
    assert_equal(weights(model), steered_weights(bank, suppress("pirate")))


def test_before_step_by_hand_steers_in_front_of_the_loops_own_clipping(bank):
    def clipped(**options):
        model, optimizer = _fresh()
        with attach(model, optimizer, bank, suppress("pirate"), **quiet, **options) as steering:
            for batch in BATCHES:
                model(**batch).loss.backward()
                if not options:
                    steering.before_step()
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()
        return weights(model)

    assert differ(clipped(), clipped(clip_norm=0.1)) < 1e-6
    assert differ(clipped(), steered_weights(bank, suppress("pirate"))) > 1e-5


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("where", ["gradient", "update"])
def test_a_grad_scaler_is_seen_through(bank, fused, where):
    def trained(scale):
        model = llama()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale != 1.0, growth_interval=10**6)
        recorder = MemoryRecorder()
        with attach(
            model, optimizer, bank, amplify("pirate", 2.0), where=where, scaler=scaler, recorders=[recorder], **quiet
        ):
            for batch in BATCHES:
                scaler.scale(model(**batch).loss).backward()
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
        return weights(model), recorder.curves()["concept/pirate/demand/signed"]

    (scaled, signed), (plain, expected) = trained(2.0**10), trained(1.0)
    assert differ(scaled, plain) < 1e-5
    assert signed == pytest.approx(expected, rel=1e-4)
    assert differ(plain, plainly(*_fresh())) > 1e-4


def test_a_step_that_the_scaler_skips_is_not_counted(bank):
    model, optimizer = _fresh()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    recorder = MemoryRecorder()
    with attach(model, optimizer, bank, suppress("pirate"), scaler=scaler, recorders=[recorder], **quiet) as steering:
        for number, batch in enumerate(BATCHES):
            scaler.scale(model(**batch).loss).backward()
            if number == 1:
                model.model.layers[0].mlp.down_proj.weight.grad[0, 0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        assert steering.state_dict()["steps"] == [len(BATCHES) - 1]
    assert recorder.curves()["step"] == [0.0, 1.0, 2.0]
    assert all(torch.isfinite(value).all() for value in weights(model).values())


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_is_read_and_steered_like_any_other(bank, backend, unchecked_shapes):
    torch._dynamo.reset()
    model, optimizer = _fresh()
    recorder, expected = MemoryRecorder(), MemoryRecorder()
    compiled = torch.compile(model, backend=backend)
    with attach(compiled, optimizer, bank, suppress("pirate"), recorders=[recorder], **quiet):
        found = plainly(model, optimizer, forward=compiled)
    other, optimizer = _fresh()
    with attach(other, optimizer, bank, suppress("pirate"), recorders=[expected], **quiet):
        plainly(other, optimizer)
    assert differ(found, weights(other)) < 1e-5
    assert differ(found, plainly(*_fresh())) > 1e-3
    for key in ("concept/pirate/demand", "concept/pirate/write", "concept/pirate/demand/signed"):
        assert recorder.curves()[key] == pytest.approx(expected.curves()[key], rel=1e-3, abs=1e-7), key


def test_accelerate_with_accumulation_is_steered_like_a_plain_loop(bank):
    model, optimizer = _fresh()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    wrapped, stepper, data = accelerator.prepare(model, optimizer, DataLoader(Sentences(), batch_size=8))
    recorder = MemoryRecorder()
    with attach(wrapped, stepper, bank, suppress("pirate"), recorders=[recorder], **quiet) as steering:
        for number, batch in enumerate(data):
            with accelerator.accumulate(wrapped):
                accelerator.backward(wrapped(**batch).loss)
                stepper.step()
                stepper.zero_grad()
            if number == 3:
                break
        assert steering.metrics()["concept/pirate/gain"] == 0.0
    assert recorder.curves()["step"] == [0.0, 1.0]

    other, optimizer = _fresh()
    with attach(other, optimizer, bank, suppress("pirate"), **quiet):
        for number, batch in enumerate(BATCHES):
            (other(**batch).loss / 2).backward()
            if number % 2:
                optimizer.step()
                optimizer.zero_grad()
    assert differ(weights(model), weights(other)) < 1e-6


def test_metrics_are_the_mean_since_the_last_call(bank):
    model, optimizer = _fresh()
    recorder = MemoryRecorder()
    with attach(model, optimizer, bank, recorders=[recorder], **quiet) as steering:
        assert steering.metrics() == {}
        plainly(model, optimizer)
        found = steering.metrics()
        assert steering.metrics() == {}
    each = recorder.curves()["concept/pirate/demand"]
    assert found["concept/pirate/demand"] == pytest.approx(sum(each) / len(each), rel=1e-5)


def test_labels_are_those_of_the_call_or_those_that_are_watched(bank):
    def demand(*, labels, watched=None):
        model, optimizer = _fresh()
        recorder = MemoryRecorder()
        with attach(model, optimizer, bank, recorders=[recorder], **quiet) as steering:
            batch = BATCHES[0] if labels else {"input_ids": BATCHES[0]["input_ids"]}
            if watched is not None:
                steering.watch(watched)
            logits = model(**batch).logits
            shifted = torch.nn.functional.pad(BATCHES[0]["labels"][:, 1:], (0, 1), value=-100)
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), shifted.flatten()).backward()
            optimizer.step()
        return recorder.curves()["concept/pirate/demand"][0]

    by_call = demand(labels=True)
    assert demand(labels=False, watched=BATCHES[0]["labels"]) == by_call
    assert demand(labels=False) != by_call


def test_the_rule_can_be_changed_in_mid_run(bank):
    model, optimizer = _fresh()
    recorder = MemoryRecorder()
    with attach(model, optimizer, bank, observe(), recorders=[recorder], **quiet) as steering:
        for number, batch in enumerate(BATCHES):
            if number == 2:
                steering.rule = suppress("pirate")
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert recorder.curves()["concept/pirate/gain"] == [1.0, 1.0, 0.0, 0.0]


def test_lora_and_several_optimizers_each_steer_their_own(bank):
    model = lora(llama())
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    first = adamw([p for name, p in trained.items() if "layers.0" in name])
    second = adamw([p for name, p in trained.items() if "layers.0" not in name])
    with attach(model, [first, second], bank, suppress("pirate"), **quiet) as steering:
        with pytest.raises(ValueError, match="2 optimizers are attached; name the one"):
            steering.before_step()
        for batch in BATCHES:
            model(**batch).loss.backward()
            for optimizer in (first, second):
                optimizer.step()
                optimizer.zero_grad()
        assert steering.state_dict()["steps"] == [4, 4]
    together, optimizer = lora(llama()), None
    optimizer = adamw([p for p in together.parameters() if p.requires_grad])
    with attach(together, optimizer, bank, suppress("pirate"), **quiet):
        plainly(together, optimizer)
    assert differ(weights(model), weights(together)) < 1e-7


def test_wrong_arguments_are_named(bank):
    model, optimizer = _fresh()
    with pytest.raises(TypeError, match="unknown options cadence; known are sites"):
        attach(model, optimizer, bank, cadence=3)
    with pytest.raises(TypeError, match="LBFGS"):
        attach(model, torch.optim.LBFGS(model.parameters()), bank, **quiet)
    with pytest.raises(ValueError, match="clip_norm must be above 0"):
        attach(model, optimizer, bank, clip_norm=0.0, **quiet)
    with pytest.raises(ValueError, match=r"expected a steering state, .*; found one with model, steering"):
        attach(model, optimizer, bank, state={"model": {}, "steering": {}}, **quiet)


@pytest.mark.usefixtures("unchecked_shapes")
def test_arguments_of_another_kind_are_named(bank):
    model, optimizer = _fresh()
    with pytest.raises(TypeError, match=r"expected a ConceptBank, found str; ConceptBank\.load"):
        attach(model, optimizer, "my-bank", **quiet)
    with pytest.raises(TypeError, match=r"expected a ConceptBank, found Constant"):
        attach(model, bank, suppress("pirate"), **quiet)
    with pytest.raises(TypeError, match=r"recorders is a list of recorders, .*; found a str among them"):
        attach(model, optimizer, bank, recorders=["curves.jsonl"], **quiet)
    with pytest.raises(TypeError, match=r"recorders is a list of recorders, .*; found one MemoryRecorder"):
        attach(model, optimizer, bank, recorders=MemoryRecorder(), **quiet)
    with pytest.raises(ValueError, match=r"expected a steering state, .*; found str"):
        attach(model, optimizer, bank, state="state.safetensors", **quiet)
