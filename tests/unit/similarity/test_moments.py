"""Adam's normaliser: Adafactor's form of it, from exact row and column sums."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interptrain.similarity import Scales, SecondMoments, linear_layers, read_gradients
from tests.helpers.models import gpt2, llama
from tests.unit.similarity.gradients import batch_of, one_by_one


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 8), columns=st.integers(1, 8), seed=st.integers(0, 50))
def test_scales_are_adafactor_s(rows, columns, seed):
    v = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.01
    scales = Scales.of(v.sum(1), v.sum(0))
    factored = torch.outer(v.mean(1), v.mean(0)) / v.mean()  # Shazeer and Stern 2018, algorithm 4
    # the floor, 1e-6 of a mean that is a hundred times the least, is in the rows and in the columns
    torch.testing.assert_close(scales.out[:, None] * scales.inner, factored.rsqrt(), rtol=1e-4, atol=0)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 8), columns=st.integers(1, 8), seed=st.integers(0, 50))
def test_scales_are_adam_s_where_the_second_moment_has_rank_one(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    v = torch.outer(torch.rand(rows, generator=generator) + 0.01, torch.rand(columns, generator=generator) + 0.01)
    scales = Scales.of(v.sum(1), v.sum(0))
    torch.testing.assert_close(scales.out[:, None] * scales.inner, v.rsqrt(), rtol=1e-4, atol=0)


def test_what_never_has_a_gradient_is_not_blown_up():
    v = torch.outer(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 4.0, 9.0]))
    scales = Scales.of(v.sum(1), v.sum(0))
    assert bool(torch.isfinite(scales.out).all())
    assert bool(torch.isfinite(scales.inner).all())
    nothing = Scales.of(torch.zeros(2), torch.zeros(3))
    assert torch.equal(nothing.out, torch.ones(2))


@pytest.mark.parametrize("make", [llama, gpt2])
def test_the_sums_are_those_of_squared_gradients_of_single_examples(make):
    model = make().eval()
    layers, moments = linear_layers(model), SecondMoments(linear_layers(model))
    gradients = []
    for seed in (0, 1):
        batch = batch_of(seed=seed)
        read_gradients(model, batch, [moments])
        gradients += one_by_one(model, batch, layers)
    found = moments.read()
    for name in layers:
        v = torch.stack([each[name].double().square() for each in gradients]).sum(0)
        expected = Scales.of(v.sum(1), v.sum(0))
        torch.testing.assert_close(found[name].out.double(), expected.out, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(found[name].inner.double(), expected.inner, rtol=1e-3, atol=1e-6)
