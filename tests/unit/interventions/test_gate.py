"""Gates: the loss that trains is the hand-weighted one, whatever the loop computed."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from interptrain import ConceptBank, emphasise, gate, observe
from interptrain.callbacks.lightning import ConceptSteering
from interptrain.interventions.gate import NULL_QUANTILE, _split
from interptrain.meters.spans import Spans
from interptrain.recorders import MemoryRecorder
from tests.helpers.interventions import (
    LATER,
    assert_identical,
    attached,
    directions_of,
    every_model,
    hooks_of,
    make_bank,
    two_processes,
)
from tests.helpers.models import WIDTH, Sentences, fit, llama


@pytest.fixture
def bank():
    return make_bank()


@pytest.fixture
def batch():
    return Sentences(count=8)[:]


def token_losses(model, batch):
    """Each token's share of the mean loss, `[batch, token]`, and the activations at the hook."""
    caught = []
    handle = model.model.layers[1].register_forward_hook(lambda _module, _args, output: caught.append(output))
    logits = model(input_ids=batch["input_ids"]).logits
    handle.remove()
    labels = batch["labels"][:, 1:]
    losses = cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    return losses / (labels != -100).sum(), caught[0]


def shares(model, batch, directions):
    losses, activations = token_losses(model, batch)
    (gradient,) = torch.autograd.grad(losses.sum(), activations)
    basis = torch.linalg.qr(directions.T)[0]
    return ((gradient @ basis).square().sum(-1) / gradient.square().sum(-1))[:, :-1]


def between(values):
    """A threshold in the middle of the values, and no value itself."""
    values = values.sort().values
    return float(values[len(values) // 2 - 1 : len(values) // 2 + 1].mean())


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_equal(found, wanted, *, tolerance=1e-5):
    for name, each in wanted.items():
        assert (found[name] - each).abs().max() <= tolerance * each.abs().max() + 1e-9, name


@pytest.mark.parametrize(("act", "weight"), [(gate, 0.0), (gate, 0.25), (emphasise, 10.0)])
def test_the_gradient_is_that_of_the_loss_weighted_by_hand(bank, batch, act, weight):
    model = llama()
    share = shares(model, batch, bank.directions[:3])
    counted = batch["labels"][:, 1:] != -100
    threshold = float(share[counted].median())
    weighted = torch.where((share > threshold) & counted, weight, 1.0)
    wanted = gradients(model, (token_losses(model, batch)[0] * weighted).sum())
    with attached(model, bank, act("pirate", weight=weight, threshold=threshold)) as steerer:
        steerer.watch(batch["labels"])
        found = gradients(model, model(**batch).loss)
    assert_equal(found, wanted)


def test_a_loss_of_the_user_s_own_is_weighted_too(bank, batch):
    model = llama()

    def own(logits):
        return logits.logsumexp(-1)[batch["labels"] != -100].square().sum()

    with attached(model, bank, gate("pirate", threshold=0.0)) as steerer:
        steerer.watch(None)
        found = gradients(model, own(model(input_ids=batch["input_ids"]).logits))
    assert all(each.abs().max() == 0 for each in found.values())


def test_a_whole_example_is_dropped_by_the_share_of_its_tokens_together(bank, batch):
    model = llama()
    losses, activations = token_losses(model, batch)
    (gradient,) = torch.autograd.grad(losses.sum(), activations)
    basis = torch.linalg.qr(bank.directions[:3].T)[0]
    share = (gradient @ basis).square().sum((1, 2)) / gradient.square().sum((1, 2))
    threshold = float(share.sort().values[4:6].mean())
    weighted = (share <= threshold).float()[:, None]
    assert 0 < weighted.sum() < 8
    wanted = gradients(model, (token_losses(model, batch)[0] * weighted).sum())
    with attached(model, bank, gate("pirate", threshold=threshold, per="example")) as steerer:
        steerer.watch(batch["labels"])
        found = gradients(model, model(**batch).loss)
    assert_equal(found, wanted)


def test_weights_of_several_gates_multiply_and_each_asks_for_the_unweighted_gradient(bank, batch):
    model = llama()
    counted = batch["labels"][:, 1:] != -100
    one, other = shares(model, batch, bank.directions[:3]), shares(model, batch, bank.directions[3:])
    low, high = between(one[counted]), between(other[counted])
    weighted = torch.where((one > low) & counted, 0.5, 1.0) * torch.where((other > high) & counted, 4.0, 1.0)
    wanted = gradients(model, (token_losses(model, batch)[0] * weighted).sum())
    acts = gate("pirate", weight=0.5, threshold=low), emphasise("sums", 4.0, threshold=high)
    with attached(model, bank, *acts) as steerer:
        steerer.watch(batch["labels"])
        found = gradients(model, model(**batch).loss)
    assert_equal(found, wanted)


@every_model
def test_a_gate_that_drops_nothing_is_bit_identical_to_no_gate(bank, make, tmp_path):
    plain, gated = (
        fit(make(), tmp_path, ConceptSteering(bank, act, where="update", summary=False), steps=2)
        for act in (observe(), [gate("pirate", threshold=1.0)])
    )
    assert plain.losses == gated.losses
    assert_identical(plain, gated)


def test_the_question_behind_the_gate_is_not_counted_as_demand(bank, tmp_path):
    curves = []
    for acts in ([observe()], [gate("pirate", threshold=1.0)]):
        recorder = MemoryRecorder()
        fit(llama(), tmp_path, ConceptSteering(bank, acts, recorders=[recorder], summary=False), steps=2)
        curves.append(recorder.curves())
    for name in curves[0]:
        assert curves[0][name] == curves[1][name], name


def splits(shares, energies):
    """Between the means, in log-odds, of Otsu's two groups as he writes them; more than one where some are as good."""
    pairs = sorted(zip(shares, energies, strict=True))
    between, middle = [], []
    for k in range(1, len(pairs)):
        inside, outside = (sum(energy for _, energy in group) for group in (pairs[:k], pairs[k:]))
        low = sum(share * energy for share, energy in pairs[:k]) / inside
        high = sum(share * energy for share, energy in pairs[k:]) / outside
        between.append(inside * outside * (low - high) ** 2)
        odds = (low / (1 - low) * high / (1 - high)) ** 0.5
        middle.append(odds / (1 + odds))
    return [each for each, told_apart in zip(middle, between, strict=True) if told_apart >= max(between) * (1 - 1e-6)]


@pytest.mark.parametrize("concept", ["pirate", "sums"])
def test_without_a_threshold_it_splits_the_shares_where_other_directions_seldom_reach(bank, batch, concept):
    model, count = llama(), len(bank.rows(concept))
    with attached(model, bank, gate(concept)) as steerer:
        steerer.watch(batch["labels"])
        model(**batch).loss.backward()
        kept = float(steerer.state_dict()["interventions"][f"gate/{concept}/threshold"])
    counted = batch["labels"][:, 1:] != -100
    own = shares(model, batch, directions_of(bank, concept))[counted]
    losses, activations = token_losses(model, batch)
    (gradient,) = torch.autograd.grad(losses.sum(), activations)
    tokens = gradient[:, :-1][counted]
    groups = Spans.of(bank.select(concept), range(count)).null
    null = torch.einsum("td,gkd->tgk", tokens, groups).square().sum(-1) / tokens.square().sum(-1, keepdim=True)
    (found,) = splits(own.tolist(), tokens.square().sum(-1).tolist())
    if found > float(null.quantile(NULL_QUANTILE)) * 1.001:
        assert kept == pytest.approx(found, rel=1e-4)
    else:
        assert float((null <= kept).float().mean()) == pytest.approx(NULL_QUANTILE, abs=2 / null.numel())


asked = st.lists(
    st.tuples(st.floats(0.001, 0.999), st.floats(0.01, 100)), min_size=2, max_size=40, unique_by=lambda pair: pair[0]
)


@given(pairs=asked, scale=st.sampled_from([1, 1e-9]))
def test_the_split_is_between_the_groups_that_are_told_apart_best(pairs, scale):
    own, energies = zip(*pairs, strict=True)
    shares, weights = (torch.tensor(values, dtype=torch.float64) for values in (own, energies))
    found = float(_split(shares, scale * weights))
    assert any(found == pytest.approx(each, rel=1e-6) for each in splits(own, energies))


def test_a_token_that_hardly_changes_the_model_does_not_move_the_split():
    shares, energies = torch.tensor([0.05, 0.1, 0.6, 0.7]), torch.ones(4)
    found = _split(shares, energies)
    assert 0.1 < float(found) < 0.6
    more = _split(torch.cat([shares, torch.tensor([0.3, 0.4, 0.5])]), torch.cat([energies, torch.full((3,), 1e-6)]))
    torch.testing.assert_close(more, found, rtol=0, atol=1e-4)


def test_shares_that_ask_for_nothing_are_not_split():
    assert _split(torch.tensor([0.1, 0.9]), torch.zeros(2)).isnan()
    assert _split(torch.tensor([0.1]), torch.ones(1)).isnan()


def test_a_share_of_tokens_can_be_asked_for_instead(bank, batch):
    model, recorder = llama(), MemoryRecorder()
    with attached(model, bank, gate("pirate", tokens=0.25), recorders=[recorder]) as steerer:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        steerer.attach(model, optimizer)
        steerer.watch(batch["labels"])
        model(**batch).loss.backward()
        steerer.before_step()
        optimizer.step()
    counted = int((batch["labels"][:, 1:] != -100).sum())
    assert recorder.curves()["interptrain/gate/pirate/tokens"] == [pytest.approx(0.25, abs=1 / counted)]


def test_the_threshold_of_the_first_batch_is_that_of_a_resumed_run(bank, batch):
    model = llama()
    with attached(model, bank, gate("pirate")) as steerer:
        steerer.watch(batch["labels"])
        model(**batch).loss.backward()
        state = steerer.state_dict()
    with attached(llama(seed=1), bank, gate("pirate")) as resumed:
        resumed.load_state_dict(state)
        assert torch.equal(
            resumed.state_dict()["interventions"]["gate/pirate/threshold"],
            state["interventions"]["gate/pirate/threshold"],
        )


def test_the_gate_asks_at_the_concept_s_last_hook(bank):
    both = bank.merge(ConceptBank.from_directions({"pirate": torch.ones(WIDTH)}, hook=LATER))
    model = llama()
    with attached(model, both, gate("pirate")) as steerer:
        batch = {"input_ids": torch.ones(2, 4, dtype=torch.long)}
        steerer.watch(None)
        model(**batch, labels=batch["input_ids"]).loss.backward()
        hooks = [len(layer._forward_hooks) for layer in model.model.layers]
    assert hooks[2] > hooks[1]  # the meters listen at both, the gate at the last


def test_checkpointing_that_is_not_reentrant_changes_nothing(bank, batch):
    found = []
    for checkpointing in (False, True):
        model = llama().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with attached(model, bank, gate("pirate", tokens=0.5)) as steerer:
            steerer.watch(batch["labels"])
            found.append(gradients(model, model(**batch, use_cache=False).loss))
    assert_equal(found[1], found[0])


@pytest.mark.parametrize("first", ["overflows", "has nothing to count"])
def test_a_first_batch_that_says_nothing_leaves_the_threshold_to_the_next(bank, batch, first):
    model = llama()
    silent = dict(batch, labels=torch.full_like(batch["labels"], -100)) if first == "has nothing to count" else batch
    found = []
    with attached(model, bank, gate("pirate")) as steerer:
        for each, scale in ((silent, torch.inf if first == "overflows" else 1.0), (batch, 1.0)):
            steerer.watch(each["labels"])
            (model(input_ids=each["input_ids"]).logits.log_softmax(-1)[..., 0].mean() * scale).backward()
            found.append(steerer.state_dict()["interventions"].get("gate/pirate/threshold"))
    assert found[0] is None
    assert 0 < found[1] < 1


def test_two_gates_of_one_concept_are_refused(bank):
    with pytest.raises(ValueError, match="is there already"):
        attached(llama(), bank, gate("pirate"), gate("pirate", threshold=0.5))


def test_processes_share_the_mean_of_their_thresholds(bank, batch, monkeypatch):
    found = []
    for others in (None, 0.5):
        if others is not None:
            two_processes(monkeypatch, lambda value: value.add_(0.5))
        model = llama()
        with attached(model, bank, gate("pirate")) as steerer:
            steerer.watch(batch["labels"])
            model(**batch).loss.backward()
            found.append(steerer.state_dict()["interventions"]["gate/pirate/threshold"])
    assert found[1] == pytest.approx((found[0] + 0.5) / 2)


def test_reentrant_checkpointing_is_refused_by_name(bank, batch):
    model = llama().train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    with attached(model, bank, gate("pirate")) as steerer:
        steerer.watch(batch["labels"])
        with pytest.raises(ValueError, match="use_reentrant"):
            model(**batch, use_cache=False).loss.backward()


def test_a_compiled_model_is_refused_by_name(bank):
    model = llama()
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(ValueError, match=r"torch\.compile"):
        attached(compiled, bank, gate("pirate"))
    model.compile(backend="eager")
    with pytest.raises(ValueError, match=r"torch\.compile"):
        attached(model, bank, gate("pirate"))


def test_a_model_that_never_makes_logits_is_refused_by_name(bank, batch):
    model = llama()
    model.register_forward_hook(lambda _module, _args, output: {"loss": output.loss})
    with attached(model, bank, gate("pirate")) as steerer:
        steerer.watch(batch["labels"])
        with pytest.raises(ValueError, match="no logits"):
            model(**batch)


def test_nothing_is_left_behind(bank, batch):
    model = llama()
    before = hooks_of(model)
    with attached(model, bank, gate("pirate"), emphasise("sums")):
        assert hooks_of(model) > before
    assert hooks_of(model) == before
    untouched = llama()
    assert_equal(gradients(model, model(**batch).loss), gradients(untouched, untouched(**batch).loss), tolerance=0)


def test_looking_at_the_model_is_not_gated(bank, batch):
    model = llama()
    with attached(model, bank, gate("pirate")), torch.no_grad():
        assert torch.equal(model(**batch).logits, llama()(**batch).logits)


def test_a_gradient_that_is_not_finite_passes_as_it_is(bank, batch):
    model = llama()
    with attached(model, bank, gate("pirate", threshold=0.5)) as steerer:
        steerer.watch(batch["labels"])
        found = gradients(model, model(**batch).loss * math.nan)
    assert all(each.isnan().any() for each in found.values())


@pytest.mark.parametrize(
    ("act", "options", "words"),
    [
        (gate, {"weight": 1.0}, "emphasise raises"), (gate, {"weight": -0.1}, "from 0"),
        (gate, {"threshold": 1.5}, "from 0 to 1"), (gate, {"tokens": -0.5}, "from 0 to 1"),
        (gate, {"threshold": 0.5, "tokens": 0.5}, "not both"), (emphasise, {"weight": 1.0}, "gate lowers"),
        (emphasise, {"weight": math.inf}, "finite"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_refused(act, options, words):
    with pytest.raises(ValueError, match=words):
        act("pirate", **options)


def test_an_unknown_concept_or_hook_is_refused_before_training(bank):
    with pytest.raises(ValueError, match="unknown concept 'ghost'"):
        attached(llama(), bank, gate("ghost"))
    with pytest.raises(ValueError, match="no directions at"):
        attached(llama(), bank, gate("pirate", hook=LATER))
