"""A pass leaves nothing behind."""

import pytest
import torch

from interptrain.similarity import ConceptDemands, SecondMoments, Sketch, linear_layers, read_gradients, similar
from tests.helpers.models import HOOK, llama, lora, two_concepts
from tests.unit.similarity.gradients import batch_of


def hooks_of(model):
    return sum(
        len(each)
        for module in model.modules()
        for each in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [llama, lambda: llama().requires_grad_(False), lambda: lora(llama())])
def test_the_model_its_flags_and_its_gradients_are_as_before(make, training):
    model = make().train(training)
    model.model.layers[0].eval() if hasattr(model.model, "layers") else None
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    layers = linear_layers(model)
    readers = [Sketch(layers, 4), SecondMoments(layers), ConceptDemands({HOOK: two_concepts().directions})]
    read_gradients(model, batch_of(), readers)
    assert hooks_of(model) == 0
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None or bool((p.grad == 1).all()) for p in model.parameters())
    assert torch.is_grad_enabled()


def test_what_is_read_holds_no_graph():
    model = llama()
    for found in read_gradients(model, batch_of(), [Sketch(linear_layers(model), 4)]):
        assert not found.requires_grad


def test_hooks_are_gone_after_a_pass_that_fails():
    model = llama()
    with pytest.raises(IndexError):
        read_gradients(model, batch_of(words=1000, start=900), [Sketch(linear_layers(model), 4)])
    assert hooks_of(model) == 0


def test_a_gradient_that_is_not_finite_is_refused_by_name():
    model = llama()
    with torch.no_grad():
        model.lm_head.weight[0] = torch.nan
    batches, readers = [batch_of()], {"gradient": Sketch(linear_layers(model), 4)}
    with pytest.raises(ValueError, match="gradient: a gradient of the examples or of the sample is not finite"):
        next(similar(model, batches, batches, batches, readers))
