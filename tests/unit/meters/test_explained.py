"""How much an SAE explains: against a float64 reference, and on probe texts while the model moves away."""

import pytest
import torch

from interptrain import tiny_world
from interptrain.callbacks.torch import attach
from interptrain.meters.explained import ENOUGH, ExplainedMeter, ExplainedVariance
from interptrain.meters.probe_meter import ProbeMeter
from interptrain.meters.probes import ProbeSets
from interptrain.tiny_world.shipped import load_sae

HOOK = "blocks.2.hook_resid_post"
KEY, START = f"interptrain/sae/{HOOK}/explained", f"interptrain/sae/{HOOK}/explained/start"


def reference(target, rebuilt):
    target, rebuilt = target.double(), rebuilt.double()
    return 1 - (target - rebuilt).square().sum() / (target - target.mean(0)).square().sum()


@pytest.mark.parametrize("mean", [0.0, 1e3])
@pytest.mark.parametrize("parts", [[50], [1, 49], [7, 0, 30, 13]])
def test_it_is_that_of_all_parts_together_whatever_their_mean(mean, parts):
    target = torch.randn(50, 6) * torch.tensor([3.0, 1, 1, 1, 1, 0.1]) + mean
    rebuilt = target + 0.5 * torch.randn(50, 6)
    found = ExplainedVariance()
    for y, x in zip(target.split(parts), rebuilt.split(parts), strict=True):
        found.add(y, x)
    assert found.tokens == 50
    torch.testing.assert_close(found.value().double(), reference(target, rebuilt), rtol=1e-4, atol=1e-4)


def test_all_of_it_is_one_the_mean_is_zero_and_nothing_is_not_a_number():
    target = torch.randn(50, 6) + 4
    whole, mean, none, same = (ExplainedVariance() for _ in range(4))
    whole.add(target, target)
    mean.add(target, target.mean(0).expand_as(target))
    same.add(torch.ones(3, 6), torch.zeros(3, 6))
    assert float(whole.value()) == pytest.approx(1, abs=1e-6)
    assert float(mean.value()) == pytest.approx(0, abs=1e-5)
    assert none.value().isnan()
    assert same.value().isnan()


def test_it_looks_at_all_attended_tokens_but_bos_and_outlying_ones_until_it_has_enough():
    bank, sae = tiny_world.concept_bank(), load_sae().requires_grad_(False)
    meter = ExplainedMeter(bank, ["neutral"])
    stream = torch.randn(40, 64, 128)
    stream[0, 5] *= 1e4
    counted = torch.ones(40, 64, dtype=torch.bool)
    counted[:, 0] = False
    meter.take("pirate", counted, {HOOK: 5 * stream})
    meter.take("neutral", counted, {HOOK: stream})
    meter.take("neutral", counted, {HOOK: 7 * stream})  # enough was seen
    counted[0, 5] = False
    assert counted.sum() > ENOUGH
    tokens = stream[counted]
    expected = reference(tokens, sae(tokens))
    torch.testing.assert_close(meter.read()[HOOK].double(), expected, rtol=1e-4, atol=1e-4)


def run(learning_rate, *, steps=4, state=None, **options):
    torch.manual_seed(0)
    model = tiny_world.load_base().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    options = {"probes": tiny_world.probe_batches(16), "probe_every": 2, "summary": False} | options
    batches = list(tiny_world.neutral_batches(steps))
    curves = []
    with attach(model, optimizer, tiny_world.concept_bank(), state=state, **options) as steering:
        for batch in batches:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            curves.append(steering.metrics())
        kept = steering.state_dict()
    return curves, kept


@pytest.mark.usefixtures("unchecked_shapes")
def test_it_stays_at_its_start_where_nothing_is_learnt_and_falls_where_the_base_moves_away():
    still, _ = run(0.0)
    moved, kept = run(3e-2)
    assert [KEY in figures for figures in still] == [False, True, False, True]
    for figures in still[1::2]:
        assert figures[KEY] == figures[START] > 0.95
    assert moved[1][START] == still[1][START]
    assert moved[1][KEY] < still[1][KEY] - 0.1
    resumed, _ = run(0.0, state=kept)  # another model than at the start of the first run: the start is that run's
    assert resumed[1][START] == moved[1][START]


def test_the_start_is_kept_with_the_probes_and_a_state_without_one_is_taken():
    probes, bank = ProbeSets.of(tiny_world.probe_batches(16)), tiny_world.concept_bank()
    meter, model = ProbeMeter(bank, probes), tiny_world.load_base()
    meter.start(model)
    state = meter.state_dict()
    again = ProbeMeter(bank, probes)
    again.load_state_dict(state)
    assert again.read(model).explained.keys() == {f"sae/{HOOK}/explained", f"sae/{HOOK}/explained/start"}
    del state["explained"]
    older = ProbeMeter(bank, probes)
    older.load_state_dict(state)
    assert float(older.read(model).explained[f"sae/{HOOK}/explained"]) > 0.95
