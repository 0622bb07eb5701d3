"""The sketch against gradients that are formed, one example at a time."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from interptrain.similarity import Scales, Signs, Sketch, linear_layers, read_gradients
from interptrain.similarity.sketch import project
from tests.helpers.models import gpt2, llama, lora
from tests.unit.similarity.gradients import batch_of, one_by_one
from tests.unit.sites.families import CONFIGS, adapted, model_of

MODELS = {
    "llama": llama,
    "frozen llama": lambda: llama().requires_grad_(False),
    "gpt2": gpt2,
    "lora": lambda: trained(lora(llama())),
    **{family: partial(model_of, family) for family in CONFIGS},
    "opt with lora": lambda: trained(adapted("opt", model_of("opt"))),
}


def trained(model):
    """LoRA's B is no longer zero."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def sketched(gradients, layers, k, scales=None):
    """`sum_l P_l G_l Q_l^T` of gradients at hand."""
    found = []
    for example in gradients:
        total = torch.zeros(k, k, dtype=torch.float64)
        for name in layers:
            gradient = example[name].double()
            if scales:
                gradient = gradient * scales[name].out[:, None] * scales[name].inner
            left, right = Signs(k, gradient.shape[0], f"{name} out"), Signs(k, gradient.shape[1], f"{name} in")
            total += left.times(right.times(gradient).T)
        found.append(total.T.flatten())
    return torch.stack(found)


@settings(max_examples=20, deadline=None)
@given(
    tokens=st.integers(1, 5),
    out=st.integers(1, 9),
    inner=st.integers(1, 9),
    k=st.integers(1, 6),
    seed=st.integers(0, 9),
)
def test_the_factored_projection_is_that_of_the_formed_gradient(tokens, out, inner, k, seed):
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(3, tokens, out, generator=generator, dtype=torch.float64)
    x = torch.randn(3, tokens, inner, generator=generator, dtype=torch.float64)
    left, right = Signs(k, out, "out"), Signs(k, inner, "in")
    p, q = left.times(torch.eye(out).double()).T, right.times(torch.eye(inner).double()).T
    whole = torch.einsum("bto,bti->boi", g, x)
    torch.testing.assert_close(project(g, x, left, right), p @ whole @ q.T, rtol=1e-12, atol=1e-12)


def test_the_factored_projection_keeps_inner_products_on_average():
    generator = torch.Generator().manual_seed(3)
    g = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    x = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    one, other = torch.einsum("bto,bti->boi", g, x).flatten(1)
    found = []
    for seed in range(600):
        sketch = project(g, x, Signs(4, 6, "out", seed=seed), Signs(4, 5, "in", seed=seed)).flatten(1)
        found.append(sketch[0] @ sketch[1])
    found = torch.stack(found)
    assert abs(found.mean() - one @ other) < 5 * found.std() / len(found) ** 0.5


@pytest.mark.parametrize("name", MODELS)
def test_a_sketch_is_that_of_each_example_s_own_gradient(name):
    model = MODELS[name]().eval()
    layers, batch = linear_layers(model), batch_of()
    (found,) = read_gradients(model, batch, [Sketch(layers, 7)])
    expected = sketched(one_by_one(model, batch, layers), layers, 7)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_per_example_gradients_are_those_of_torch_func():
    model = llama().eval()
    layers, batch = linear_layers(model, ["model.layers.1.mlp.*"]), batch_of(padded=False)
    parameters = {f"{name}.weight": module.weight.detach() for name, module in layers.items()}

    def loss(chosen, ids, labels):  # no mask: what transformers makes of one cannot be mapped
        logits = torch.func.functional_call(model, chosen, kwargs={"input_ids": ids[None]}).logits[0, :-1]
        return nn.functional.cross_entropy(logits, labels[1:], reduction="sum")

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    whole = each(parameters, batch["input_ids"], batch["labels"])
    gradients = [{name: whole[f"{name}.weight"][n] for name in layers} for n in range(5)]
    (found,) = read_gradients(model, batch, [Sketch(layers, 5)])
    torch.testing.assert_close(found.double(), sketched(gradients, layers, 5), rtol=1e-4, atol=1e-5)


def test_rows_and_columns_are_scaled_before_they_are_projected():
    model = llama().eval()
    layers, batch = linear_layers(model, ["*mlp*"]), batch_of()
    scales = {name: Scales(torch.rand(m.out_features), torch.rand(m.in_features)) for name, m in layers.items()}
    (found,) = read_gradients(model, batch, [Sketch(layers, 6, scales=scales)])
    expected = sketched(one_by_one(model, batch, layers), layers, 6, scales)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_it_does_not_matter_what_else_is_in_the_batch():
    model, batch = llama().eval(), batch_of(count=6)
    sketch = Sketch(linear_layers(model), 8)
    (whole,) = read_gradients(model, batch, [sketch])
    alone = []
    for number in range(6):
        row = {key: value[number : number + 1] for key, value in batch.items()}
        length = int(row["attention_mask"].sum())
        alone += read_gradients(model, {key: value[:, :length] for key, value in row.items()}, [sketch])
    torch.testing.assert_close(torch.cat(alone), whole, rtol=1e-4, atol=1e-5)


def test_the_length_of_a_sketch_does_not_grow_with_the_model():
    batch = batch_of(count=2)
    for layers in (1, 3):
        model = llama(layers=layers).eval()
        assert read_gradients(model, batch, [Sketch(linear_layers(model), 8)])[0].shape == (2, 64)


def test_adapters_alone_are_compared_in_an_adapted_model():
    assert all("lora_" in name for name in linear_layers(lora(llama())))
    assert len(linear_layers(lora(llama()))) == 2 * len(linear_layers(llama()))


def test_a_pattern_without_a_layer_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'\*\.nowhere' matches no linear layer; there are model\.layers\.0"):
        linear_layers(llama(), ["*.nowhere"])


def test_a_layer_that_is_given_some_tokens_only_is_refused_by_name():
    model, batch = llama(), batch_of(count=2)
    head = {"lm_head": model.lm_head}
    handle = model.lm_head.register_forward_pre_hook(lambda _module, args: (args[0][:, :4],), prepend=True)
    with pytest.raises(ValueError, match="'lm_head' is given 8 of 18 tokens"):
        read_gradients(model, batch, [Sketch(head, 4)])
    handle.remove()
    assert not model.lm_head._forward_hooks
