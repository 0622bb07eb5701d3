"""Concept ablation fine-tuning: no activation and no gradient has a part in the concept, in training only."""

import pytest
import torch

from interptrain import ConceptBank
from interptrain.interventions.ablate import ablate
from interptrain.report import Window
from tests.helpers.interventions import (
    FIRST,
    attached,
    caught,
    directions_of,
    every_model,
    hooks_of,
    make_bank,
    make_steerer,
    sgd,
    tokens,
)
from tests.helpers.models import HOOK, WIDTH, llama

KEPT = f"ablate/pirate/mean/{HOOK}"


@pytest.fixture
def bank():
    return make_bank()


def outside(bank, activation):
    """What is left of it beside the concept, with nothing of the code under test."""
    D = directions_of(bank).double()
    return activation.double() - activation.double() @ torch.linalg.pinv(D) @ D


@every_model
def test_without_a_mean_no_activation_has_a_component_and_the_rest_stays(bank, make):
    model = make().train()
    before = caught(model)
    with attached(model, bank, ablate("pirate", mean=False)):
        after = caught(model)
        model(input_ids=tokens())
    assert (before[0] @ directions_of(bank).T).abs().max() > 1e-2
    assert (after[0] @ directions_of(bank).T).abs().max() < 1e-5
    torch.testing.assert_close(outside(bank, after[0]), outside(bank, before[0]), rtol=0, atol=1e-5)


def test_with_a_mean_every_token_has_the_first_batchs_mean_component(bank):
    model, labels = llama().train(), tokens()
    labels[:, :4] = -100
    before = caught(model)
    with attached(model, bank, ablate("pirate")) as engaged:
        after = caught(model)
        for seed in (0, 1):
            engaged.watch(labels)
            model(input_ids=tokens(seed=seed), labels=labels).loss.backward()
    expected = before[0][:, 3:-1].flatten(0, 1).mean(0) @ directions_of(bank).T
    for activation in after:
        found = activation @ directions_of(bank).T
        torch.testing.assert_close(found, expected.expand_as(found), rtol=0, atol=1e-5)


@every_model
@pytest.mark.parametrize("mean", [True, False])
def test_at_evaluation_the_model_is_as_it_is_to_the_last_bit(bank, make, mean):
    model = make().eval()
    expected = model(input_ids=tokens()).logits
    with attached(model, bank, ablate("pirate", mean=mean)):
        assert torch.equal(model(input_ids=tokens()).logits, expected)
        assert not torch.equal(model.train()(input_ids=tokens()).logits, expected)
        assert torch.equal(model.eval()(input_ids=tokens()).logits, expected)


@every_model
@pytest.mark.parametrize("mean", [True, False])
def test_the_gradient_below_has_no_component_and_is_else_what_the_layers_above_ask(bank, make, mean):
    model = make().train()
    before = caught(model)
    with attached(model, bank, ablate("pirate", mean=mean)):
        after = caught(model)
        model(input_ids=tokens(), labels=tokens()).loss.backward()
    below, above = before[0].grad, after[0].grad
    assert (above @ directions_of(bank).T).abs().max() > 1e-4
    assert (below @ directions_of(bank).T).abs().max() < 1e-6 * above.abs().max()
    torch.testing.assert_close(below.double(), outside(bank, above), rtol=0, atol=1e-7)


def test_under_autocast_the_projection_is_in_full_precision(bank):
    model = llama().train()
    with attached(model, bank, ablate("pirate", mean=False)):
        after = caught(model)
        with torch.autocast("cpu", torch.bfloat16):
            model(input_ids=tokens())
    assert after[0].dtype == torch.float32
    assert (after[0] @ directions_of(bank).T).abs().max() < 1e-5


def test_directions_that_depend_on_each_other_are_one_span(bank):
    model, pirate = llama().train(), directions_of(bank)
    of = ConceptBank.from_directions({"pirate": torch.cat([pirate, pirate[:1], pirate[:1] + pirate[1:2]])}, hook=HOOK)
    with attached(model, of, ablate("pirate", mean=False)):
        after = caught(model)
        model(input_ids=tokens())
    assert (after[0] @ of.directions.T).abs().max() < 1e-5


def test_after_detaching_nothing_is_left(bank):
    model = llama().train()
    hooks, expected = hooks_of(model), model(input_ids=tokens()).logits
    engaged = attached(model, bank, ablate("pirate"))
    assert hooks_of(model) > hooks
    engaged.detach()
    assert hooks_of(model) == hooks
    assert torch.equal(model(input_ids=tokens()).logits, expected)


@pytest.mark.parametrize("attached_first", [True, False])
def test_a_resumed_run_goes_on_with_the_mean_of_the_first(bank, attached_first):
    model = llama().train()
    with attached(model, bank, ablate("pirate")) as first:
        model(input_ids=tokens(), labels=tokens())
        saved = first.state_dict()
    mean = saved["interventions"][KEPT]
    resumed = make_steerer(model, bank, ablate("pirate"))
    if not attached_first:
        resumed.load_state_dict(saved)
    with resumed.attach(model, sgd(model)):
        if attached_first:
            resumed.load_state_dict(saved)
        after = caught(model)
        model(input_ids=tokens(seed=5), labels=tokens(seed=5))
        assert torch.equal(resumed.state_dict()["interventions"][KEPT], mean)
    found = after[0] @ directions_of(bank).T
    torch.testing.assert_close(found, (mean @ directions_of(bank).T).expand_as(found), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("rank", "hooks"), [(3, (HOOK,)), (3, (FIRST, HOOK)), (WIDTH, (FIRST, HOOK))])
def test_the_share_that_was_removed_is_logged_over_counted_tokens_and_hooks(rank, hooks):
    first, last = (make_bank(hook, rank=rank, seed=7) for hook in (FIRST, HOOK))  # its 32 are far from dependent
    bank = first.merge(last)
    model, window, labels = llama().train(), Window(), tokens()
    labels[:, :4] = -100
    before, optimizer = {hook: caught(model, hook) for hook in hooks}, torch.optim.AdamW(model.parameters())
    ablated = ablate("pirate", mean=False, hooks=hooks)
    with attached(model, bank, ablated, optimizer=optimizer, recorders=[window]) as engaged:
        engaged.watch(labels)
        after = {hook: caught(model, hook) for hook in hooks}
        model(input_ids=tokens(), labels=labels).loss.backward()
        engaged.before_step()
        optimizer.step()
    removed = sum((after[hook][0] - before[hook][0])[:, 3:-1].square().sum() for hook in hooks)
    total = sum(before[hook][0][:, 3:-1].square().sum() for hook in hooks)
    share = window.drain().scalars()["interptrain/ablate/pirate/removed"]
    assert share == pytest.approx((removed / total).item(), rel=1e-4)
    assert (share == pytest.approx(1, abs=1e-4)) == (rank == WIDTH)


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("reentrant", [True, False])
def test_with_checkpointing_the_gradients_are_the_same(bank, reentrant, mean):
    gradients = []
    for checkpointed in (False, True):
        model = llama().train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        with attached(model, bank, ablate("pirate", mean=mean)):
            model(input_ids=tokens(), labels=tokens()).loss.backward()
        gradients.append([each.grad for each in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_passes_that_only_ask_do_not_make_the_mean(bank):
    model = llama().train()
    with attached(model, bank, ablate("pirate")) as engaged:
        with engaged._context.asking():
            model(input_ids=tokens(rows=2, seed=3))
        assert KEPT not in engaged.state_dict()["interventions"]
        model(input_ids=tokens())
        assert KEPT in engaged.state_dict()["interventions"]


def test_a_first_batch_without_labels_in_the_loss_is_refused(bank):
    model = llama().train()
    with attached(model, bank, ablate("pirate")) as engaged:
        engaged.watch(torch.full((4, 9), -100))
        with pytest.raises(ValueError, match=r"the first batch's 0 counted tokens is not finite; begin with a batch"):
            model(input_ids=tokens())


def test_a_model_that_trains_in_eval_mode_is_refused_at_the_first_step(bank):
    model = llama().eval()
    with attached(model, bank, ablate("pirate")) as engaged:
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        with pytest.raises(ValueError, match=r"ablate acts in training mode only.*call model.train\(\)"):
            engaged.before_step()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (ablate("parrot"), "unknown concept 'parrot'"),
        (ablate("pirate", hooks=[FIRST]), f"'pirate' has no directions at '{FIRST}'; it has some at {HOOK}"),
    ],
)
def test_a_concept_that_is_not_there_is_refused_and_nothing_is_left(bank, asked, message):
    model = llama()
    hooks = hooks_of(model)
    with pytest.raises(ValueError, match=message):
        attached(model, bank, asked)
    assert hooks_of(model) == hooks


def test_the_alarm_is_told_that_the_concept_is_kept_from_being_learned(bank):
    model = llama()
    with attached(model, bank, ablate("pirate")) as engaged:
        assert engaged._context.suppressed == {"pirate"}


def test_an_empty_choice_of_hooks_is_refused():
    with pytest.raises(ValueError, match="at least one hook point, found none"):
        ablate("pirate", hooks=[])
