"""Routing: what asks for the concept is learned by the quarantine alone, the rest by the model alone."""

import copy
import math
from multiprocessing import get_context

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from interptrain import Steerer, find_sites
from interptrain.callbacks.lightning import ConceptSteering
from interptrain.interventions.gate import emphasise, gate
from interptrain.interventions.hold import hold
from interptrain.interventions.route import route
from interptrain.recorders import MemoryRecorder
from tests.helpers.interventions import assert_identical, attached, directions_of, hooks_of, make_bank, sgd, trainable
from tests.helpers.models import WIDTH, Sentences, Tuning, fit, gpt2, llama, loader, lora, trainer, weights
from tests.unit.sites.families import model_of


def adapted(model):
    """With an adapter that has learned something: where `B` is 0, `A` has no gradient to compare."""
    return lora(model, init_lora_weights=False)


MODELS = {"llama": llama, "gpt2": gpt2, "llama-lora": lambda: adapted(llama()), "gpt2-lora": lambda: adapted(gpt2())}


@pytest.fixture
def bank():
    return make_bank(rank=6, seed=1)


def batch(number=0, count=4):
    return Sentences()[slice(number * count, (number + 1) * count)]


def quiet(bank, rule, **options):
    return ConceptSteering(bank, rule, summary=False, **options)


class Run:
    """A plain loop around a steerer."""

    def __init__(self, bank, model, *rules, optimizer=None, **options):
        self.model, self.recorder = model.train(), MemoryRecorder()
        self.optimizer = sgd(model, lr=0.1) if optimizer is None else optimizer
        self.steerer = attached(model, bank, *rules, optimizer=self.optimizer, recorders=[self.recorder], **options)

    def backward(self, given, scale=1.0):
        self.steerer.watch(given["labels"])
        loss = self.model(**given).loss
        (scale * loss).backward()
        return loss.item()

    def finish(self, scale=1.0):
        self.steerer.before_step(loss_scale=scale)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def step(self, *given):
        losses = [self.backward(each) for each in given]
        self.finish()
        return losses

    def kept(self, concept="pirate"):
        state = self.steerer.state_dict()["interventions"]
        return {what: state[f"route/{concept}/{what}"] for what in ("weights", "mean", "square", "steps", "skipped")}


def writers(model):
    """What each block calls to write to the stream, with the width it reads."""
    found = [
        module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in ("o_proj", "down_proj", "c_proj") and "base_layer" not in name
    ]
    return [(module, getattr(module, "in_features", None) or module.nx) for module in found]


def pairs_of(flat, model, rank):
    """The quarantine's matrices by the layout `A_0, B_0, A_1, ...`."""
    shapes = [shape for _, width in writers(model) for shape in ((rank, width), (WIDTH, rank))]
    pieces = flat.split([math.prod(shape) for shape in shapes])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def reference(bank, model, given, pairs, scaling, threshold):
    """Both gradients by hand: the quarantine written into the model's own forward pass, a loss for each token."""
    model = copy.deepcopy(model)
    pairs = [pair.detach().clone().requires_grad_() for pair in pairs]
    handles, caught = [], []
    for number, (module, _) in enumerate(writers(model)):
        A, B = pairs[2 * number], pairs[2 * number + 1]
        handles.append(
            module.register_forward_hook(
                lambda _m, args, output, A=A, B=B: output + scaling * linear(linear(args[0], A), B)
            )
        )
    block = next(m for n, m in model.named_modules() if n.endswith(("layers.1", "h.1")))
    handles.append(
        block.register_forward_hook(lambda _m, _a, out: caught.append(out if torch.is_tensor(out) else out[0]))
    )
    logits = model(input_ids=given["input_ids"]).logits
    labels = given["labels"][:, 1:]
    losses = cross_entropy(logits[:, :-1].transpose(1, 2), labels, ignore_index=-100, reduction="none")
    losses = losses / (labels != -100).sum()
    (wanted,) = torch.autograd.grad(losses.sum(), caught[0], retain_graph=True)
    basis = torch.linalg.qr(directions_of(bank).T.double())[0]
    share = (wanted.double() @ basis).square().sum(-1) / wanted.double().square().sum(-1)
    share = torch.where(labels != -100, share[:, :-1], 0.0)
    if threshold is None:  # halfway, in the widest gap between shares of the middle half
        ordered = share[labels != -100].sort().values
        middle = ordered[len(ordered) // 4 : -len(ordered) // 4]
        at = int((middle[1:] - middle[:-1]).argmax())
        threshold = float(middle[at] + middle[at + 1]) / 2
    routed = (share > threshold).to(losses.dtype)
    own = trainable(model)
    to_model = torch.autograd.grad((losses * (1 - routed)).sum(), own, retain_graph=True)
    to_quarantine = torch.autograd.grad((losses * routed).sum(), pairs)
    return to_model, to_quarantine, threshold, float(routed.sum() / (labels != -100).sum())


@pytest.mark.parametrize("name", MODELS)
def test_each_gradient_is_that_of_the_losses_weighted_by_hand(bank, name):
    first, second = batch(0), batch(1)
    warm = Run(bank, MODELS[name]().double(), route("pirate", rank=3, alpha=6.0, learning_rate=0.05, threshold=0.0))
    warm.step(first)  # so that B is not 0 and A has a gradient
    state, start = warm.steerer.state_dict(), warm.kept()
    warm.steerer.detach()
    pairs = pairs_of(start["weights"], warm.model, 3)
    assert all(pair.abs().max() > 0 for pair in pairs)
    *_, threshold, _ = reference(bank, warm.model, second, pairs, 2.0, None)
    to_model, to_quarantine, _, share = reference(bank, warm.model, second, pairs, 2.0, threshold)
    assert 0.2 < share < 0.8

    run = Run(bank, warm.model, route("pirate", rank=3, alpha=6.0, learning_rate=0.05, threshold=threshold))
    run.steerer.load_state_dict(state)
    run.backward(second)
    for parameter, wanted in zip(trainable(run.model), to_model, strict=True):
        assert float((parameter.grad - wanted).norm() / wanted.norm()) < 1e-6
    run.finish()
    found = (run.kept()["mean"] - 0.9 * start["mean"]) / 0.1
    for got, wanted in zip(pairs_of(found, run.model, 3), to_quarantine, strict=True):
        assert float((got - wanted).norm() / wanted.norm()) < 1e-6
    assert run.recorder.curves()["interptrain/route/pirate/tokens"][-1] == pytest.approx(share)


@pytest.mark.parametrize("make", [llama, lambda: lora(llama())], ids=["full", "lora"])
def test_with_nothing_routed_the_run_is_that_without_it_to_the_last_bit(bank, make, tmp_path):
    loop = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5, "steps": 2}
    plain = fit(make(), tmp_path, **loop)
    idle = fit(make(), tmp_path, quiet(bank, route("pirate", threshold=1.0)), **loop)
    assert plain.losses == idle.losses
    assert_identical(plain, idle)


def test_it_draws_nothing_from_the_global_random_numbers(bank):
    model = llama()
    before = torch.get_rng_state()
    Run(bank, model, route("pirate", threshold=0.0)).step(batch())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", MODELS)
def test_with_every_token_routed_the_model_stands_still_and_the_quarantine_learns(bank, name):
    run = Run(bank, MODELS[name](), route("pirate", threshold=0.0, learning_rate=0.02))
    before = weights(run.model)
    losses = [run.step(batch())[0] for _ in range(12)]
    assert all(torch.equal(value, before[name]) for name, value in weights(run.model).items())
    curves = run.recorder.curves()
    assert curves["interptrain/route/pirate/tokens"] == [1.0] * 12
    sizes = curves["interptrain/route/pirate/quarantine"]
    assert 0 < sizes[0] < sizes[-1]
    assert losses[-1] < losses[0] - 0.15  # the same texts and the same model: it is the quarantine that learns them


def test_the_logged_size_is_the_sum_of_the_pairs_norms(bank):
    run = Run(bank, llama(), route("pirate", rank=3, alpha=6.0, threshold=0.0, learning_rate=0.05))
    run.step(batch(0))
    pairs = pairs_of(run.kept()["weights"], run.model, 3)
    wanted = sum(2.0 * float((B @ A).norm()) for A, B in zip(pairs[::2], pairs[1::2], strict=True))
    assert run.recorder.curves()["interptrain/route/pirate/quarantine"] == pytest.approx([wanted], rel=1e-5)


def test_the_quarantine_steps_as_adamw_without_decay_does(bank):
    run = Run(bank, llama(), route("pirate", threshold=0.0, learning_rate=0.01))
    theta = torch.nn.Parameter(run.kept()["weights"].clone())
    optimizer, mean = torch.optim.AdamW([theta], lr=0.01, weight_decay=0.0), torch.zeros_like(theta)
    for number in range(5):
        run.step(batch(number))
        now = run.kept()["mean"]
        theta.grad, mean = (now - 0.9 * mean) / 0.1, now
        optimizer.step()
    torch.testing.assert_close(run.kept()["weights"], theta.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_at_evaluation_the_model_is_what_it_is_without_hooks_to_the_last_bit(bank, name):
    run = Run(bank, MODELS[name](), route("pirate", learning_rate=0.05, threshold=0.3))
    for number in range(3):
        run.step(batch(number))
    with torch.no_grad():
        training = run.model(input_ids=batch()["input_ids"]).logits
        run.model.eval()
        attached = run.model(input_ids=batch()["input_ids"]).logits
        run.steerer.detach()
        detached = run.model(input_ids=batch()["input_ids"]).logits
        run.model.train()
        after = run.model(input_ids=batch()["input_ids"]).logits
    assert torch.equal(attached, detached)
    assert torch.equal(after, detached)  # no dropout
    assert (training - attached).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["llama", "llama-lora"])
def test_what_is_saved_in_mid_training_has_no_trace_of_the_quarantine(bank, name, tmp_path):
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    run = Run(bank, MODELS[name](), route("pirate", learning_rate=0.05, threshold=0.3))
    plain = set(MODELS[name]().state_dict())
    for number in range(3):
        run.step(batch(number))
    saved = run.model.state_dict()
    assert set(saved) == plain
    assert all(torch.equal(value, saved[name]) for name, value in run.model.named_parameters())
    run.model.save_pretrained(tmp_path)
    again = (
        PeftModel.from_pretrained(llama(), tmp_path) if "lora" in name else LlamaForCausalLM.from_pretrained(tmp_path)
    )
    assert len(list(again.modules())) == len(list(MODELS[name]().modules()))
    run.model.eval()
    given = batch()["input_ids"]
    torch.testing.assert_close(again.eval()(input_ids=given).logits, run.model(input_ids=given).logits, rtol=0, atol=0)


def test_nothing_is_left_after_the_run_or_after_an_exception_in_it(bank, tmp_path):
    model = llama()
    names = [name for name, _ in model.named_modules()]
    fit(model, tmp_path, quiet(bank, route("pirate")), steps=1)
    assert hooks_of(model) == 0

    class Stops(Tuning):
        def training_step(self, batch, batch_idx):
            assert hooks_of(self.model) > 0
            if self.global_step == 1:
                raise RuntimeError("stop")
            return super().training_step(batch, batch_idx)

    with pytest.raises(RuntimeError, match="stop"):
        trainer(tmp_path, quiet(bank, route("pirate"))).fit(Stops(model), loader())
    assert hooks_of(model) == 0
    assert [name for name, _ in model.named_modules()] == names


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_run_from_a_saved_state_goes_on_as_the_whole_run_does(bank, when):
    def start(model):
        rule = route("pirate", learning_rate=0.02)  # its threshold is kept, too
        return Run(bank, model, rule, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2))

    whole = start(llama())
    losses = [whole.step(batch(number)) for number in range(3)]
    saved = copy.deepcopy(whole.model.state_dict()), copy.deepcopy(whole.optimizer.state_dict())
    state = whole.steerer.state_dict()  # as it is: later steps must not change it
    losses += [whole.step(batch(number)) for number in range(3, 6)]

    model = llama()
    model.load_state_dict(saved[0])
    rest = start(model)
    rest.optimizer.load_state_dict(saved[1])
    if when == "before":
        rest.steerer.detach()
    rest.steerer.load_state_dict(state)
    if when == "before":
        rest.steerer.attach(rest.model, rest.optimizer)
    assert [rest.step(batch(number)) for number in range(3, 6)] == losses[3:]
    assert all(torch.equal(value, rest.kept()[what]) for what, value in whole.kept().items())
    assert_identical(whole.model, rest.model)


def test_a_lightning_checkpoint_holds_the_quarantine_beside_the_models_state(bank, tmp_path):
    def run(steps, ckpt=None):
        callback = quiet(bank, route("pirate", learning_rate=0.02, threshold=0.3))
        module, fitting = Tuning(llama()), trainer(tmp_path, callback, steps=steps)
        fitting.fit(module, loader(count=8), ckpt_path=ckpt)  # of one batch: a loader begins anew when resumed
        return fitting, module.losses, callback.state_dict()["interventions"]

    _, whole, kept = run(4)
    first, losses, _ = run(2)
    first.save_checkpoint(tmp_path / "half.ckpt")
    _, rest, resumed = run(4, tmp_path / "half.ckpt")
    assert losses + rest == whole
    assert kept["route/pirate/steps"] == 4
    assert all(torch.equal(value, resumed[name]) for name, value in kept.items())
    assert set(torch.load(tmp_path / "half.ckpt", weights_only=False)["state_dict"]) == set(
        Tuning(llama()).state_dict()
    )


def test_a_state_of_another_rank_is_refused(bank):
    state = Run(bank, llama(), route("pirate", rank=2, threshold=0.5)).steerer.state_dict()
    run = Run(bank, llama(), route("pirate", rank=3, threshold=0.5))
    run.steerer.load_state_dict(state)
    with pytest.raises(ValueError, match=r"saved route/pirate has \d+ weights, this model's 6 pairs have \d+"):
        run.step(batch())


def test_micro_batches_add_up(bank):
    """Two backward passes of half the loss are one of both batches, where all have as many counted tokens."""
    rules = route("pirate", threshold=0.3)
    together = Run(bank, llama().double(), rules)
    rows = Sentences()[3:9]
    rows["labels"] = torch.where(torch.arange(12) < 3, -100, rows["input_ids"])
    together.step(rows)
    apart = Run(bank, llama().double(), rules)
    for half in (slice(0, 3), slice(3, 6)):
        apart.backward({name: each[half] for name, each in rows.items()}, scale=0.5)
    apart.finish()
    torch.testing.assert_close(apart.kept()["mean"], together.kept()["mean"], rtol=1e-6, atol=1e-12)
    assert apart.kept()["mean"].abs().max() > 0
    after = weights(together.model)
    for name, value in weights(apart.model).items():
        torch.testing.assert_close(value, after[name], rtol=1e-6, atol=1e-12)


def test_loss_scaling_leaves_no_trace_and_a_skipped_step_no_gradient(bank):
    plain = Run(bank, llama(), route("pirate", threshold=0.3))
    plain.step(batch(1))

    run, scaler = Run(bank, llama(), route("pirate", threshold=0.3)), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    start = run.kept()
    for number in (0, 1):
        run.steerer.watch(batch(number)["labels"])
        scaler.scale(run.model(**batch(number)).loss).backward()
        if number == 0:
            next(run.model.parameters()).grad[0, 0] = torch.inf
        scaler.unscale_(run.optimizer)
        run.steerer.before_step(loss_scale=scaler.get_scale())
        scaler.step(run.optimizer)
        scaler.update()
        run.optimizer.zero_grad()
        if number == 0:
            assert all(torch.equal(value, run.kept()[what]) for what, value in start.items())
    assert scaler.get_scale() == 2.0**9
    for what, value in plain.kept().items():
        torch.testing.assert_close(run.kept()[what], value, rtol=1e-6, atol=0)


def test_a_step_whose_gradient_is_not_finite_is_left_out_and_counted(bank):
    run = Run(bank, llama(), route("pirate", threshold=0.0))
    run.step(batch(0))
    before = run.kept()
    run.backward(batch(1), scale=torch.inf)
    run.optimizer.zero_grad(set_to_none=False)  # the model's own are its loop's affair
    run.finish()
    after = run.kept()
    assert all(torch.equal(before[what], after[what]) for what in ("weights", "mean", "square", "steps"))
    run.step(batch(2))
    assert run.recorder.curves()["interptrain/route/pirate/skipped"] == [0.0, 1.0, 1.0]
    assert run.kept()["weights"].isfinite().all()
    assert run.kept()["steps"] == 2


def test_the_first_weigher_has_the_first_word(bank):
    """What a gate drops is not routed; what is emphasised is routed with its weight."""
    plain, gated, raised = (
        Run(bank, llama(), *rules)
        for rules in (
            [route("pirate", threshold=0.0)],
            [gate("pirate", threshold=0.0), route("pirate", threshold=0.0)],
            [emphasise("pirate", 4.0, threshold=0.0), route("pirate", threshold=0.0)],
        )
    )
    for run in (plain, gated, raised):
        run.step(batch())
    assert plain.kept()["mean"].abs().max() > 0
    assert not gated.kept()["mean"].any()
    torch.testing.assert_close(raised.kept()["mean"], 4 * plain.kept()["mean"], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("choice", [{"threshold": 0.3}, {"tokens": 0.25}, {"tokens": 0.5, "per": "example"}])
def test_what_is_routed_is_what_a_gate_would_drop(bank, choice):
    """At first the quarantine adds nothing, so that the model's first step is the gate's."""
    routed, gated = Run(bank, llama(), route("pirate", **choice)), Run(bank, llama(), gate("pirate", **choice))
    routed.step(batch())
    gated.step(batch())
    found, wanted = routed.recorder.curves(), gated.recorder.curves()
    assert 0 < found["interptrain/route/pirate/tokens"][0] < 1
    for what in ("tokens", "threshold"):
        assert found[f"interptrain/route/pirate/{what}"] == wanted[f"interptrain/gate/pirate/{what}"]
    assert_identical(routed.model, gated.model)
    assert routed.kept()["mean"].any()


def test_what_other_interventions_ask_is_asked_of_the_model_without_the_quarantine(bank):
    """The model stands still, as every token is routed: a hold, which looks at it after each step, finds no change."""
    given = batch(5)
    texts = [{**given, "attention_mask": torch.ones_like(given["input_ids"])}]
    run = Run(bank, llama(), route("pirate", threshold=0.0, learning_rate=0.05), hold("pirate", texts))
    before = weights(run.model)
    losses = [run.step(given)[0] for _ in range(3)]
    assert losses[0] - losses[-1] > 0.05  # in training the quarantine has a say on these very texts
    assert run.recorder.curves()["interptrain/hold/pirate/excess"] == [0.0] * 3
    assert all(torch.equal(value, before[name]) for name, value in weights(run.model).items())


def test_the_alarm_is_told_that_the_concept_is_kept_from_being_learned(bank):
    assert Run(bank, llama(), route("pirate")).steerer._context.suppressed == {"pirate"}


def test_two_concepts_have_a_quarantine_each(bank):
    run = Run(bank, llama(), route("pirate", threshold=0.2), route("sums", threshold=0.05))
    run.step(batch())
    assert not torch.equal(run.kept("pirate")["weights"], run.kept("sums")["weights"])
    assert run.kept("pirate")["mean"].any()
    assert run.kept("sums")["mean"].any()
    with pytest.raises(ValueError, match="'route/pirate' is there already"):
        Run(bank, llama(), route("pirate"), route("pirate", threshold=0.5))


def test_checkpointed_blocks_are_taught_the_same(bank):
    plain = Run(bank, llama(), route("pirate", threshold=0.3))
    saving = llama()
    saving.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    saving = Run(bank, saving, route("pirate", threshold=0.3))
    for number in range(2):
        assert plain.step(batch(number)) == saving.step(batch(number))
    for what, value in plain.kept().items():
        torch.testing.assert_close(saving.kept()[what], value, rtol=1e-5, atol=1e-9)


def test_the_meters_see_each_gradient_once(bank):
    """Demand before and with a route that takes nothing away is the same: its passes are not counted."""
    plain, routed = Run(bank, llama(), where="gradient"), Run(bank, llama(), route("pirate", threshold=1.0))
    plain.step(batch())
    routed.step(batch())
    for name in ("concept/pirate/demand", "concept/pirate/demand/signed"):
        assert routed.recorder.curves()[name] == plain.recorder.curves()[name]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_it_runs_in_the_precision_of_the_loop(bank, precision, tmp_path):
    recorder = MemoryRecorder()
    callback = quiet(bank, route("pirate", threshold=0.1), recorders=[recorder])
    module = fit(lora(llama()), tmp_path, callback, precision=precision)
    assert all(math.isfinite(loss) for loss in module.losses)
    curves = recorder.curves()
    assert curves["interptrain/route/pirate/skipped"] == [0.0] * 4
    assert curves["interptrain/route/pirate/quarantine"][-1] > 0


def test_a_loop_that_does_not_announce_its_steps_is_followed(bank):
    told, silent = (Run(bank, llama(), route("pirate", threshold=0.3)) for _ in range(2))
    told.step(batch())
    silent.backward(batch())
    silent.optimizer.step()
    assert all(torch.equal(value, silent.kept()[what]) for what, value in told.kept().items())


def test_a_model_that_trains_in_eval_mode_is_refused(bank):
    run = Run(bank, llama(), route("pirate", threshold=0.0))
    run.model.eval()
    run.backward(batch())
    with pytest.raises(ValueError, match=r"route/pirate acts in training mode only.*model\.train\(\)"):
        run.steerer.before_step()


def test_gradients_asked_for_at_evaluation_do_not_stop_training(bank):
    run = Run(bank, llama(), route("pirate", threshold=0.0))
    run.backward(batch(0))
    run.model.eval()
    run.backward(batch(1))
    run.model.train()
    run.finish()
    other = Run(bank, llama(), route("pirate", threshold=0.0))
    other.step(batch(0))
    assert torch.equal(run.kept()["weights"], other.kept()["weights"])


def test_a_loop_whose_steps_nobody_sees_is_refused(bank):
    model = llama()
    steerer = Steerer(bank, find_sites(model, bank), route("pirate"))
    with pytest.raises(ValueError, match=r"route/pirate acts after the optimizer's step: attach\(model, optimizer\)"):
        steerer.attach(model)
    assert hooks_of(model) == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rank": 0}, "rank of 1 or more, found 0"),
        ({"alpha": 0.0}, "positive alpha, found 0.0"),
        ({"learning_rate": math.nan}, "positive learning rate, found nan"),
        ({"threshold": 1.5}, "found 1.5"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        route("pirate", **wrong)


def test_an_unknown_concept_or_hook_is_refused(bank):
    with pytest.raises(ValueError, match="unknown concept 'royal'"):
        Run(bank, llama(), route("royal"))
    with pytest.raises(ValueError, match=r"no directions at 'blocks\.0\.hook_resid_post'"):
        Run(bank, llama(), route("pirate", hook="blocks.0.hook_resid_post"))
    assert route("pirate", rank=4, alpha=8.0) == route("pirate", rank=4)


def test_processes_that_share_a_batch_share_the_quarantines_gradient(bank, tmp_path):
    runs = [Run(bank, llama(), route("pirate", threshold=0.0)) for _ in range(2)]
    for number, run in enumerate(runs):
        run.backward(batch(number))

    def step(run):
        run.steerer._context.run_before_step(1.0)
        run.steerer._context.run_after_step()
        return run.kept()["mean"]

    def child(rank):
        store = f"file://{tmp_path / 'store'}"
        torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
        torch.save(step(runs[rank]), tmp_path / f"{rank}.pt")

    processes = [get_context("fork").Process(target=child, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    together, apart = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)], [step(run) for run in runs]
    assert not torch.allclose(*apart, rtol=0.1)
    assert torch.equal(*together)
    torch.testing.assert_close(together[0], (apart[0] + apart[1]) / 2)


def test_experts_are_refused_by_name(bank):
    """Beside a weight of many matrices, each with inputs of its own, no pair can be put."""
    model = model_of("mixtral")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steerer = Steerer(bank, find_sites(model, bank), route("pirate"))
    with pytest.raises(ValueError, match=r"'model.layers.0.mlp.experts.down_proj' is a weight of experts"):
        steerer.attach(model, optimizer)
