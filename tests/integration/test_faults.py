"""What goes wrong in long runs: each fault is said, training and its weights go on unharmed."""

import os
import re

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from interptrain import observe, suppress
from interptrain.callbacks.lightning import ConceptSteering
from interptrain.callbacks.torch import attach
from interptrain.recorders import JSONLRecorder, MemoryRecorder
from tests.helpers.loops import adamw
from tests.helpers.models import (
    Sentences,
    Tuning,
    fit,
    llama,
    loader,
    lora,
    trainer,
    two_concepts,
    weights,
)

BATCHES = list(DataLoader(Sentences(), batch_size=8))[:4]
DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture
def bank():
    return two_concepts()


def differ(one, other):
    return max(float((value - other[name]).abs().max()) for name, value in one.items())


def looped(bank, rule, *recorders, between=None, model=None, **options):
    """Four steps of a plain loop; `between(number, model, optimizer)` comes after each backward pass."""
    model = llama() if model is None else model
    optimizer = adamw([p for p in model.parameters() if p.requires_grad])
    with attach(model, optimizer, bank, rule, recorders=recorders, summary=False, **options) as steering:
        for number, batch in enumerate(BATCHES):
            model(**batch).loss.backward()
            if between is not None:
                between(number, model, optimizer)
            optimizer.step()
            optimizer.zero_grad()
            steering.metrics()
    return weights(model)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_stops_the_file_and_not_the_run(bank):
    memory = MemoryRecorder()
    with pytest.warns(UserWarning, match="JSONLRecorder raised OSError: .*No space left on device"):
        found = looped(bank, suppress("pirate"), JSONLRecorder("/dev/full"), memory)
    assert differ(found, looped(bank, suppress("pirate"))) == 0.0
    assert memory.curves()["step"] == [0.0, 1.0, 2.0, 3.0]


def test_a_wandb_run_that_is_gone_stops_its_recorder_and_not_the_run(bank, tmp_path):
    from interptrain.recorders.wandb import WandbRecorder

    recorder, memory = WandbRecorder(mode="offline", dir=tmp_path), MemoryRecorder()

    def lose(number, _model, _optimizer):
        if number == 1:
            recorder.run.finish()

    with pytest.warns(UserWarning, match="WandbRecorder raised"):
        found = looped(bank, suppress("pirate"), recorder, memory, between=lose)
    assert differ(found, looped(bank, suppress("pirate"))) == 0.0
    assert memory.curves()["step"] == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("where", ["gradient", "update"])
def test_a_gradient_that_is_not_finite_is_counted_and_stays_where_it_was(bank, where):
    def poison(number, model, _optimizer):
        if number == len(BATCHES) - 1:
            model.get_parameter(DOWN).grad[0, 0] = torch.nan

    recorder = MemoryRecorder()
    with pytest.warns(UserWarning, match="1 site gradients held NaN or infinity before step 4"):
        found = looped(bank, suppress("pirate"), recorder, between=poison, where=where, clip_norm=1.0)
    assert int((~torch.isfinite(found[DOWN])).sum()) == 1
    assert all(torch.isfinite(value).all() for name, value in found.items() if name != DOWN)
    assert recorder.curves()["interptrain/nonfinite_sites"] == [None, None, None, 1.0]


@pytest.mark.parametrize("where", ["gradient", "update"])
@pytest.mark.parametrize("make", [llama, lambda: lora(llama())], ids=["full", "lora"])
def test_a_model_that_is_all_nan_is_not_ended_by_us(bank, make, where):
    def ruin(number, model, _optimizer):
        if number == 1:
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(torch.nan)

    recorder = MemoryRecorder()
    with pytest.warns(UserWarning, match="site gradients held NaN"):
        looped(bank, suppress("pirate"), recorder, between=ruin, model=make(), where=where)
    assert recorder.curves()["step"] == [0.0, 1.0, 2.0, 3.0]
    assert recorder.curves()["concept/pirate/demand"][2:] == [None, None]


def test_an_optimizer_that_was_not_given_is_named_and_one_that_grows_is_followed(bank):
    model = llama()
    own = [p for name, p in model.named_parameters() if "layers.0.mlp.down_proj" in name]
    known, late = adamw(own), adamw([p for name, p in model.named_parameters() if "down_proj" not in name])
    with pytest.warns(UserWarning, match=r"10 sites belong to no attached optimizer \(model\.embed_tokens\.weight, "):
        steering = attach(model, known, bank, suppress("pirate"), summary=False, where="update")
    with steering:
        before = weights(model)
        model(**BATCHES[0]).loss.backward()
        known.step()
        late.step()
        after = weights(model)
        moved = bank.select("pirate").directions @ (after[DOWN] - before[DOWN])
        other = "model.layers.0.self_attn.o_proj.weight"
        untouched = bank.select("pirate").directions @ (after[other] - before[other])
        assert float(moved.abs().max()) < 1e-6 < 1e-4 < float(untouched.abs().max())
        known.add_param_group({"params": [model.get_parameter(other)]})
        known.step()
        last = weights(model)
        followed = bank.select("pirate").directions @ (last[other] - after[other])
        assert float(followed.abs().max()) < 1e-6 < float((last[other] - after[other]).abs().max())


def test_an_optimizer_that_lightning_gets_in_mid_run_is_refused_by_name(bank, tmp_path):
    class Grows(Tuning):
        def training_step(self, batch, batch_idx):
            if batch_idx == 1:
                self.trainer.optimizers = [adamw(self.parameters())]
            return super().training_step(batch, batch_idx)

    run = trainer(tmp_path, ConceptSteering(bank, suppress("pirate"), summary=False))
    with pytest.raises(ValueError, match=r"before_step\(AdamW\) is not about one of the 1 attached optimizers"):
        run.fit(Grows(llama(), manual=True), loader())


def test_parameters_frozen_in_mid_run_are_left_alone_and_unfrozen_ones_are_named(bank):
    frozen = "model.layers.1.mlp.down_proj.weight"

    def freeze(number, model, _optimizer):
        if number == 1:
            model.get_parameter(frozen).requires_grad_(False)
            model.get_parameter(frozen).grad = None

    recorder = MemoryRecorder()
    found = looped(bank, suppress("pirate"), recorder, between=freeze)
    assert recorder.curves()["step"] == [0.0, 1.0, 2.0, 3.0]
    assert all(torch.isfinite(value).all() for value in found.values())

    model = llama()
    model.get_parameter(frozen).requires_grad_(False)

    def thaw(number, model, optimizer):
        if number == 1:
            model.get_parameter(frozen).requires_grad_(True)
            optimizer.add_param_group({"params": [model.get_parameter(frozen)]})

    said = rf"1 parameters began to train after the start \({re.escape(frozen)}, \.\.\.\)"
    with pytest.warns(UserWarning, match=said) as caught:
        looped(bank, suppress("pirate"), between=thaw, model=model)
    assert sum("began to train" in str(each.message) for each in caught) == 1


def test_a_model_that_changes_its_type_in_mid_run_is_followed(bank):
    def widen(number, model, optimizer):
        if number == 1:
            optimizer.step()  # so that the parameters change with nothing between a gradient and its step
            optimizer.zero_grad()
            model.double()
            optimizer.state.clear()
            model(**BATCHES[0]).loss.backward()

    recorder = MemoryRecorder()
    found = looped(bank, suppress("pirate"), recorder, between=widen, where="update")
    assert all(value.dtype == torch.float64 and torch.isfinite(value).all() for value in found.values())
    assert recorder.curves()["concept/pirate/achieved"] == pytest.approx([0.0] * 5, abs=1e-3)


@pytest.mark.gpu
def test_a_model_that_moves_to_another_device_in_mid_run_is_followed(bank):
    model = llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = MemoryRecorder()
    with attach(model, optimizer, bank, suppress("pirate"), where="update", recorders=[recorder], summary=False):
        for device in ("cpu", "cuda", "cpu"):
            model.to(device)
            model(**{key: value.to(device) for key, value in BATCHES[0].items()}).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert recorder.curves()["concept/pirate/achieved"] == pytest.approx([0.0] * 3, abs=1e-3)


def test_a_step_without_gradients_is_no_fault(bank):
    model = llama()
    optimizer = adamw(model.parameters())
    with attach(model, optimizer, bank, suppress("pirate"), summary=False) as steering:
        optimizer.step()
        assert steering.state_dict()["steps"] == [1]


def test_two_callbacks_of_a_lightning_run_keep_their_curves_and_states_apart(bank, tmp_path):
    def callbacks():
        first = ConceptSteering(bank, suppress("pirate"), summary=False, name="one")
        return first, ConceptSteering(bank.select("royal"), observe(), summary=False, name="two")

    run = trainer(tmp_path, *callbacks(), logger=pl.loggers.CSVLogger(tmp_path), steps=2)
    run.fit(Tuning(llama()), loader())
    assert run.callback_metrics["one/concept/pirate/gain"] == 0.0
    assert "two/concept/royal/demand" in run.callback_metrics
    assert not any(key.startswith("concept/") for key in run.callback_metrics)
    run.save_checkpoint(tmp_path / "two.ckpt")
    resumed = callbacks()
    trainer(tmp_path, *resumed, steps=4).fit(Tuning(llama()), loader(), ckpt_path=tmp_path / "two.ckpt")
    assert [callback.state_dict()["steps"] for callback in resumed] == [[4], [4]]
    assert [callback.state_dict()["concepts"] for callback in resumed] == [["pirate", "royal"], ["royal"]]
    third = trainer(tmp_path, ConceptSteering(bank, summary=False, name="three"), steps=3)
    with pytest.warns(UserWarning, match=r"two\.ckpt' has no steering state of the name 'three'"):
        third.fit(Tuning(llama()), loader(), ckpt_path=tmp_path / "two.ckpt")


def test_a_callback_serves_a_second_fit_and_starts_anew(bank, tmp_path):
    recorder = MemoryRecorder()
    callback = ConceptSteering(bank, suppress("pirate"), summary=False, recorders=[recorder])
    first, second = fit(llama(), tmp_path, callback), fit(llama(), tmp_path, callback)
    assert differ(weights(first), weights(second)) == 0.0
    curves = recorder.curves()
    assert curves["step"] == [0.0, 1.0, 2.0, 3.0] * 2
    assert curves["concept/pirate/demand/cumulative"][:4] == curves["concept/pirate/demand/cumulative"][4:]


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_lightning_is_left_as_it_was_after_an_error_or_an_interruption(bank, error, tmp_path):
    class Stops(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            raise error

    model = lora(llama())
    run = trainer(tmp_path, ConceptSteering(bank, suppress("pirate"), where="update", summary=False), Stops())
    with pytest.raises((type(error), SystemExit)):
        run.fit(Tuning(model), loader())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not run.optimizers[0]._optimizer_step_pre_hooks
    assert not run.optimizers[0]._optimizer_step_post_hooks


def test_a_state_of_other_sites_or_another_bank_is_refused_and_leaves_nothing_behind(bank, tmp_path):
    model = llama()
    optimizer = adamw(model.parameters())
    with attach(model, optimizer, bank, suppress("pirate"), summary=False) as steering:
        state = steering.state_dict()
    for options, said in (
        ({"bank": bank.select("royal")}, "is of concepts pirate, royal; this run has royal"),
        ({"skip": ["lm_head*"]}, r"of other sites: 1 sites gone \(lm_head\.weight"),
        ({"seed": 3}, "has seed=0; this run has 3"),
    ):
        given = {"bank": bank, "summary": False} | options
        with pytest.raises(ValueError, match=said):
            attach(model, optimizer, state=state, **given)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert not optimizer._optimizer_step_post_hooks
