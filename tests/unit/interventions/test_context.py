"""What interventions share: they are told apart from rules, leave nothing behind, are logged, saved and resumed."""

import copy
import gc
import weakref
from contextlib import contextmanager

import pytest
import pytorch_lightning as pl
import torch

from interptrain import Steerer, find_sites, observe, suppress
from interptrain.callbacks.lightning import ConceptSteering
from interptrain.interventions import Context, ablate, gate, hold, penalise, prevent, retain, route
from interptrain.interventions.intervention import split
from interptrain.meters import Positions
from interptrain.recorders import MemoryRecorder
from interptrain.steering.rules import Chain
from tests.helpers.interventions import LATER, assert_identical, attached, every_model, make_bank, make_steerer, sgd
from tests.helpers.models import Sentences, Tuning, fit, llama, loader, lora, trainer, weights


@pytest.fixture
def bank():
    return make_bank()


def texts(seed=5):
    ids = Sentences(count=4, seed=seed).tokens
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def several(*, seeds=(5, 6, 7)):
    """A gate, a hold, a penalty and retained words, all of which act."""
    probes = [texts(seed) for seed in seeds]
    return [gate("pirate", tokens=0.3), hold("pirate", probes), penalise("sums", 50.0), retain(probes[:2], 0.1)]


def nothing():
    """Interventions that have nothing to do."""
    return [gate("pirate", threshold=1.0), hold("pirate", [texts()], margin=1e6)]


def hooks(model):
    """Of every module, how many hooks of each kind it has."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {name: [len(getattr(module, kind)) for kind in kinds] for name, module in model.named_modules()}


def test_rules_and_interventions_are_told_apart_and_keep_their_order(bank):
    first, last, gated, held = suppress("pirate"), observe(), gate("pirate"), hold("pirate", [texts()])
    assert split([gated, first, held, last]) == ((first, last), (gated, held))
    assert split(iter([first, held])) == ((first,), (held,))
    assert split(held) == ((), (held,))
    assert split(first) == ((first,), ())
    assert split([]) == ((), ())


@every_model
def test_nothing_is_left_behind(bank, make):
    model, batch = make(), Sentences()[:8]
    optimizer = sgd(model)
    before, modes = hooks(model), [module.training for module in model.modules()]
    with attached(model, bank, *several(), optimizer=optimizer) as steerer:
        assert hooks(model) != before
        steerer.watch(batch["labels"])
        model(**batch).loss.backward()
        steerer.before_step()
        optimizer.step()
    assert hooks(model) == before
    assert [module.training for module in model.modules()] == modes
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    there = weights(model)
    optimizer.zero_grad()
    model(**batch).loss.backward()
    optimizer.step()  # a step like any other
    assert any(not torch.equal(value, there[name]) for name, value in weights(model).items())


@pytest.mark.parametrize(
    "refused",
    [gate("pirate", hook=LATER), hold("sums", []), penalise("ghost", 1.0), hold("sums", [texts()], words=[10**6])],
    ids=["gate", "hold", "penalise", "words"],
)
def test_nothing_is_left_behind_where_the_second_of_them_is_refused(bank, refused):
    model, before = llama(), hooks(llama())
    optimizer = sgd(model)
    with pytest.raises(ValueError, match=r"no directions|is empty|unknown concept|vocabulary"):
        attached(model, bank, several()[0], refused, optimizer=optimizer)
    assert hooks(model) == before
    assert not optimizer._optimizer_step_post_hooks
    assert_identical(model, llama())


def test_a_pass_of_their_own_that_fails_leaves_the_model_and_the_meters_as_they_were(bank):
    model, batch, recorder = llama().train(), Sentences()[:8], MemoryRecorder()
    optimizer = sgd(model)
    with attached(model, bank, retain([texts()]), optimizer=optimizer, recorders=[recorder]) as steerer:
        broken = model.lm_head.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            steerer.before_step()
        broken.remove()
        assert all(module.training for module in model.modules())
        model(**batch).loss.backward()
        steerer.before_step()
        optimizer.step()
    assert recorder.curves()["concept/pirate/demand"][0] > 0


def test_a_question_within_a_question_does_not_end_it(bank):
    positions = Positions()
    context = Context.of(llama(), bank, positions, steps=True)
    with context.asking():
        with context.asking():
            pass
        assert positions.asking
    assert not positions.asking


@pytest.mark.parametrize("where", ["gradient", "update"])
def test_a_rule_beside_interventions_acts_as_without_them(bank, where, tmp_path):
    runs = []
    for acts in ([], nothing()):
        recorder = MemoryRecorder()
        rules = [suppress("pirate"), *acts[:1], suppress("sums", 0.5), *acts[1:]]
        callback = ConceptSteering(bank, rules, where=where, recorders=[recorder], summary=False)
        runs.append((fit(llama(), tmp_path, callback, steps=2).model, recorder.curves()))
    assert_identical(runs[0][0], runs[1][0])
    for name, curve in runs[0][1].items():
        assert curve == runs[1][1][name], name


def test_interventions_alone_leave_the_rule_that_observes(bank):
    model = llama()
    assert isinstance(Steerer(bank, find_sites(model, bank), several()).rule, type(observe()))
    rules = [suppress("pirate"), *several(), suppress("sums")]
    assert isinstance(Steerer(bank, find_sites(model, bank), rules).rule, Chain)


def test_figures_are_curves_of_the_run(bank, tmp_path):
    recorder = MemoryRecorder()
    fit(llama(), tmp_path, ConceptSteering(bank, several(), recorders=[recorder], every=2, summary=False), steps=5)
    curves = recorder.curves()
    for name in ("gate/pirate/tokens", "gate/pirate/threshold", "hold/pirate/excess", "hold/pirate/moved",
                 "penalise/sums/gained", "retain/kl"):  # fmt: skip
        curve = curves[f"interptrain/{name}"]
        assert len(curve) == 3
        assert all(figure is not None and figure >= 0 for figure in curve), name
    assert curves["interptrain/gate/pirate/tokens"][0] == pytest.approx(0.3, abs=0.02)
    assert curves["interptrain/hold/pirate/excess"][0] > 0
    assert curves["interptrain/penalise/sums/gained"][0] == 0 < curves["interptrain/penalise/sums/gained"][1]


class ByStep(Tuning):
    """Trains on a batch of the step's own: Lightning begins the data anew when it resumes."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return Sentences(seed=self.global_step)[:8]


@pytest.mark.parametrize("make", [llama, lambda: lora(llama())], ids=["full", "lora"])
def test_a_run_from_a_checkpoint_goes_on_as_the_whole_run_does_to_the_last_bit(bank, make, tmp_path):
    """What the model was before training is in the checkpoint alone by then."""

    def run(steps, ckpt=None):
        recorder = MemoryRecorder()
        callback = ConceptSteering(bank, several(), where="update", recorders=[recorder], summary=False)
        module, fitting = ByStep(make()), trainer(tmp_path, callback, steps=steps)
        fitting.fit(module, loader(), ckpt_path=ckpt)
        fitting.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return module, callback.state_dict()["interventions"], recorder.curves()

    whole, kept, curves = run(4)
    run(2)
    rest, resumed, continued = run(4, ckpt=tmp_path / "2.ckpt")
    assert whole.losses[2:] == rest.losses
    assert_identical(whole, rest)
    assert kept.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in kept.items())
    for name in ("gate/pirate/tokens", "hold/pirate/excess", "penalise/sums/gained", "retain/kl"):
        assert curves[f"interptrain/{name}"][2:] == continued[f"interptrain/{name}"], name
    assert kept["hold/pirate/turn"] == 1  # of three batches: resumed in the middle of a round
    assert curves["interptrain/hold/pirate/excess"][-1] > 0


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_was_before_training_comes_from_the_state_whenever_it_is_loaded(bank, when):
    with attached(llama(), bank, *several()) as steerer:
        state = copy.deepcopy(steerer.state_dict())
    model = llama(seed=1)
    resumed = make_steerer(model, bank, *several())
    if when == "before":
        resumed.load_state_dict(state)
    resumed.attach(model, sgd(model))
    if when == "after":
        resumed.load_state_dict(state)
    kept = resumed.state_dict()["interventions"]
    assert kept.keys() == state["interventions"].keys()
    assert all(torch.equal(value, kept[name]) for name, value in state["interventions"].items())


def test_a_state_of_before_there_were_interventions_is_loaded(bank):
    with attached(llama(), bank, observe()) as steerer:
        state = steerer.state_dict()
    del state["interventions"]
    with attached(llama(), bank, *several()) as resumed:
        kept = resumed.state_dict()["interventions"]
        resumed.load_state_dict(state)
        assert resumed.state_dict()["interventions"].keys() == kept.keys()


@pytest.mark.parametrize(
    ("other", "who"),
    [
        (hold("pirate", [texts(9)]), "hold/pirate"), (hold("pirate", [texts(), texts(6)]), "hold/pirate"),
        (hold("pirate", [texts()], words=[3]), "hold/pirate"), (retain([texts(9)]), "retain"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("when", ["before", "after"])
def test_other_probe_texts_than_the_saved_ones_are_refused(bank, other, who, when):
    with attached(llama(), bank, hold("pirate", [texts()]), retain([texts()])) as steerer:
        state = steerer.state_dict()
    model = llama()
    optimizer = sgd(model)
    resumed = make_steerer(model, bank, other)
    if when == "before":
        resumed.load_state_dict(state)
        with pytest.raises(ValueError, match=f"'{who}' kept is of other probe texts or read in another way"):
            resumed.attach(model, optimizer)
        return
    with resumed.attach(model, optimizer), pytest.raises(ValueError, match=f"'{who}' kept is of other probe texts"):
        resumed.load_state_dict(state)


def test_other_probe_texts_are_refused_by_a_fit_before_its_first_step(bank, tmp_path):
    first = trainer(tmp_path, ConceptSteering(bank, several(), summary=False), steps=1)
    first.fit(Tuning(llama()), loader())
    first.save_checkpoint(tmp_path / "1.ckpt")
    module = Tuning(llama())
    again = trainer(tmp_path, ConceptSteering(bank, several(seeds=(5, 6, 8)), summary=False))
    with pytest.raises(ValueError, match="other probe texts"):
        again.fit(module, loader(), ckpt_path=tmp_path / "1.ckpt")
    assert not module.losses


def test_interventions_cannot_be_changed_in_mid_run_but_rules_beside_them_can(bank, tmp_path):
    acts, recorder = several(), MemoryRecorder()
    callback = ConceptSteering(bank, acts, where="update", recorders=[recorder], summary=False)

    class Change(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step != 2:
                return
            for other in ([gate("sums")], several(), acts[:2], [suppress("pirate"), *acts[::-1]]):
                with pytest.raises(ValueError, match="interventions are chosen at the start and act until the end"):
                    callback.rule = other
            callback.rule = [suppress("pirate", 0.25), *acts]

    fit(llama(), tmp_path, callback, Change(), steps=4)
    curves = recorder.curves()
    assert curves["concept/pirate/gain"] == [1.0, 1.0, 0.25, 0.25]
    assert None not in curves["interptrain/hold/pirate/excess"]


def test_a_rule_of_mid_run_leaves_the_next_fit_its_interventions_and_between_fits_they_can_be_chosen_anew(
    bank, tmp_path
):
    recorder = MemoryRecorder()
    callback = ConceptSteering(bank, gate("pirate"), recorders=[recorder], summary=False)

    class Change(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            callback.rule = suppress("pirate", 0.25)

    fit(llama(), tmp_path, callback, Change(), steps=1)
    fit(llama(), tmp_path, callback, steps=1)
    curves = recorder.curves()
    assert curves["concept/pirate/gain"] == [1.0, 0.25]
    assert None not in curves["interptrain/gate/pirate/tokens"]
    callback.rule = gate("sums")
    fit(llama(), tmp_path, callback, steps=1)
    assert [value is None for value in recorder.curves()["interptrain/gate/sums/tokens"]] == [True, True, False]


def test_what_is_kept_counts_as_held(bank):
    model = llama()
    steerer = make_steerer(model, bank, *several())
    before = steerer.held_bytes()
    with steerer.attach(model, sgd(model)):
        kept = steerer.state_dict()["interventions"]
        assert steerer.held_bytes() - before == sum(value.nbytes for value in kept.values())
        copied = sum(parameter.nbytes for parameter in model.parameters())
        assert steerer.held_bytes() - before > copied  # of the penalty


@contextmanager
def uncollected():
    """Inside, the garbage collector is off: what only it would free is a graph for every step until it comes by."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


ACTS = {
    "gate": lambda: gate("pirate", tokens=0.3),
    "route": lambda: route("pirate", tokens=0.3),
    "hold": lambda: hold("pirate", [texts()]),
    "retain": lambda: retain([texts()]),
    "penalise": lambda: penalise("pirate", 50.0),
    "prevent": lambda: prevent("pirate", 1.0),
    "ablate": lambda: ablate("pirate"),
}


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_nothing_of_a_step_s_graph_outlives_it(bank, act):
    model = llama()
    optimizer = sgd(model)
    seen = []
    for module in (*model.model.layers, model.lm_head):
        module.register_forward_hook(lambda *hook: seen.append(weakref.ref(hook[-1])))
    ids = texts()["input_ids"]
    with attached(model, bank, act(), optimizer=optimizer) as steerer, uncollected():
        for _ in range(2):
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            steerer.before_step()
            optimizer.step()
            optimizer.zero_grad()
        del loss
        assert len(seen) >= 2 * (len(model.model.layers) + 1)
        assert not [one for one in seen if one() is not None]


def test_a_forward_pass_without_a_backward_one_is_forgotten(bank):
    model = llama()
    with attached(model, bank, gate("pirate", tokens=0.3)), uncollected():
        logits = model(input_ids=texts()["input_ids"]).logits
        gone = weakref.ref(logits)
        del logits
        assert gone() is None
