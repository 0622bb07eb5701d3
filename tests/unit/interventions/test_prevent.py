"""Preventative steering: added in training, absent at evaluation, and gone afterwards."""

import pytest
import torch

from interptrain import ConceptBank, Steerer, find_sites
from interptrain.callbacks.lightning import ConceptSteering
from interptrain.interventions.prevent import prevent
from interptrain.report import Window
from interptrain.sites import HookPoint
from tests.helpers.models import HOOK, WIDTH, WORDS, Tuning, fit, gpt2, llama, lora

FIRST, MIDDLE = "blocks.0.hook_resid_post", "blocks.1.hook_resid_mid"
BUILDS = {"llama": llama, "gpt2": gpt2, "lora": lambda: lora(llama(), lora_dropout=0.0)}
builds = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)


def tokens(*, rows=4, length=9, seed=0):
    return torch.randint(1, WORDS, (rows, length), generator=torch.Generator().manual_seed(seed))


def bank(hook=HOOK):
    generator = torch.Generator().manual_seed(7)
    pirate, sums = torch.randn(3, WIDTH, generator=generator), torch.randn(2, WIDTH, generator=generator)
    return ConceptBank.from_directions({"pirate": pirate, "sums": sums}, hook=hook)


def steerer(model, *rules, of=None, where="update", **options):
    of = bank() if of is None else of
    return Steerer(of, find_sites(model, of, where=where), rules, where=where, **options)


def adam(model):
    return torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-3)


def hooks_of(model):
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules())


def caught(model, hook=HOOK):
    """Activations at a hook point, as they are once the hooks so far have acted."""
    seen = []
    HookPoint.parse(hook).listen(model, seen.append)
    return seen


def unit_mean(of, concept, hook=HOOK):
    summed = of.directions[list(of.rows(concept, hook))].sum(0)
    return summed / summed.norm()


@builds
@pytest.mark.parametrize("coefficient", [4.0, -0.5])
def test_in_training_the_activation_is_the_models_plus_the_direction(build, coefficient):
    model = build().train()
    before = caught(model)
    with steerer(model, prevent("pirate", coefficient)).attach(model, adam(model)):
        after = caught(model)
        model(input_ids=tokens())
        torch.testing.assert_close(after[0], before[0] + coefficient * unit_mean(bank(), "pirate"), rtol=0, atol=1e-6)


@builds
def test_at_evaluation_the_model_is_as_it_is_to_the_last_bit(build):
    model = build().eval()
    expected = model(input_ids=tokens()).logits
    with steerer(model, prevent("pirate", 4.0)).attach(model, adam(model)):
        assert torch.equal(model(input_ids=tokens()).logits, expected)
        assert not torch.allclose(model.train()(input_ids=tokens()).logits, expected)
        assert torch.equal(model.eval()(input_ids=tokens()).logits, expected)


def test_after_detaching_nothing_is_left():
    model = llama().train()
    hooks, expected = hooks_of(model), model(input_ids=tokens()).logits
    engaged = steerer(model, prevent("pirate", 4.0)).attach(model, adam(model))
    assert hooks_of(model) > hooks
    engaged.detach()
    assert hooks_of(model) == hooks
    assert torch.equal(model(input_ids=tokens()).logits, expected)


@pytest.mark.parametrize("steered", [True, False])
def test_what_the_added_direction_explains_teaches_the_weights_nothing(steered):
    model = llama().train()
    with steerer(model, prevent("pirate", 4.0)).attach(model, adam(model)), torch.no_grad():
        wanted = model(input_ids=tokens()).logits.softmax(-1)
    with steerer(model, *[prevent("pirate", 4.0)] * steered).attach(model, adam(model)):
        said = model(input_ids=tokens()).logits.log_softmax(-1)
        torch.nn.functional.kl_div(said, wanted, reduction="batchmean").backward()
    taught = torch.stack([each.grad.abs().max() for each in model.parameters()]).max()
    assert (taught < 1e-6) == steered


def test_the_direction_is_added_at_the_concepts_last_hook_or_where_one_asks():
    model, both = llama().train(), bank(HOOK).merge(bank(FIRST))
    plain = {hook: caught(model, hook) for hook in (FIRST, HOOK)}
    for hook, asked in ((HOOK, None), (FIRST, FIRST)):
        with steerer(model, prevent("pirate", 4.0, hook=asked), of=both).attach(model, adam(model)):
            after = caught(model, hook)
            model(input_ids=tokens())
        moved = after[-1] - plain[hook][-1]
        expected = 4 * unit_mean(both, "pirate", hook).expand_as(moved)
        torch.testing.assert_close(moved, expected, rtol=0, atol=1e-6)


def test_what_is_added_is_logged_as_a_share_of_the_mean_norm_over_counted_tokens():
    model, window, labels = llama().train(), Window(), tokens()
    labels[:, :4] = -100
    before, optimizer = caught(model), adam(model)
    engaged = steerer(model, prevent("pirate", -3.0), recorders=[window])
    with engaged.attach(model, optimizer):
        engaged.watch(labels)
        model(input_ids=tokens(), labels=labels).loss.backward()
        engaged.before_step()
        optimizer.step()
    share = window.drain().scalars()["interptrain/prevent/pirate/share"]
    assert share == pytest.approx((3 / before[0][:, 3:-1].norm(dim=-1).mean()).item(), rel=1e-5)


def test_in_half_precision_the_activation_keeps_its_type():
    model = llama().bfloat16().train()
    before = caught(model)
    with steerer(model, prevent("pirate", 4.0)).attach(model, adam(model)):
        after = caught(model)
        model(input_ids=tokens())
        added = (4 * unit_mean(bank(), "pirate")).bfloat16()
        assert torch.equal(after[0], before[0] + added)


@pytest.mark.parametrize("reentrant", [True, False])
def test_with_checkpointing_the_gradients_are_the_same(reentrant):
    gradients = []
    for checkpointed in (False, True):
        model = llama().train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        with steerer(model, prevent("pirate", 4.0)).attach(model, adam(model)):
            model(input_ids=tokens(), labels=tokens()).loss.backward()
        gradients.append([each.grad for each in model.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("says_before", [True, False])
def test_a_model_that_trains_in_eval_mode_is_refused_at_the_first_step(says_before):
    model = llama().eval()
    optimizer, engaged = adam(model), steerer(model, prevent("pirate", 4.0))
    with engaged.attach(model, optimizer):
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        with pytest.raises(ValueError, match=r"prevent acts in training mode only.*call model.train\(\)"):
            engaged.before_step() if says_before else optimizer.step()


def test_passes_in_eval_mode_between_training_passes_are_nobodys_fault():
    model = llama().train()
    optimizer, engaged = adam(model), steerer(model, prevent("pirate", 4.0))
    with engaged.attach(model, optimizer):
        for _ in range(2):
            model(input_ids=tokens(), labels=tokens()).loss.backward()
            model.eval()(input_ids=tokens(), labels=tokens())
            model.train()
            engaged.before_step()
            optimizer.step()


def test_lightning_leaves_a_model_in_eval_mode_and_is_told(tmp_path):
    with pytest.raises(ValueError, match="prevent acts in training mode only"):
        fit(llama().eval(), tmp_path, ConceptSteering(bank(), prevent("pirate", 4.0), summary=False))


def test_a_fit_under_lightning_ends_as_it_began(tmp_path):
    model = llama().train()
    hooks = hooks_of(Tuning(model))
    fit(model, tmp_path, ConceptSteering(bank(), prevent("pirate", 4.0), summary=False))
    assert hooks_of(Tuning(model)) == hooks


@pytest.mark.parametrize(("coefficient", "suppressed"), [(4.0, {"pirate"}), (-4.0, set())])
def test_the_alarm_is_told_of_a_concept_that_is_prevented_not_of_one_that_is_asked_for(coefficient, suppressed):
    model = llama()
    with steerer(model, prevent("pirate", coefficient)).attach(model, adam(model)) as engaged:
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
def test_a_concept_that_is_not_there_is_refused_and_nothing_is_left(asked, message):
    model = llama()
    hooks = hooks_of(model)
    with pytest.raises(ValueError, match=message):
        steerer(model, asked).attach(model, adam(model))
    assert hooks_of(model) == hooks


def test_directions_that_cancel_are_refused():
    direction = torch.randn(WIDTH)
    of = ConceptBank.from_directions({"pirate": torch.stack([direction, -direction])}, hook=HOOK)
    model = llama()
    with pytest.raises(ValueError, match="add up to nothing"):
        steerer(model, prevent("pirate", 1.0), of=of).attach(model, adam(model))


def test_the_middle_of_a_block_cannot_be_edited():
    model = llama()
    with pytest.raises(ValueError, match="whatever the MLP is given; take directions at hook_resid_pre"):
        steerer(model, prevent("pirate", 1.0), of=bank(MIDDLE)).attach(model, adam(model))
