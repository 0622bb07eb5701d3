"""where="update" inside real trainers: what the optimizer did has the gains that were asked for."""

import bitsandbytes
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision

from interptrain import ConceptBank, Steerer, find_sites, one_sided, suppress
from interptrain.callbacks.lightning import ConceptSteering
from interptrain.recorders import MemoryRecorder
from tests.helpers.models import HOOK, WIDTH, Sentences, Tuning, fit, gpt2, llama, loader, lora, trainer, weights
from tests.helpers.steps import RealisedSteps, relative_errors


@pytest.fixture
def bank():
    """Three directions to steer and one to watch."""
    generator = torch.Generator().manual_seed(1)
    return ConceptBank.from_directions(
        {"pirate": torch.randn(3, WIDTH, generator=generator), "royal": torch.randn(WIDTH, generator=generator)},
        hook=HOOK,
    )


def steering(bank, gain, **options):
    def rule(coefficients, step):
        return {"pirate": gain}

    return ConceptSteering(bank, rule, where="update", summary=False, **options)


def linear_parameters(model):
    """Matrices of the blocks only: Muon takes no others."""
    return [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]


def without_embeddings(model):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.ndim == 2 and "embed" not in name and "lm_head" not in name)
    return model


OPTIMIZERS = {
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1, foreach=False),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1, fused=True),
    "muon": lambda p: torch.optim.Muon(p, lr=1e-3, weight_decay=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "adamw-8bit": lambda p: bitsandbytes.optim.AdamW8bit(p, lr=1e-3, weight_decay=0.1, min_8bit_size=64),
}


def model_for(optimizer):
    return without_embeddings(llama()) if optimizer == "muon" else llama()


@pytest.mark.parametrize("where", ["gradient", "update"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_gain_one_is_bit_identical_to_no_callback(bank, optimizer, where, tmp_path):
    loop = {"make_optimizer": OPTIMIZERS[optimizer], "accumulate_grad_batches": 2, "gradient_clip_val": 0.5}
    plain = fit(model_for(optimizer), tmp_path, **loop)
    one = ConceptSteering(bank, lambda coefficients, step: {"pirate": 1.0}, where=where, summary=False)
    same = fit(model_for(optimizer), tmp_path, one, **loop)
    assert plain.losses == same.losses
    assert all(torch.equal(value, weights(same)[name]) for name, value in weights(plain).items())
    other = ConceptSteering(bank, suppress("pirate"), where=where, summary=False)
    assert fit(model_for(optimizer), tmp_path, other, **loop).losses != plain.losses


def watched(model, bank, callback, folder, *, where="update", **options):
    """The steps of one run before and after the edit."""
    sites = find_sites(model, bank, where=where)
    rows = bank.select("pirate").directions
    before, after = RealisedSteps(sites, rows), RealisedSteps(sites, rows)
    fit(model, folder, before, callback, after, **options)
    return before, after


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_the_optimizer_did_has_gain_zero_under_every_optimizer(bank, optimizer, tmp_path):
    before, after = watched(
        model_for(optimizer), bank, steering(bank, 0.0), tmp_path, make_optimizer=OPTIMIZERS[optimizer],
        steps=6, gradient_clip_val=0.5, accumulate_grad_batches=2,
    )  # fmt: skip
    assert len(after.steps) == 6
    assert max(relative_errors(before, after, 0.0)) < 1e-5


LOOP = {
    "make_optimizer": lambda p: torch.optim.AdamW(p, lr=2e-3, weight_decay=0.1),
    "steps": 200, "max_epochs": -1, "gradient_clip_val": 0.5, "accumulate_grad_batches": 2,
}  # fmt: skip


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("make", [llama, pytest.param(gpt2, marks=pytest.mark.slow)], ids=["llama", "gpt2"])
@pytest.mark.parametrize(("gain", "bound"), [(0.0, 1e-5), (0.5, 1e-3), (2.0, 1e-3)])
def test_two_hundred_adamw_steps_of_full_parameters_each_have_their_gain(bank, make, gain, bound, tmp_path):
    before, after = watched(make(), bank, steering(bank, gain, every=20), tmp_path, **LOOP)
    assert len(after.steps) == 200
    assert max(relative_errors(before, after, gain)) < bound


@pytest.mark.usefixtures("unchecked_shapes")
def test_two_hundred_adamw_steps_of_lora_writers_from_a_zero_b_have_no_component(bank, tmp_path):
    model = lora(llama(), targets=["o_proj", "down_proj"])
    before, after = watched(model, bank, steering(bank, 0.0, every=20), tmp_path, **LOOP)
    assert {site.role for site in before.sites} == {"writer"}
    assert max(relative_errors(before, after, 0.0)) < 1e-5


STARTS = {
    "zero": lambda model: model,
    "gaussian": lambda model: randomised(model),
    "pissa": lambda model: model,
    "olora": lambda model: model,
}


def randomised(model):
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=generator)
    return model


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("gain", [-1.0, 0.0, 0.5, 2.0])
@pytest.mark.parametrize("start", STARTS)
def test_lora_products_have_their_gain_from_any_start(bank, start, gain, tmp_path):
    options = {"init_lora_weights": start} if start in ("pissa", "olora") else {}
    model = STARTS[start](lora(llama(), use_rslora=start == "gaussian", **options))
    recorder = MemoryRecorder()
    before, after = watched(model, bank, steering(bank, gain, recorders=[recorder]), tmp_path, **(LOOP | {"steps": 20}))
    assert {site.role for site in before.sites} == {"writer", "reader"}
    assert max(relative_errors(before, after, gain)) < 1e-3
    curves = recorder.curves()
    assert curves["concept/pirate/achieved"] == pytest.approx([gain] * 20, abs=1e-3)
    disturbed = torch.tensor(curves["interptrain/off_concept"])
    assert torch.isfinite(disturbed).all()
    if gain >= 0:  # reversing a concept costs the rest more than the step itself at times
        assert (disturbed < 1).all()


def test_more_directions_than_rank_report_the_gain_that_was_achieved(tmp_path):
    rows = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(5))
    bank = ConceptBank.from_directions({"pirate": rows}, hook=HOOK)
    recorder = MemoryRecorder()
    before, after = watched(
        lora(llama(), rank=4), bank, steering(bank, 2.0, recorders=[recorder]), tmp_path, **(LOOP | {"steps": 20})
    )
    for logged, old, new in zip(recorder.curves()["concept/pirate/achieved"], before.steps, after.steps, strict=True):
        kept = sum(float((old[name] * new[name]).sum()) for name in old)
        assert logged == pytest.approx(kept / sum(float(each.square().sum()) for each in old.values()), rel=1e-3)
    assert all(torch.isfinite(each).all() for step in after.steps for each in step.values())


def test_a_steered_gradient_leaks_under_adamw_and_the_curve_says_so(bank, tmp_path):
    recorder = MemoryRecorder()
    callback = ConceptSteering(bank, suppress("pirate"), recorders=[recorder], summary=False)
    fit(llama(), tmp_path, callback, **(LOOP | {"steps": 20}))
    achieved = [value for value in recorder.curves()["concept/pirate/achieved"] if value is not None]
    assert min(achieved[5:]) > 0.1  # asked for 0
    exact = MemoryRecorder()
    fit(llama(), tmp_path, steering(bank, 0.0, recorders=[exact]), **(LOOP | {"steps": 20}))
    assert max(abs(value) for value in exact.curves()["concept/pirate/achieved"]) < 1e-5
    assert max(exact.curves()["concept/pirate/write"]) < 1e-9


def test_with_plain_sgd_the_estimate_of_a_steered_gradient_is_its_gain(bank, tmp_path):
    recorder, model = MemoryRecorder(), llama()
    callback = ConceptSteering(bank, suppress("pirate", 0.5), recorders=[recorder], summary=False)
    fit(model, tmp_path, callback, make_optimizer=lambda p: torch.optim.SGD(p, lr=10.0), steps=1)
    assert recorder.curves()["concept/pirate/achieved"] == pytest.approx([0.5], rel=1e-3)


def test_bf16_parameters_say_what_gain_they_achieved(bank, tmp_path):
    recorder = MemoryRecorder()
    before, after = watched(
        llama(), bank, steering(bank, 0.0, recorders=[recorder]), tmp_path, precision="bf16-true",
        make_optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2), steps=3,
    )  # fmt: skip
    for logged, old, new in zip(recorder.curves()["concept/pirate/achieved"], before.steps, after.steps, strict=True):
        kept = sum(float((old[name] * new[name]).sum()) for name in old)
        assert logged == pytest.approx(kept / sum(float(e.square().sum()) for e in old.values()), rel=0.05, abs=1e-3)
    errors = relative_errors(before, after, 0.0)
    assert 0 < max(errors) < 1  # rounding to eight bits brings a part back


def test_parameter_groups_with_rates_of_their_own_and_two_optimizers_are_each_exact(bank, tmp_path):
    class TwoOptimizers(Tuning):
        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(self.model(**batch).loss)
            for optimizer in self.optimizers():
                optimizer.step()

        def configure_optimizers(self):
            parameters = [p for p in self.model.parameters() if p.requires_grad]
            groups = [{"params": parameters[::4], "lr": 1e-3}, {"params": parameters[2::4], "weight_decay": 0.5}]
            return [torch.optim.AdamW(groups, lr=1e-2), torch.optim.SGD(parameters[1::2], lr=0.5, momentum=0.9)]

    model, recorder = llama(), MemoryRecorder()
    sites = list(find_sites(model, bank))
    rows = bank.select("pirate").directions
    module = TwoOptimizers(model, manual=True)
    before, after = RealisedSteps(sites, rows), RealisedSteps(sites, rows)
    run = trainer(tmp_path, before, steering(bank, 0.0, recorders=[recorder]), after, steps=8)
    run.fit(module, loader())
    assert len(after.steps) == 8
    for old, new in zip(before.steps, after.steps, strict=True):  # an optimizer's step moves its own sites only
        moved = {name for name, each in old.items() if each.norm() > 0}
        assert 0 < len(moved) < len(sites)
        assert all(new[name].norm() < 1e-4 * old[name].norm() for name in moved)
    assert recorder.curves()["step"] == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0]


def test_a_pair_whose_factors_belong_to_two_optimizers_is_exact_in_each_turn(bank):
    model = randomised(lora(llama()))
    sites = list(find_sites(model, bank, where="update"))
    optimizers = [
        torch.optim.AdamW([p for n, p in model.named_parameters() if factor in n], lr=1e-3)
        for factor in ("lora_A", "lora_B")
    ]
    rows = bank.select("pirate").directions
    before, after = RealisedSteps(sites, rows), RealisedSteps(sites, rows)
    for optimizer in optimizers:
        before.attach(optimizer)
    steerer = Steerer(bank, sites, suppress("pirate"), where="update").attach(model, *optimizers)
    for optimizer in optimizers:
        after.attach(optimizer)
    batch = next(iter(loader()))
    for _ in range(3):
        model(**batch).loss.backward()
        for optimizer in optimizers:
            steerer.before_step(optimizer)
            optimizer.step()
            optimizer.zero_grad()
    steerer.detach()
    assert len(after.steps) == 6
    assert max(relative_errors(before, after, 0.0)) < 1e-5


def test_manual_optimisation_equals_automatic(bank, tmp_path):
    automatic = fit(llama(), tmp_path, steering(bank, 0.0))
    manual = fit(llama(), tmp_path, steering(bank, 0.0), manual=True)
    assert automatic.losses == manual.losses
    assert manual.losses != fit(llama(), tmp_path, manual=True).losses


def test_several_adapters_and_saved_modules_are_steered_each(bank, tmp_path):
    from peft import LoraConfig, get_peft_model

    def make():
        torch.manual_seed(0)
        model = get_peft_model(
            llama(), LoraConfig(r=4, target_modules=["o_proj", "q_proj"], modules_to_save=["lm_head"])
        )
        model.add_adapter("second", LoraConfig(r=8, lora_alpha=4, target_modules=["o_proj", "down_proj"]))
        model.base_model.set_adapter(["default", "second"])
        return randomised(model)

    before, after = watched(make(), bank, steering(bank, 0.0), tmp_path, **(LOOP | {"steps": 10}))
    names = {site.name for site in before.sites}
    for part in ("lora_B.default", "lora_B.second", "lora_A.default", "modules_to_save"):
        assert any(part in name for name in names), part
    assert max(relative_errors(before, after, 0.0)) < 1e-4


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_did_not_happen(bank, fused, tmp_path):
    class Overflows(Tuning):
        def on_after_backward(self):
            if self.steps_tried == 2:
                next(self.model.parameters()).grad[0, 0] = torch.inf
            self.steps_tried += 1

    def run(where, folder):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=1000)
        module = Overflows(llama(), lambda p: torch.optim.AdamW(p, lr=1e-3, fused=fused))
        module.steps_tried, recorder, seen = 0, MemoryRecorder(), []

        class Norms(pl.Callback):
            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
                seen.append(sum(float(p.detach().norm()) for p in pl_module.parameters()))

        callback = ConceptSteering(bank, suppress("pirate"), where=where, recorders=[recorder], summary=False)
        plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
        trainer(folder, callback, Norms(), steps=5, plugins=[plugin]).fit(module, loader())
        return module, recorder.curves(), seen, callback

    for where in ("gradient", "update"):
        module, curves, norms, callback = run(where, tmp_path)
        assert all(torch.isfinite(parameter).all() for parameter in module.parameters())
        assert norms[2] == norms[1]
        assert len(set(norms)) == 4
        assert curves["step"] == [0.0, 1.0, 2.0, 3.0]  # five batches, four steps
        assert all(value is not None for value in curves["concept/pirate/write"])
        assert callback.state_dict()["steps"] == [4]


def test_cumulative_curves_leave_a_skipped_step_out(bank):
    model = llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    recorder = MemoryRecorder()
    steerer = Steerer(bank, find_sites(model, bank), recorders=[recorder]).attach(model, optimizer)
    batch = next(iter(loader()))
    for happens in (True, False, True):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        steerer.before_step()
        if happens:
            optimizer.step()
    steerer.detach()
    curves = recorder.curves()
    assert curves["step"] == [0.0, 1.0]
    signed = curves["concept/pirate/demand/signed"]
    assert curves["concept/pirate/demand/cumulative"] == pytest.approx([signed[0], sum(signed)], rel=1e-5)


def test_one_sided_looks_at_the_step_that_the_optimizer_made(bank, tmp_path):
    recorder = MemoryRecorder()
    callback = ConceptSteering(bank, one_sided(suppress("pirate")), where="update", recorders=[recorder], summary=False)
    fit(llama(), tmp_path, callback, **(LOOP | {"steps": 30}))
    curves = recorder.curves()
    gains, signed = curves["concept/pirate/gain"], curves["concept/pirate/write/signed"]
    assert set(gains) == {0.0, 1.0}
    for gain, left in zip(gains, signed, strict=True):
        assert left == pytest.approx(0.0, abs=1e-6) if gain == 0 else left <= 0


def test_the_norm_cap_bounds_the_edit_of_an_update(bank, tmp_path):
    recorder = MemoryRecorder()
    fit(llama(), tmp_path, steering(bank, 3.0, norm_cap=0.05, recorders=[recorder]), steps=2)
    assert all(0 < cap < 1 for cap in recorder.curves()["interptrain/norm_cap"])
    assert all(1 < gain < 3 for gain in recorder.curves()["concept/pirate/achieved"])


def test_signed_write_is_the_move_of_the_writers_at_their_mean_input(bank):
    model = llama()
    sites = [site for site in find_sites(model, bank) if "down_proj" in site.name]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    recorder = MemoryRecorder()
    steerer = Steerer(bank, sites, recorders=[recorder]).attach(model, optimizer)
    seen = {}
    for site in sites:
        site.module.register_forward_pre_hook(lambda m, args: seen.__setitem__(m, args[0].detach()))
    batch = next(iter(loader()))
    steerer.watch(batch["labels"])
    counted = torch.zeros_like(batch["labels"], dtype=torch.bool)
    counted[:, :-1] = batch["labels"][:, 1:] != -100
    model(**batch).loss.backward()
    steerer.before_step()
    before = {site: site.parameter.detach().clone() for site in sites}
    optimizer.step()
    mean = torch.nn.functional.normalize(bank.select("pirate").directions.mean(0), dim=0)
    expected = sum(float(mean @ ((s.parameter.detach() - before[s]) @ seen[s.module][counted].mean(0))) for s in sites)
    assert recorder.curves()["concept/pirate/write/signed"] == pytest.approx([expected], rel=1e-4)


def test_copies_cost_what_is_said_and_are_given_back(bank):
    model = lora(llama())
    sites = list(find_sites(model, bank, where="update"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    steerer = Steerer(bank, sites, suppress("pirate"), where="update").attach(model, optimizer)
    model(**next(iter(loader()))).loss.backward()
    steerer.before_step()
    optimizer.step()
    pairs = {id(p): p.nbytes for site in sites for p in (site.parameter, site.partner.weight)}
    held = sum(buffer.nbytes for buffer in steerer._snapshots._buffers.values())
    assert held == sum(pairs.values())
    assert steerer.held_bytes() >= held
    assert steerer.held_bytes() - held == Steerer(bank, sites, where="update", meters=["demand"]).held_bytes()
    steerer.detach()
    assert not steerer._snapshots._buffers
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_an_optimizer_that_stepped_unseen_is_an_error(bank):
    model = llama()
    optimizer = torch.optim.AdamW(model.parameters())
    Steerer(bank, find_sites(model, bank), suppress("pirate")).attach(model, optimizer)
    model(**next(iter(loader()))).loss.backward()
    with pytest.raises(RuntimeError, match="call before_step"):
        optimizer.step()


def test_what_cannot_be_steered_is_refused_by_name(bank):
    model = llama()
    steerer = Steerer(bank, find_sites(model, bank), suppress("pirate"), where="update")
    with pytest.raises(TypeError, match="LBFGS evaluates the loss several times"):
        steerer.attach(model, torch.optim.LBFGS(model.parameters()))
    with pytest.raises(ValueError, match='where="update" edits what an optimizer did'):
        steerer.attach(model)
    with pytest.raises(ValueError, match="meters must be among demand, gradient, write"):
        Steerer(bank, find_sites(model, bank), meters=["demands"])


def test_an_epoch_of_these_runs_is_sixty_four_sentences():
    assert len(Sentences()) == 64
