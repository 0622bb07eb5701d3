"""What examples ask of concepts, against activation gradients taken one example at a time."""

import pytest
import torch

from interptrain.similarity import ConceptDemands, Folding, read_gradients
from interptrain.similarity.demands import along
from interptrain.sites.hooks import HookPoint
from tests.helpers.models import HOOK, llama, two_concepts
from tests.unit.similarity.gradients import batch_of, loss_of

OTHER = "blocks.2.hook_resid_post"


def activation_gradients(model, batch, hook):
    found = []
    for number in range(len(batch["labels"])):
        caught = []
        handle = HookPoint.parse(hook).listen(model, caught.append)
        row = {key: value[number : number + 1] for key, value in batch.items()}
        loss = loss_of(model, row)
        handle.remove()
        (gradient,) = torch.autograd.grad(loss, caught)
        counted = torch.zeros(gradient.shape[1])
        counted[:-1] = (row["labels"][0, 1:] != -100).float()
        found.append(gradient[0] * counted[:, None])
    return torch.stack(found)


@pytest.mark.parametrize("measure", ["energy", "positive", "signed"])
def test_demands_are_those_of_the_tokens_that_predict_a_label(measure):
    model, batch, rows = llama().eval(), batch_of(), two_concepts().directions
    (found,) = read_gradients(model, batch, [ConceptDemands({HOOK: rows}, measure=measure)])
    expected = along(activation_gradients(model, batch, HOOK), rows, measure)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_hooks_stand_side_by_side():
    model, batch, rows = llama().eval(), batch_of(), two_concepts().directions
    (found,) = read_gradients(model, batch, [ConceptDemands({HOOK: rows, OTHER: rows[:1]})])
    (one,) = read_gradients(model, batch, [ConceptDemands({HOOK: rows})])
    (other,) = read_gradients(model, batch, [ConceptDemands({OTHER: rows[:1]})])
    torch.testing.assert_close(found, torch.cat([one, other], -1))


def test_a_large_dictionary_is_folded_and_small_parts_of_it_are_taken_at_a_time(monkeypatch):
    model, batch = llama().eval(), batch_of()
    rows = torch.nn.functional.normalize(torch.randn(50, 32), dim=-1)
    (whole,) = read_gradients(model, batch, [ConceptDemands({HOOK: rows})])
    monkeypatch.setattr("interptrain.similarity.demands.CHUNK", 7)
    (short,) = read_gradients(model, batch, [ConceptDemands({HOOK: rows}, most=20)])
    assert short.shape == (5, 20)
    torch.testing.assert_close(short, Folding(20, 50, "concepts").times(whole), rtol=1e-4, atol=1e-6)


def test_energy_does_not_know_more_from_less():
    g = torch.randn(2, 3, 8)
    rows = torch.eye(8)[:3]
    assert torch.equal(along(g, rows, "energy"), along(-g, rows, "energy"))
    assert not torch.equal(along(g, rows, "positive"), along(-g, rows, "positive"))
