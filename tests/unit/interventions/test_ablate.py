"""Concept ablation fine-tuning: no activation and no gradient has a part in the concept, in training only."""

import pytest
import torch

from interptrain import ConceptBank, Steerer, find_sites
from interptrain.interventions.ablate import ablate
from interptrain.report import Window
from interptrain.sites import HookPoint
from tests.helpers.models import HOOK, WIDTH, WORDS, gpt2, llama, lora

FIRST = "blocks.0.hook_resid_post"
KEPT = f"ablate/pirate/mean/{HOOK}"
BUILDS = {"llama": llama, "gpt2": gpt2, "lora": lambda: lora(llama())}
builds = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)


def tokens(*, rows=4, length=9, seed=0):
    return torch.randint(1, WORDS, (rows, length), generator=torch.Generator().manual_seed(seed))


def bank(hook=HOOK, rank=3):
    generator = torch.Generator().manual_seed(7)
    pirate, sums = torch.randn(rank, WIDTH, generator=generator), torch.randn(2, WIDTH, generator=generator)
    return ConceptBank.from_directions({"pirate": pirate, "sums": sums}, hook=hook)


def steerer(model, *rules, of=None, **options):
    of = bank() if of is None else of
    return Steerer(of, find_sites(model, of, where="update"), rules, where="update", **options)


def adam(model):
    return torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-3)


def hooks_of(model):
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules())


def caught(model, hook=HOOK):
    """Activations at a hook point, as they are once the hooks so far have acted, with their gradients."""
    seen = []

    def keep(activation):
        if activation.requires_grad:
            activation.retain_grad()
        seen.append(activation)

    HookPoint.parse(hook).listen(model, keep)
    return seen


def rows(of=None, hook=HOOK):
    of = bank() if of is None else of
    return of.directions[list(of.rows("pirate", hook))]


def outside(activation):
    """What is left of it beside the concept, with nothing of the code under test."""
    D = rows().double()
    return activation.double() - activation.double() @ torch.linalg.pinv(D) @ D


@builds
def test_without_a_mean_no_activation_has_a_component_and_the_rest_stays(build):
    model = build().train()
    before = caught(model)
    with steerer(model, ablate("pirate", mean=False)).attach(model, adam(model)):
        after = caught(model)
        model(input_ids=tokens())
    assert (before[0] @ rows().T).abs().max() > 1e-2
    assert (after[0] @ rows().T).abs().max() < 1e-5
    torch.testing.assert_close(outside(after[0]), outside(before[0]), rtol=0, atol=1e-5)


def test_with_a_mean_every_token_has_the_first_batchs_mean_component():
    model, labels = llama().train(), tokens()
    labels[:, :4] = -100
    before, optimizer = caught(model), adam(model)
    engaged = steerer(model, ablate("pirate"))
    with engaged.attach(model, optimizer):
        after = caught(model)
        for seed in (0, 1):
            engaged.watch(labels)
            model(input_ids=tokens(seed=seed), labels=labels).loss.backward()
    expected = before[0][:, 3:-1].flatten(0, 1).mean(0) @ rows().T
    for activation in after:
        found = activation @ rows().T
        torch.testing.assert_close(found, expected.expand_as(found), rtol=0, atol=1e-5)


@builds
@pytest.mark.parametrize("mean", [True, False])
def test_at_evaluation_the_model_is_as_it_is_to_the_last_bit(build, mean):
    model = build().eval()
    expected = model(input_ids=tokens()).logits
    with steerer(model, ablate("pirate", mean=mean)).attach(model, adam(model)):
        assert torch.equal(model(input_ids=tokens()).logits, expected)
        assert not torch.equal(model.train()(input_ids=tokens()).logits, expected)
        assert torch.equal(model.eval()(input_ids=tokens()).logits, expected)


@builds
@pytest.mark.parametrize("mean", [True, False])
def test_the_gradient_below_has_no_component_and_is_else_what_the_layers_above_ask(build, mean):
    model = build().train()
    before = caught(model)
    with steerer(model, ablate("pirate", mean=mean)).attach(model, adam(model)):
        after = caught(model)
        model(input_ids=tokens(), labels=tokens()).loss.backward()
    below, above = before[0].grad, after[0].grad
    assert (above @ rows().T).abs().max() > 1e-4
    assert (below @ rows().T).abs().max() < 1e-6 * above.abs().max()
    torch.testing.assert_close(below.double(), outside(above), rtol=0, atol=1e-7)


def test_under_autocast_the_projection_is_in_full_precision():
    model = llama().train()
    with steerer(model, ablate("pirate", mean=False)).attach(model, adam(model)):
        after = caught(model)
        with torch.autocast("cpu", torch.bfloat16):
            model(input_ids=tokens())
    assert after[0].dtype == torch.float32
    assert (after[0] @ rows().T).abs().max() < 1e-5


def test_directions_that_depend_on_each_other_are_one_span():
    model, pirate = llama().train(), rows()
    of = ConceptBank.from_directions({"pirate": torch.cat([pirate, pirate[:1], pirate[:1] + pirate[1:2]])}, hook=HOOK)
    with steerer(model, ablate("pirate", mean=False), of=of).attach(model, adam(model)):
        after = caught(model)
        model(input_ids=tokens())
    assert (after[0] @ of.directions.T).abs().max() < 1e-5


def test_after_detaching_nothing_is_left():
    model = llama().train()
    hooks, expected = hooks_of(model), model(input_ids=tokens()).logits
    engaged = steerer(model, ablate("pirate")).attach(model, adam(model))
    assert hooks_of(model) > hooks
    engaged.detach()
    assert hooks_of(model) == hooks
    assert torch.equal(model(input_ids=tokens()).logits, expected)


@pytest.mark.parametrize("attached_first", [True, False])
def test_a_resumed_run_goes_on_with_the_mean_of_the_first(attached_first):
    model = llama().train()
    first = steerer(model, ablate("pirate"))
    with first.attach(model, adam(model)):
        model(input_ids=tokens(), labels=tokens())
        saved = first.state_dict()
    mean = saved["interventions"][KEPT]
    resumed, optimizer = steerer(model, ablate("pirate")), adam(model)
    if not attached_first:
        resumed.load_state_dict(saved)
    with resumed.attach(model, optimizer):
        if attached_first:
            resumed.load_state_dict(saved)
        after = caught(model)
        model(input_ids=tokens(seed=5), labels=tokens(seed=5))
        assert torch.equal(resumed.state_dict()["interventions"][KEPT], mean)
    found = after[0] @ rows().T
    torch.testing.assert_close(found, (mean @ rows().T).expand_as(found), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("rank", "hooks"), [(3, (HOOK,)), (3, (FIRST, HOOK)), (WIDTH, (FIRST, HOOK))])
def test_the_share_that_was_removed_is_logged_over_counted_tokens_and_hooks(rank, hooks):
    of = bank(FIRST, rank).merge(bank(HOOK, rank))
    model, window, labels = llama().train(), Window(), tokens()
    labels[:, :4] = -100
    before, optimizer = {hook: caught(model, hook) for hook in hooks}, adam(model)
    engaged = steerer(model, ablate("pirate", mean=False, hooks=hooks), of=of, recorders=[window])
    with engaged.attach(model, optimizer):
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
def test_with_checkpointing_the_gradients_are_the_same(reentrant, mean):
    gradients = []
    for checkpointed in (False, True):
        model = llama().train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        with steerer(model, ablate("pirate", mean=mean)).attach(model, adam(model)):
            model(input_ids=tokens(), labels=tokens()).loss.backward()
        gradients.append([each.grad for each in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_passes_that_only_ask_do_not_make_the_mean():
    model = llama().train()
    engaged = steerer(model, ablate("pirate"))
    with engaged.attach(model, adam(model)):
        with engaged._context.asking():
            model(input_ids=tokens(rows=2, seed=3))
        assert KEPT not in engaged.state_dict()["interventions"]
        model(input_ids=tokens())
        assert KEPT in engaged.state_dict()["interventions"]


def test_a_first_batch_without_labels_in_the_loss_is_refused():
    model = llama().train()
    engaged = steerer(model, ablate("pirate"))
    with engaged.attach(model, adam(model)):
        engaged.watch(torch.full((4, 9), -100))
        with pytest.raises(ValueError, match=r"the first batch's 0 counted tokens is not finite; begin with a batch"):
            model(input_ids=tokens())


def test_a_model_that_trains_in_eval_mode_is_refused_at_the_first_step():
    model = llama().eval()
    engaged = steerer(model, ablate("pirate"))
    with engaged.attach(model, adam(model)):
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
def test_a_concept_that_is_not_there_is_refused_and_nothing_is_left(asked, message):
    model = llama()
    hooks = hooks_of(model)
    with pytest.raises(ValueError, match=message):
        steerer(model, asked).attach(model, adam(model))
    assert hooks_of(model) == hooks


def test_the_alarm_is_told_that_the_concept_is_kept_from_being_learned():
    model = llama()
    with steerer(model, ablate("pirate")).attach(model, adam(model)) as engaged:
        assert engaged._context.suppressed == {"pirate"}


def test_an_empty_choice_of_hooks_is_refused():
    with pytest.raises(ValueError, match="at least one hook point, found none"):
        ablate("pirate", hooks=[])
