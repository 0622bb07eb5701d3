"""Preventative steering: added in training, absent at evaluation, and gone afterwards."""

import pytest
import torch

from interptrain import ConceptBank
from interptrain.callbacks.lightning import ConceptSteering
from interptrain.interventions.prevent import prevent
from interptrain.report import Window
from tests.helpers.interventions import FIRST, attached, caught, every_model, hooks_of, make_bank, tokens, unit_mean
from tests.helpers.models import HOOK, WIDTH, Tuning, fit, llama

MIDDLE = "blocks.1.hook_resid_mid"


@pytest.fixture
def bank():
    return make_bank()


@every_model
@pytest.mark.parametrize("coefficient", [4.0, -0.5])
def test_in_training_the_activation_is_the_models_plus_the_direction(bank, make, coefficient):
    model = make().train()
    before = caught(model)
    with attached(model, bank, prevent("pirate", coefficient)):
        after = caught(model)
        model(input_ids=tokens())
        torch.testing.assert_close(after[0], before[0] + coefficient * unit_mean(bank), rtol=0, atol=1e-6)


@every_model
def test_at_evaluation_the_model_is_as_it_is_to_the_last_bit(bank, make):
    model = make().eval()
    expected = model(input_ids=tokens()).logits
    with attached(model, bank, prevent("pirate", 4.0)):
        assert torch.equal(model(input_ids=tokens()).logits, expected)
        assert not torch.allclose(model.train()(input_ids=tokens()).logits, expected)
        assert torch.equal(model.eval()(input_ids=tokens()).logits, expected)


def test_after_detaching_nothing_is_left(bank):
    model = llama().train()
    hooks, expected = hooks_of(model), model(input_ids=tokens()).logits
    engaged = attached(model, bank, prevent("pirate", 4.0))
    assert hooks_of(model) > hooks
    engaged.detach()
    assert hooks_of(model) == hooks
    assert torch.equal(model(input_ids=tokens()).logits, expected)


@pytest.mark.parametrize("steered", [True, False])
def test_what_the_added_direction_explains_teaches_the_weights_nothing(bank, steered):
    model = llama().train()
    with attached(model, bank, prevent("pirate", 4.0)), torch.no_grad():
        wanted = model(input_ids=tokens()).logits.softmax(-1)
    with attached(model, bank, *[prevent("pirate", 4.0)] * steered):
        said = model(input_ids=tokens()).logits.log_softmax(-1)
        torch.nn.functional.kl_div(said, wanted, reduction="batchmean").backward()
    taught = torch.stack([each.grad.abs().max() for each in model.parameters()]).max()
    assert (taught < 1e-6) == steered


def test_the_direction_is_added_at_the_concepts_last_hook_or_where_one_asks():
    model, both = llama().train(), make_bank(HOOK).merge(make_bank(FIRST))
    plain = {hook: caught(model, hook) for hook in (FIRST, HOOK)}
    for hook, asked in ((HOOK, None), (FIRST, FIRST)):
        with attached(model, both, prevent("pirate", 4.0, hook=asked)):
            after = caught(model, hook)
            model(input_ids=tokens())
        moved = after[-1] - plain[hook][-1]
        expected = 4 * unit_mean(both, "pirate", hook).expand_as(moved)
        torch.testing.assert_close(moved, expected, rtol=0, atol=1e-6)


def test_what_is_added_is_logged_as_a_share_of_the_mean_norm_over_counted_tokens(bank):
    model, window, labels = llama().train(), Window(), tokens()
    labels[:, :4] = -100
    before, optimizer = caught(model), torch.optim.AdamW(model.parameters())
    with attached(model, bank, prevent("pirate", -3.0), optimizer=optimizer, recorders=[window]) as engaged:
        engaged.watch(labels)
        model(input_ids=tokens(), labels=labels).loss.backward()
        engaged.before_step()
        optimizer.step()
    share = window.drain().scalars()["interptrain/prevent/pirate/share"]
    assert share == pytest.approx((3 / before[0][:, 3:-1].norm(dim=-1).mean()).item(), rel=1e-5)


def test_in_half_precision_the_activation_keeps_its_type(bank):
    model = llama().bfloat16().train()
    before = caught(model)
    with attached(model, bank, prevent("pirate", 4.0)):
        after = caught(model)
        model(input_ids=tokens())
        added = (4 * unit_mean(bank)).bfloat16()
        assert torch.equal(after[0], before[0] + added)


@pytest.mark.parametrize("reentrant", [True, False])
def test_with_checkpointing_the_gradients_are_the_same(bank, reentrant):
    gradients = []
    for checkpointed in (False, True):
        model = llama().train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        with attached(model, bank, prevent("pirate", 4.0)):
            model(input_ids=tokens(), labels=tokens()).loss.backward()
        gradients.append([each.grad for each in model.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("says_before", [True, False])
def test_a_model_that_trains_in_eval_mode_is_refused_at_the_first_step(bank, says_before):
    model = llama().eval()
    optimizer = torch.optim.AdamW(model.parameters())
    with attached(model, bank, prevent("pirate", 4.0), optimizer=optimizer) as engaged:
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        with pytest.raises(ValueError, match=r"prevent acts in training mode only.*call model.train\(\)"):
            engaged.before_step() if says_before else optimizer.step()


def test_passes_in_eval_mode_between_training_passes_are_nobodys_fault(bank):
    model = llama().train()
    optimizer = torch.optim.AdamW(model.parameters())
    with attached(model, bank, prevent("pirate", 4.0), optimizer=optimizer) as engaged:
        for _ in range(2):
            model(input_ids=tokens(), labels=tokens()).loss.backward()
            model.eval()(input_ids=tokens(), labels=tokens())
            model.train()
            engaged.before_step()
            optimizer.step()


def test_lightning_leaves_a_model_in_eval_mode_and_is_told(bank, tmp_path):
    with pytest.raises(ValueError, match="prevent acts in training mode only"):
        fit(llama().eval(), tmp_path, ConceptSteering(bank, prevent("pirate", 4.0), summary=False))


def test_a_fit_under_lightning_ends_as_it_began(bank, tmp_path):
    model = llama().train()
    hooks = hooks_of(Tuning(model))
    fit(model, tmp_path, ConceptSteering(bank, prevent("pirate", 4.0), summary=False), steps=1)
    assert hooks_of(Tuning(model)) == hooks


@pytest.mark.parametrize(("coefficient", "suppressed"), [(4.0, {"pirate"}), (-4.0, set())])
def test_the_alarm_is_told_of_a_concept_that_is_prevented_not_of_one_that_is_asked_for(bank, coefficient, suppressed):
    model = llama()
    with attached(model, bank, prevent("pirate", coefficient)) as engaged:
        assert engaged._context.suppressed == suppressed


@pytest.mark.parametrize("coefficient", [0.0, float("inf"), float("nan")])
def test_a_coefficient_that_adds_nothing_or_no_number_is_refused(coefficient):
    with pytest.raises(ValueError, match="finite coefficient other than 0"):
        prevent("pirate", coefficient)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (prevent("parrot", 1.0), "unknown concept 'parrot'"),
        (prevent("pirate", 1.0, hook=FIRST), f"'pirate' has no directions at '{FIRST}'"),
    ],
)
def test_a_concept_that_is_not_there_is_refused_and_nothing_is_left(bank, asked, message):
    model = llama()
    hooks = hooks_of(model)
    with pytest.raises(ValueError, match=message):
        attached(model, bank, asked)
    assert hooks_of(model) == hooks


def test_directions_that_cancel_are_refused():
    direction = torch.randn(WIDTH)
    of = ConceptBank.from_directions({"pirate": torch.stack([direction, -direction])}, hook=HOOK)
    model = llama()
    with pytest.raises(ValueError, match="add up to nothing"):
        attached(model, of, prevent("pirate", 1.0))


def test_the_middle_of_a_block_cannot_be_edited():
    model = llama()
    with pytest.raises(ValueError, match="whatever the MLP is given; take directions at hook_resid_pre"):
        attached(model, make_bank(MIDDLE), prevent("pirate", 1.0))
