"""Each meter against a dense float64 computation that shares no code with it."""

from dataclasses import replace

import pytest
import torch

from interptrain import ConceptBank, Steerer, find_sites, observe, one_sided, suppress
from interptrain.concepts import Readout
from interptrain.meters import DemandMeter, MeanInputs, Positions, Spans, loss_positions, mean_directions
from interptrain.sites import HookPoint
from tests.helpers.models import HOOK, WIDTH, Sentences, llama


def dictionary_bank(*, latents=200, seed=0):
    """Two concepts of latents of one dictionary, of which every third latent is dead."""
    generator = torch.Generator().manual_seed(seed)
    decoder = torch.randn(latents, WIDTH, generator=generator)
    alive = torch.arange(latents) % 3 != 0
    bank = ConceptBank.from_directions({"pirate": decoder[[1, 2, 4]], "sums": decoder[[5]]}, hook=HOOK)
    return ConceptBank(
        bank.directions,
        bank.concepts,
        bank.hooks,
        bank.sources,
        readouts={HOOK: Readout({}, {"W_dec": decoder}, alive)},
    )


def batch():
    return {key: torch.stack([item[key] for item in Sentences(count=8)]) for key in ("input_ids", "labels")}


def activation_gradients(model, examples):
    """g = dL/dh at the output of block 1, by asking autograd for it."""
    kept = {}
    handle = model.model.layers[1].register_forward_hook(lambda module, args, out: kept.update(h=out))
    loss = model(**examples).loss
    handle.remove()
    return torch.autograd.grad(loss, kept["h"])[0].double()


def test_demand_is_the_share_of_the_loss_tokens_activation_gradients():
    model, bank, examples = llama(), dictionary_bank(), batch()
    gradients = activation_gradients(model, examples)
    counted = torch.zeros(8, 12, dtype=torch.bool)
    counted[:, :-1] = examples["labels"][:, 1:] != -100
    chosen = gradients[counted]
    basis = torch.linalg.qr(bank.select("pirate").directions.double().T)[0]
    mean = bank.select("pirate").directions.double().mean(0)

    steerer = Steerer(bank, find_sites(model, bank)).attach(model)
    steerer.watch(examples["labels"])
    model(**examples).loss.backward()
    demand = steerer.before_step().readings["demand"]
    share = (chosen @ basis).square().sum() / chosen.square().sum()
    assert float(demand.share[0]) == pytest.approx(float(share), rel=1e-4)
    signed = -(chosen @ (mean / mean.norm())).sum()
    assert float(demand.signed[0]) == pytest.approx(float(signed), rel=1e-3)


def test_two_accumulated_batches_are_read_as_one():
    bank, examples = dictionary_bank(), batch()

    def demand(parts):
        model = llama()
        steerer = Steerer(bank, find_sites(model, bank)).attach(model)
        for part in parts:
            steerer.watch(part["labels"])
            counted = (part["labels"][:, 1:] != -100).sum() / (examples["labels"][:, 1:] != -100).sum()
            (model(**part).loss * counted).backward()
        return steerer.before_step().readings["demand"]

    halves = [{key: value[at] for key, value in examples.items()} for at in (slice(0, 4), slice(4, 8))]
    whole, split = demand([examples]), demand(halves)
    torch.testing.assert_close(whole.share, split.share, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(whole.signed, split.signed, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(whole.null, split.null, rtol=1e-4, atol=1e-6)


def test_gradient_share_is_that_of_all_sites_together():
    model, bank, examples = llama(), dictionary_bank(), batch()
    sites = find_sites(model, bank)
    steerer = Steerer(bank, sites).attach(model)
    model(**examples).loss.backward()
    inside = whole = 0.0
    for site in sites:
        gradient = site.parameter.grad.double()
        gradient = gradient if site.axis == 0 else gradient.T
        basis = torch.linalg.qr(site.directions(bank.select("pirate").directions).double().T)[0]
        inside += float((basis.T @ gradient).square().sum())
        whole += float(gradient.square().sum())
    reading = steerer.before_step().readings["gradient"]
    assert float(reading.share[0]) == pytest.approx(inside / whole, rel=1e-4)


def test_the_null_of_random_gradients_is_rank_over_width():
    bank = dictionary_bank()
    spans = Spans.of(bank, range(len(bank.directions)))
    assert spans.from_dictionary
    noise = torch.randn(WIDTH, 4000, generator=torch.Generator().manual_seed(3))
    null = spans.null_energy(noise) / noise.square().sum()
    assert null.shape == (2, 64)
    assert float(null[0].mean()) == pytest.approx(3 / WIDTH, rel=0.02)
    assert float(null[1].mean()) == pytest.approx(1 / WIDTH, rel=0.02)


def test_null_groups_are_alive_latents_that_no_concept_uses():
    bank = dictionary_bank()
    readout = bank.readouts[HOOK]
    spans = Spans.of(bank, range(len(bank.directions)))
    cosines = (spans.null[:, 0] @ readout.directions.T).abs()  # the first row of a basis is the first latent
    best = cosines.max(-1)
    assert float(best.values.min()) > 0.999
    assert readout.alive[best.indices].all()
    assert not set(best.indices.tolist()) & {1, 2, 4, 5}


def test_null_groups_of_two_hooks_are_drawn_from_both_dictionaries_however_wide():
    first, second = (
        dictionary_bank(latents=9000),
        replace(dictionary_bank(seed=1), hooks=("blocks.0.hook_resid_post",) * 4),
    )
    second = replace(second, readouts=dict.fromkeys(second.hook_points, second.readouts[HOOK]))
    spans = Spans.of(first.merge(second), range(8), groups=400)
    used = {readout: set() for readout in ("wide", "narrow")}
    for name, bank in (("wide", first), ("narrow", second)):
        readout = next(iter(bank.readouts.values()))
        best = (spans.null[:, 0] @ readout.directions.T).abs().max(-1)
        used[name] = set(best.indices[best.values > 0.9999].tolist())
        assert not used[name] & {1, 2, 4, 5}
        assert all(index % 3 for index in used[name])
    assert max(used["wide"]) > 8192
    assert used["narrow"]
    assert len(used["wide"]) + len(used["narrow"]) > 350


def test_without_a_dictionary_the_null_is_random_directions():
    bank = ConceptBank.from_directions({"a": torch.ones(WIDTH)}, hook=HOOK)
    assert not Spans.of(bank, [0]).from_dictionary


def test_redundant_rows_add_no_rank():
    shared = torch.randn(WIDTH, generator=torch.Generator().manual_seed(4))
    bank = ConceptBank.from_directions({"twice": torch.stack([shared, shared, torch.ones(WIDTH)])}, hook=HOOK)
    assert Spans.of(bank, [0, 1, 2]).ranks.tolist() == [2]


def test_sign_flips_leave_one_direction_as_it_is():
    bank = dictionary_bank()
    signs = torch.tensor([[1.0, 1.0, 1.0, -1.0], [1.0, -1.0, 1.0, 1.0]])
    flipped = mean_directions(bank, range(4), signs)
    torch.testing.assert_close(flipped[0, 1], -bank.directions[3])
    torch.testing.assert_close(flipped.norm(dim=-1), torch.ones(2, 2))


def test_an_attention_sink_is_left_out():
    model, bank = llama(), dictionary_bank()
    with torch.no_grad():
        model.model.embed_tokens.weight[5] *= 1e4
    examples = batch()
    examples["input_ids"][:, 4] = 5
    meter = DemandMeter(bank, {HOOK: HookPoint.parse(HOOK)})
    meter.attach(model)
    meter.positions.current = loss_positions(examples["labels"])
    model(**examples).loss.backward()
    with_sink = meter.read()["demand"].share
    meter.positions.current[:, 4] = False
    model(**examples).loss.backward()
    torch.testing.assert_close(with_sink, meter.read()["demand"].share)
    assert meter.read() == {}


def test_a_model_that_is_frozen_below_the_hook_has_no_demand_and_says_so():
    model, bank = llama(), dictionary_bank()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.2" in name)
    steerer = Steerer(bank, find_sites(model, bank)).attach(model)
    model(**batch()).loss.backward()
    with pytest.warns(UserWarning, match="no gradient reached blocks.1.hook_resid_post in the first step"):
        report = steerer.before_step()
    assert set(report.readings) == {"gradient", "gain"}


def test_validation_forwards_are_not_read():
    model, bank = llama(), dictionary_bank()
    meter = DemandMeter(bank, {HOOK: HookPoint.parse(HOOK)})
    meter.attach(model)
    with torch.no_grad():
        model(**batch())
    assert meter.read() == {}


def test_mean_inputs_are_over_loss_tokens():
    model, examples = llama(), batch()
    positions, seen = Positions(), {}
    positions.current = loss_positions(examples["labels"])
    module = model.model.layers[0].mlp.down_proj
    module.register_forward_pre_hook(lambda _, args: seen.update(x=args[0].detach()))
    inputs = MeanInputs(positions)
    inputs.attach({module: 48}, torch.device("cpu"))
    model(**examples).loss.backward()
    torch.testing.assert_close(inputs.mean(module), seen["x"][positions.current].mean(0))
    inputs.end()
    first = inputs.mean(module)
    inputs.active = False
    model(**examples)
    assert torch.equal(inputs.mean(module), first)  # another optimizer may still ask
    inputs.active = True
    examples["input_ids"] = examples["input_ids"].flip(0)
    model(**examples)
    torch.testing.assert_close(inputs.mean(module), seen["x"][positions.current].mean(0))


def test_coefficients_are_how_far_the_step_would_move_the_stream():
    model, bank, examples = llama(), dictionary_bank(), batch()
    seen = {}

    def spy(coefficients, step):
        seen.update(coefficients)
        return {}

    steerer = Steerer(bank, find_sites(model, bank), spy).attach(model)
    steerer.watch(examples["labels"])
    kept = {}
    writers = [
        (i, part)
        for i in (0, 1)
        for part in (model.model.layers[i].self_attn.o_proj, model.model.layers[i].mlp.down_proj)
    ]
    for _, module in writers:
        module.register_forward_pre_hook(lambda m, args: kept.__setitem__(m, args[0].detach()))
    model(**examples).loss.backward()
    direction = bank.select("sums").directions[0]
    counted = loss_positions(examples["labels"])
    expected = -sum(float(direction @ m.weight.grad @ kept[m][counted].mean(0)) for _, m in writers)
    steerer.before_step()
    assert float(seen["sums"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_one_sided_steering_edits_a_step_toward_the_concept_and_leaves_one_away_from_it(sign):
    model, examples = llama(), batch()
    bank = ConceptBank.from_directions({"sums": sign * dictionary_bank().select("sums").directions}, hook=HOOK)
    steerer = Steerer(bank, find_sites(model, bank), one_sided(suppress("sums"))).attach(model)
    steerer.watch(examples["labels"])
    model(**examples).loss.backward()
    gradient = model.model.layers[0].mlp.down_proj.weight.grad
    before = gradient.clone()
    gain = float(steerer.before_step().readings["gain"].value[0])
    assert gain == (0.0 if sign == TOWARD_SUMS else 1.0)
    if gain == 0.0:
        assert (bank.directions @ gradient).abs().max() < 1e-6
    else:
        assert torch.equal(gradient, before)


TOWARD_SUMS = 1.0  # the sign of the direction that the first step of this model and batch moves toward


def test_steering_state_of_another_bank_is_refused():
    model, bank = llama(), dictionary_bank()
    steerer = Steerer(bank, find_sites(model, bank), observe())
    other = Steerer(bank.select("sums"), find_sites(model, bank))
    with pytest.raises(ValueError, match="of concepts pirate, sums; this run has sums"):
        other.load_state_dict(steerer.state_dict())


@pytest.mark.parametrize("option", [{"where": "somewhere"}, {"every": 0}, {"null_every": 0}])
def test_options_without_a_meaning_are_refused(option):
    model, bank = llama(), dictionary_bank()
    with pytest.raises(ValueError, match="must be"):
        Steerer(bank, find_sites(model, bank), **option)


def test_no_sites_is_an_error():
    with pytest.raises(ValueError, match="no sites to read or steer"):
        Steerer(dictionary_bank(), [])


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_does_not_change_what_is_read(reentrant):
    def demand(checkpointed):
        model, bank, examples = llama(), dictionary_bank(), batch()
        model.train()
        if checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        steerer = Steerer(bank, find_sites(model, bank)).attach(model)
        steerer.watch(examples["labels"])
        model(**examples).loss.backward()
        return steerer.before_step().readings["demand"]

    plain, checkpointed = demand(False), demand(True)
    torch.testing.assert_close(plain.share, checkpointed.share, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(plain.signed, checkpointed.signed, rtol=1e-5, atol=1e-7)
