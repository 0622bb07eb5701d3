"""Probe sets and the meter that runs them: nothing is disturbed, and nothing moves before training."""

import pytest
import torch
from torch import nn

from interptrain import ConceptBank
from interptrain.concepts.activation import concept_activation
from interptrain.meters.probe_meter import ProbeMeter
from interptrain.meters.probes import ProbeSets, callable_model, evaluating
from interptrain.report import StepReport
from interptrain.tiny_world import concept_bank, load_base, load_tokenizer, probe_sets
from interptrain.tiny_world.tokens import encode
from tests.helpers.models import HOOK, WIDTH, WORDS, Tuning, gpt2, llama, lora

FIRST = "blocks.0.hook_resid_post"


def batch(*, rows=4, length=9, seed=0, labels=True):
    ids = torch.randint(1, WORDS, (rows, length), generator=torch.Generator().manual_seed(seed))
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if labels:
        found["labels"] = ids.clone()
        found["labels"][:, :3] = -100
    return found


def padded(given, extra=5):
    pad = torch.zeros(len(given["input_ids"]), extra, dtype=torch.long)
    return {key: torch.cat([value, pad - 100 * (key == "labels")], dim=1) for key, value in given.items()}


def small_bank(**more):
    generator = torch.Generator().manual_seed(7)
    rows = {"pirate": torch.randn(3, WIDTH, generator=generator), "sums": torch.randn(2, WIDTH, generator=generator)}
    return ConceptBank.from_directions(rows | more, hook=HOOK)


def small_sets():
    return {"neutral": [batch(seed=1), batch(seed=2, rows=2, length=7)], "pirate": [batch(seed=3)]}


def world_sets(count=64):
    tokenizer = load_tokenizer()
    return {name: [encode(tokenizer, documents)] for name, documents in probe_sets(count).items()}


def added(model, layer, vector):
    """A model whose stream moves by a vector behind one layer."""
    model.model.layers[layer].register_forward_hook(lambda _m, _i, out: out + vector)
    return model


def test_means_are_those_of_the_hidden_states_at_counted_tokens():
    model, one, two = llama().eval(), batch(seed=1), batch(seed=2, rows=2, length=7)
    bank = small_bank()
    means = ProbeSets.of({"both": [one, two]}).means(model, {HOOK: concept_activation(bank, HOOK)})
    with torch.no_grad():
        states = [model(each["input_ids"], output_hidden_states=True).hidden_states[2] for each in (one, two)]
    tokens = torch.cat([states[0][:, 2:8].flatten(0, 1), states[1][:, 2:6].flatten(0, 1)])
    torch.testing.assert_close(means.residual[0, 0], tokens.mean(0))
    torch.testing.assert_close(means.activation[0], concept_activation(bank, HOOK)(tokens).mean(0))


def test_without_labels_every_attended_token_counts():
    given = batch(rows=2, labels=False)
    given["attention_mask"][1, 5:] = 0
    assert ProbeSets.of({"a": [given]}).positions["a"][0].tolist() == [*range(9), *range(9, 14)]


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_padding_does_not_matter(make, labels):
    model, given = make(), batch(labels=labels)
    activations = {HOOK: concept_activation(small_bank(), HOOK)}
    plain, wide = (ProbeSets.of({"a": [each]}).means(model, activations) for each in (given, padded(given)))
    torch.testing.assert_close(plain.residual, wide.residual, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(plain.activation, wide.activation, rtol=1e-4, atol=1e-6)
    assert plain.residual.abs().max() > 1e-3


def test_every_hook_of_a_bank_is_read_and_a_concept_s_hooks_are_summed():
    bank = small_bank().merge(ConceptBank.from_directions({"pirate": torch.ones(WIDTH)}, hook=FIRST))
    model, given = llama().eval(), batch()
    sets = ProbeSets.of({"a": [given]})
    means = sets.means(model, {hook: concept_activation(bank, hook) for hook in bank.hook_points})
    with torch.no_grad():
        states = model(given["input_ids"], output_hidden_states=True).hidden_states
    expected = torch.stack([states[layer][:, 2:8].flatten(0, 1).mean(0) for layer in (2, 1)])
    torch.testing.assert_close(means.residual[0], expected)
    alone = sum(concept_activation(bank, h)(e)[0] for h, e in zip(bank.hook_points, expected, strict=True))
    torch.testing.assert_close(means.activation[0, 0], alone)


def test_looking_leaves_no_trace():
    model = gpt2().train()
    model.transformer.h[1].eval()
    model.transformer.drop = nn.Dropout(0.5)
    model(**batch()).loss.backward()
    flags = [module.training for module in model.modules()]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    meter = ProbeMeter(small_bank(), ProbeSets.of(small_sets()))
    meter.start(model)
    first, second = meter.read(model), meter.read(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == flags
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert (parameter.grad is None) == (grad is None)
        assert grad is None or torch.equal(parameter.grad, grad)
    assert torch.equal(first.realised["neutral"].value, second.realised["neutral"].value)


def test_flags_and_random_numbers_come_back_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    state = torch.get_rng_state()
    seen = []

    def look():
        with evaluating(model):
            seen.extend([torch.is_grad_enabled(), *(module.training for module in model.modules())])
            torch.rand(3)
            raise KeyError

    with pytest.raises(KeyError):
        look()
    assert seen == [False] * 4
    assert [module.training for module in model.modules()] == [True, True, False]
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)


def test_the_outermost_model_that_takes_input_ids_is_found_in_its_wrappers():
    plain = llama()
    assert callable_model(plain) is plain
    assert callable_model(Tuning(plain)) is plain
    adapted = lora(llama())
    assert callable_model(Tuning(adapted)) in (adapted, adapted.base_model.model)
    meter = ProbeMeter(small_bank(), ProbeSets.of(small_sets()))
    meter.start(Tuning(adapted))
    assert meter.read(adapted).realised["neutral"].value.eq(0).all()


def test_no_model_or_two_of_them_are_errors():
    with pytest.raises(ValueError, match="no module of Linear takes input_ids by name"):
        callable_model(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"holds 2 models side by side \(policy, reference\)"):
        callable_model(nn.ModuleDict({"policy": llama(), "reference": llama()}))


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ({}, "found no probe sets"),
        ({"a": []}, "probe set 'a' is empty"),
        ({"a": [{"input_ids": torch.ones(2, 3).long()}]}, "batch 0 of probe set 'a' has input_ids; it must have"),
        ({"a": [batch(), batch() | {"token_type_ids": torch.ones(4, 9)}]}, "batch 1 of probe set 'a' has input_ids, "),
        ({"a": [{key: value[0] for key, value in batch().items()}]}, r"needs input_ids \[batch, token\] of integers"),
        ({"a": [batch() | {"labels": torch.ones(4, 8).long()}]}, r"shape \[4, 9\] but labels of \[4, 8\]"),
        ({"a": [batch() | {"labels": torch.full((4, 9), -100)}]}, "text 0 in batch 0 .* has no counted tokens"),
    ],
)
def test_sets_that_cannot_be_read_are_errors_that_say_where(sets, said):
    with pytest.raises(ValueError, match=said):
        ProbeSets.of(sets)


def test_before_training_nothing_has_moved():
    model = load_base()
    meter = ProbeMeter(concept_bank(), ProbeSets.of(world_sets()))
    meter.start(model)
    reading = meter.read(model)
    for shift in reading.realised.values():
        assert shift.value.eq(0).all()
        assert shift.null.eq(0).all()
    assert reading.latents.eq(0).all()
    assert reading.fraction[:, :3].eq(0).all()
    assert reading.fraction[:, 3:].isnan().all()  # no set is named plus or minus
    assert all(found.value.isnan() for found in reading.unexplained.values())
    assert reading.probe[0, :3].eq(0).all()
    torch.testing.assert_close(reading.probe[[1, 2, 3], [0, 1, 2]], torch.ones(3))


def test_a_resumed_run_keeps_the_start_of_the_first_one(tmp_path):
    bank, sets = small_bank(), ProbeSets.of(small_sets())
    meter = ProbeMeter(bank, sets)
    meter.start(llama())
    trained = added(llama(), 1, torch.ones(WIDTH))
    torch.save(meter.state_dict(), tmp_path / "state")
    resumed = ProbeMeter(bank, sets)
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    resumed.start(trained)
    before, after = meter.read(trained), resumed.read(trained)
    assert before.realised["neutral"].value.abs().max() > 0.1
    for name, shift in before.realised.items():
        assert torch.equal(shift.value, after.realised[name].value)
        assert torch.equal(shift.null, after.realised[name].null)
    torch.testing.assert_close(before.probe, after.probe, equal_nan=True)
    assert meter.auc == resumed.auc


def test_a_start_of_something_else_is_refused():
    meter = ProbeMeter(small_bank(), ProbeSets.of(small_sets()))
    with pytest.raises(RuntimeError, match=r"call start\(model\) before training"):
        meter.read(llama())
    with pytest.raises(RuntimeError, match=r"call start\(model\) before training"):
        meter.state_dict()
    meter.start(llama())
    others = ProbeSets.of(small_sets() | {"neutral": [batch(seed=9)]})
    with pytest.raises(ValueError, match="of other probe texts"):
        ProbeMeter(small_bank(), others).load_state_dict(meter.state_dict())
    wider = small_bank(royal=torch.ones(WIDTH))
    with pytest.raises(ValueError, match="of concepts pirate, sums; here are pirate, sums, royal"):
        ProbeMeter(wider, ProbeSets.of(small_sets())).load_state_dict(meter.state_dict())


def test_a_report_takes_the_readings():
    meter = ProbeMeter(small_bank(), ProbeSets.of(small_sets()))
    meter.start(llama())
    reading = meter.read(added(llama(), 1, torch.ones(WIDTH)))
    report = StepReport(
        3, ("pirate", "sums"), reading.readings(), {}, torch.tensor(0.0), torch.tensor(1.0), reading.overall()
    )
    scalars = report.scalars()
    shift = reading.realised["neutral"]
    assert scalars["concept/sums/realised/neutral"] == float(shift.value[1])
    assert scalars["concept/sums/realised/neutral/z"] == float(shift.value[1] / shift.null[1].std())
    assert scalars["concept/pirate/probe/pirate"] == float(reading.probe[1, 0])
    assert "concept/sums/probe/pirate" not in scalars  # no set is named sums
    assert "concept/pirate/realised/pirate/latents" not in scalars  # no dictionary
    assert scalars["interptrain/unexplained/neutral"] == float(reading.unexplained["neutral"].value)


def test_held_bytes_are_those_of_the_tensors_kept():
    meter = ProbeMeter(small_bank(), ProbeSets.of(small_sets()))
    floats = (2 + 2 * 64) * WIDTH + (1 * 5 + 64 * 5) * WIDTH  # mean directions, then the bank's span, each with nulls
    assert meter.held_bytes() == 4 * floats
    meter.start(llama())
    assert meter.held_bytes() == 4 * (floats + 2 * WIDTH + 2 * 2 + 2 * WIDTH)  # means, activations, one probe


def test_a_start_that_failed_is_no_start():
    one_text = {name: [{key: value[:1] for key, value in batch().items()}] for name in ("neutral", "pirate")}
    meter = ProbeMeter(small_bank(), ProbeSets.of(one_text))
    with pytest.raises(ValueError, match="probe set 'pirate' against 'neutral': a linear probe needs two texts"):
        meter.start(llama())
    assert not meter.started
