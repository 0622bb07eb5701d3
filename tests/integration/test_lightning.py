"""The callback inside real Lightning trainers, on real Hugging Face and PEFT models."""

import json
import re

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins import MixedPrecision

from interptrain import ConceptBank, amplify, find_sites, keep_only, observe, one_sided, suppress
from interptrain.callbacks.lightning import ConceptSteering
from interptrain.projection import as_columns
from interptrain.recorders import MemoryRecorder
from tests.helpers.models import HOOK, WIDTH, Sentences, Tuning, fit, gpt2, llama, loader, lora, trainer, weights


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


@pytest.fixture
def bank():
    """Two concepts of overlapping directions, and one to watch."""
    generator = torch.Generator().manual_seed(1)
    pirate = torch.randn(3, WIDTH, generator=generator)
    return ConceptBank.from_directions(
        {
            "pirate": pirate,
            "sums": pirate[:2] + torch.randn(2, WIDTH, generator=generator),
            "royal": torch.randn(WIDTH, generator=generator),
        },
        hook=HOOK,
    )


def quiet(bank, rule=None, **options):
    return ConceptSteering(bank, rule, summary=False, **options)


@pytest.mark.parametrize("make", [llama, lambda: lora(llama())], ids=["full", "lora"])
def test_observing_changes_no_loss_and_no_weight_by_one_bit(bank, make, tmp_path):
    loop = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5, "steps": 4}
    plain = fit(make(), tmp_path, **loop)
    observed = fit(make(), tmp_path, quiet(bank, observe()), **loop)
    assert plain.losses == observed.losses
    after = weights(observed)
    assert all(torch.equal(value, after[name]) for name, value in weights(plain).items())
    steered = fit(make(), tmp_path, quiet(bank, suppress("pirate")), **loop)
    assert steered.losses != plain.losses


MODELS = {"llama": llama, "gpt2": gpt2, "llama-lora": lambda: lora(llama()), "gpt2-lora": lambda: lora(gpt2())}


def one_step(name, folder, *callbacks, double):
    """Weights before and after one SGD step: no momentum, no decay, no clipping.

    In float32 the learning rate is so large that the step, not the weight it is added to, sets the rounding.
    """
    model = MODELS[name]().double() if double else MODELS[name]()
    before = weights(model)
    fit(
        model, folder, *callbacks, steps=1, precision="64-true" if double else "32-true",
        make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1 if double else 1e6),
    )  # fmt: skip
    return before, weights(model)


@pytest.mark.parametrize("double", [True, False], ids=["float64", "float32"])
@pytest.mark.parametrize("gain", [0.0, 2.0])
@pytest.mark.parametrize("name", MODELS)
def test_the_realised_first_step_has_the_requested_gains_to_five_digits(bank, gain, name, double, tmp_path):
    rule = [suppress("pirate") if gain == 0 else amplify("pirate", gain), amplify("sums", 3.0)]
    sites = list(find_sites(MODELS[name](), bank))
    assert {site.role for site in sites} == ({"writer"} if "lora" in name else {"writer", "reader"})
    before, plain = one_step(name, tmp_path, double=double)
    _, steered = one_step(name, tmp_path, quiet(bank, rule), double=double)
    gains = torch.tensor([gain] * 3 + [3.0] * 2).double()[:, None]
    for site in sites:
        rows = in_front_of(site, name, bank.select("pirate", "sums").directions, before).double()
        step, unsteered = (
            rows @ as_columns((after[site.name] - before[site.name]).double(), site.axis) for after in (steered, plain)
        )
        assert unsteered.norm() > 0, site.name
        assert float((step - gains * unsteered).norm() / unsteered.norm()) < 1e-5, site.name


NORM_IN_FRONT = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "input_layernorm"),
    **dict.fromkeys(("gate_proj", "up_proj"), "post_attention_layernorm"),
    "c_attn": "ln_1",
    "c_fc": "ln_2",
}


def in_front_of(site, name, directions, before):
    """The site's own directions, by the formula: `w * d` behind an RMSNorm, `w * (d - mean d)` behind a LayerNorm."""
    if site.role == "writer":
        return directions
    *_, module, _ = site.name.split(".")
    final = {"llama": "model.norm", "gpt2": "transformer.ln_f"}[name]
    block = ".".join(site.name.split(".")[:3])
    gain = before[f"{final if module == 'lm_head' else f'{block}.{NORM_IN_FRONT[module]}'}.weight"].float()
    rows = gain * (directions - directions.mean(-1, keepdim=True) if name == "gpt2" else directions)
    return rows / rows.norm(dim=-1, keepdim=True)


def test_steering_lora_writers_steers_the_product_of_the_first_step(bank, tmp_path):
    def delta(model):
        layer = model.base_model.model.model.layers[0].mlp.down_proj
        return layer.get_delta_weight("default").double()

    plain = fit(lora(llama()).double(), tmp_path, make_optimizer=sgd, steps=1, precision="64-true")
    steered = fit(
        lora(llama()).double(), tmp_path, quiet(bank, amplify("pirate", 2.0)), make_optimizer=sgd, steps=1,
        precision="64-true",
    )  # fmt: skip
    rows = bank.select("pirate").directions.double()
    wanted, found = 2 * rows @ delta(plain.model), rows @ delta(steered.model)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


def test_a_lora_writer_that_starts_inside_the_concept_is_announced(bank, tmp_path):
    model = lora(llama())
    fit(model, tmp_path, steps=2)
    with pytest.warns(UserWarning, match=r"LoRA writers start with B already inside .*layers\.0\.self_attn\.o_proj"):
        fit(model, tmp_path, quiet(bank, suppress("pirate")), steps=1)


def test_lora_readers_are_refused_by_name_in_gradient_mode(bank, tmp_path):
    model = lora(llama())
    readers = find_sites(model, bank, where="update")
    with pytest.raises(
        ValueError, match=r"LoRA readers cannot be steered through the gradient.*layers\.2\.self_attn\.q"
    ):
        fit(model, tmp_path, quiet(bank, suppress("pirate"), sites=readers))


def test_curves_reach_the_trainers_own_logger(bank, tmp_path):
    logger = CSVLogger(tmp_path, name="", version="run")
    fit(llama(), tmp_path, quiet(bank, suppress("pirate")), logger=logger, steps=6, log_every_n_steps=2)
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    header = lines[0].split(",")
    for name in bank.names:
        for key in ("demand", "demand/null", "demand/z", "demand/signed", "demand/cumulative", "gradient", "gain"):
            assert f"concept/{name}/{key}" in header
    assert len(lines) == 1 + 3  # six steps, a log step every two
    gains = [line.split(",")[header.index("concept/pirate/gain")] for line in lines[1:]]
    assert [float(gain) for gain in gains] == [0.0, 0.0, 0.0]


def test_curves_can_be_monitored_by_other_callbacks(bank, tmp_path):
    stop = pl.callbacks.EarlyStopping(
        "concept/pirate/demand", mode="min", stopping_threshold=2.0, check_on_train_epoch_end=True
    )
    module = Tuning(llama())
    run = trainer(tmp_path, quiet(bank), stop, logger=CSVLogger(tmp_path), steps=-1, max_epochs=5)
    run.fit(module, loader())
    assert "concept/pirate/demand" in run.callback_metrics
    assert run.current_epoch == 1  # every share is below 2


def test_logged_values_are_means_over_the_steps_between(bank, tmp_path):
    recorder = MemoryRecorder()
    logger = CSVLogger(tmp_path, name="", version="run")
    fit(llama(), tmp_path, quiet(bank, recorders=[recorder]), logger=logger, steps=4, log_every_n_steps=2)
    each = recorder.curves()["concept/pirate/demand"]
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("concept/pirate/demand")
    logged = [float(line.split(",")[column]) for line in lines[1:]]
    assert logged == pytest.approx([(each[0] + each[1]) / 2, (each[2] + each[3]) / 2], rel=1e-5)


def test_accumulation_with_a_log_step_every_step_loses_nothing(bank, tmp_path):
    logger = CSVLogger(tmp_path, name="", version="run")
    fit(llama(), tmp_path, quiet(bank), logger=logger, steps=4, accumulate_grad_batches=2)
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 1 + 4


def test_manual_optimisation_is_steered_like_automatic(bank, tmp_path):
    automatic = fit(llama(), tmp_path, quiet(bank, suppress("pirate")))
    manual = fit(llama(), tmp_path, quiet(bank, suppress("pirate")), manual=True)
    assert automatic.losses == manual.losses
    assert manual.losses != fit(llama(), tmp_path, manual=True).losses


def test_each_site_is_steered_once_and_with_the_optimizer_that_owns_it(bank, tmp_path):
    class TwoOptimizers(Tuning):
        def training_step(self, batch, batch_idx):
            optimizers = self.optimizers()
            for optimizer in optimizers:
                optimizer.zero_grad()
            self.manual_backward(self.model(**batch).loss)
            for optimizer in optimizers:
                optimizer.step()

        def configure_optimizers(self):
            parameters = [p for p in self.model.parameters() if p.requires_grad]
            return [sgd(parameters[::2]), sgd(parameters[1::2])]

    def without_norms():  # the first optimizer would move the norm in front of the second one's readers
        model = llama()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("norm" not in name)
        return model

    module = TwoOptimizers(without_norms(), manual=True)
    trainer(tmp_path, quiet(bank, amplify("pirate", 2.0)), steps=2).fit(module, loader())
    one = fit(without_norms(), tmp_path, quiet(bank, amplify("pirate", 2.0)), make_optimizer=sgd, steps=1)
    after = weights(module.model)
    for name, value in weights(one.model).items():
        torch.testing.assert_close(value, after[name], rtol=0, atol=1e-7)


def test_bf16_autocast_runs_and_steers(bank, tmp_path):
    steered = fit(llama(), tmp_path, quiet(bank, suppress("pirate")), precision="bf16-mixed")
    plain = fit(llama(), tmp_path, quiet(bank), precision="bf16-mixed")
    assert all(torch.isfinite(torch.tensor(steered.losses)))
    assert steered.losses != plain.losses


def test_signed_demand_has_no_trace_of_loss_scaling(bank, tmp_path):
    def signed(**options):
        recorder = MemoryRecorder()
        fit(llama(), tmp_path, quiet(bank, recorders=[recorder]), steps=1, **options)
        return recorder.curves()["concept/pirate/demand/signed"][0]

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    scaled = signed(plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])
    assert scaled == pytest.approx(signed(), rel=0.05)


def test_an_infinite_gradient_is_reported_and_never_spread(bank, tmp_path):
    class Poisoned(Tuning):
        def on_after_backward(self):
            if self.global_step == 1:
                self.model.model.layers[0].mlp.down_proj.weight.grad[0, 0] = torch.inf

    recorder, module = MemoryRecorder(), Poisoned(llama(), sgd)
    callback = quiet(bank, suppress("pirate"), recorders=[recorder])
    with pytest.warns(UserWarning, match="1 site gradients held NaN or infinity before step 2"):
        trainer(tmp_path, callback, steps=2).fit(module, loader())
    found = module.model.model.layers[0].mlp.down_proj.weight.detach()
    assert int((~torch.isfinite(found)).sum()) == 1
    assert recorder.curves()["interptrain/nonfinite_sites"] == [None, 1.0]
    assert all(torch.isfinite(p).all() for n, p in module.named_parameters() if "layers.0.mlp.down_proj" not in n)


def test_a_recorder_that_raises_does_not_end_the_run(bank, tmp_path):
    class Broken:
        calls = 0

        def record(self, report):
            Broken.calls += 1
            raise OSError("disk full")

    with pytest.warns(UserWarning, match="Broken raised OSError: disk full"):
        module = fit(llama(), tmp_path, quiet(bank, recorders=[Broken()]), steps=3)
    assert len(module.losses) == 3
    assert Broken.calls == 1


def test_a_resumed_run_continues_its_curves(bank, tmp_path):
    def cumulative(*callbacks, steps, ckpt=None, **options):
        recorder = MemoryRecorder()
        callback = quiet(bank, recorders=[recorder])
        module = Tuning(llama())
        run = trainer(tmp_path, callback, *callbacks, steps=steps, **options)
        run.fit(module, loader(), ckpt_path=ckpt)
        return run, recorder.curves()

    _, whole = cumulative(steps=4)
    first, _ = cumulative(steps=2)
    first.save_checkpoint(tmp_path / "half.ckpt")
    _, rest = cumulative(steps=4, ckpt=tmp_path / "half.ckpt")
    assert rest["step"] == [2.0, 3.0]
    assert len(rest["concept/pirate/demand/cumulative"]) == 2
    start = whole["concept/pirate/demand/cumulative"][1]
    gained = rest["concept/pirate/demand/cumulative"][0] - rest["concept/pirate/demand/signed"][0]
    assert gained == pytest.approx(start, rel=1e-5)


def test_nothing_is_left_on_the_model_after_fit_or_after_an_exception(bank, tmp_path):
    def hooks(model):
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    model = llama()
    fit(model, tmp_path, quiet(bank, one_sided(suppress("pirate"))))
    assert hooks(model) == 0

    class Stops(Tuning):
        def training_step(self, batch, batch_idx):
            assert hooks(self.model) > 0
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        trainer(tmp_path, quiet(bank, one_sided(suppress("pirate")))).fit(Stops(model), loader())
    assert hooks(model) == 0


def test_the_rule_can_be_changed_in_mid_run(bank, tmp_path):
    recorder = MemoryRecorder()
    callback = quiet(bank, recorders=[recorder])

    class Change(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 2:
                callback.rule = one_sided(suppress("pirate", 0.25))

    fit(llama(), tmp_path, callback, Change(), steps=4)
    gains = recorder.curves()["concept/pirate/gain"]
    assert gains[:2] == [1.0, 1.0]
    assert set(gains[2:]) <= {0.25, 1.0}


def test_keep_only_protects_what_overlaps(bank, tmp_path):
    model = llama()
    before = weights(model)
    plain = weights(fit(llama(), tmp_path, make_optimizer=sgd, steps=1).model)
    kept = weights(fit(model, tmp_path, quiet(bank, keep_only("sums")), make_optimizer=sgd, steps=1).model)
    name = "model.layers.0.mlp.down_proj.weight"
    rows = bank.select("sums").directions
    torch.testing.assert_close(
        rows @ (kept[name] - before[name]), rows @ (plain[name] - before[name]), rtol=1e-2, atol=1e-6
    )
    gone = bank.select("pirate", "royal").directions @ (kept[name] - before[name])
    assert gone.abs().max() < 1e-6


def test_batches_without_labels_count_every_token_and_wrong_ones_are_an_error(bank, tmp_path):
    recorder = MemoryRecorder()
    fit(llama(), tmp_path, quiet(bank, labels=lambda batch: None, recorders=[recorder]), steps=1)
    assert recorder.curves()["concept/pirate/demand"][0] is not None
    with pytest.raises(ValueError, match=r"labels have shape \[8, 5\] but the model saw tokens \[8, 12\]"):
        fit(llama(), tmp_path, quiet(bank, labels=lambda batch: batch["labels"][:, :5]), steps=1)


def test_lbfgs_is_refused_by_name_before_training(bank, tmp_path):
    with pytest.raises(TypeError, match="LBFGS"):
        fit(llama(), tmp_path, quiet(bank), make_optimizer=torch.optim.LBFGS)


def test_an_unknown_concept_is_refused_before_training(bank, tmp_path):
    with pytest.raises(ValueError, match="the rule names parrot; the bank has pirate, sums, royal"):
        fit(llama(), tmp_path, quiet(bank, suppress("parrot")))
    with pytest.raises(ValueError, match="the rule names parrot"):
        fit(llama(), tmp_path, quiet(bank, lambda coefficients, step: {"parrot": 0.0}))


def test_a_dry_run_lists_sites_memory_and_what_is_left_out(bank, capsys):
    plan = ConceptSteering(bank).dry_run(lora(llama()))
    shown = capsys.readouterr().out
    assert len(plan.sites) == 4  # o_proj and down_proj of the two layers up to the hook
    assert "MiB of directions" in shown
    assert plan.extra_bytes > 0
    reasons = {left.reason for left in plan.left_out}
    assert any("reader" in reason for reason in reasons)
    assert len(plan.left_out) + len(plan.sites) == sum(p.requires_grad for p in lora(llama()).parameters())


def test_the_summary_shows_every_concept_beside_its_null(bank, tmp_path, capsys):
    fit(llama(), tmp_path, ConceptSteering(bank), logger=CSVLogger(tmp_path))
    shown = capsys.readouterr().out
    assert all(name in shown for name in bank.names)
    assert "no claim on behaviour" in shown
    said = " ".join(shown.split())
    assert re.search(r"interptrain: \d+ sites .*, \d+\.\d MiB beside the model, projected by torch, as cpu is", said)


def test_progress_bar_metrics_come_on_request(bank, tmp_path):
    callback = quiet(bank, progress_bar=True)
    module = Tuning(llama())
    run = trainer(tmp_path, callback, logger=CSVLogger(tmp_path))
    run.fit(module, loader())
    assert set(bank.names) <= set(run.progress_bar_metrics)


def test_reports_can_be_written_as_json_lines(bank, tmp_path):
    from interptrain.recorders import JSONLRecorder

    path = tmp_path / "curves.jsonl"
    fit(llama(), tmp_path, quiet(bank, recorders=[JSONLRecorder(path)], every=2), steps=4)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2]


def test_the_data_of_the_tests_have_prompts_and_padding():
    labels = Sentences().labels
    assert (labels[:, :3] == -100).all()
    assert (labels[0, -2:] == -100).all()
    assert (labels[1, 3:] != -100).all()
