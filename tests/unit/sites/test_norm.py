"""Norms are recognised by what they do, and their direction is good to first order."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from interptrain.sites import Norm

WIDTH = 512


def random_gain(norm):
    for parameter in norm.parameters():
        parameter.data = torch.randn(WIDTH)
    return norm


NORMS = {
    "rms": (lambda: random_gain(LlamaRMSNorm(WIDTH)), False, 0.0),
    "torch rms": (lambda: random_gain(nn.RMSNorm(WIDTH)), False, 0.0),
    "rms without gain": (lambda: nn.RMSNorm(WIDTH, elementwise_affine=False), False, 0.0),
    "layer": (lambda: random_gain(nn.LayerNorm(WIDTH)), True, 0.0),
    "layer without gain": (lambda: nn.LayerNorm(WIDTH, elementwise_affine=False), True, 0.0),
    "gemma": (lambda: random_gain(GemmaRMSNorm(WIDTH)), False, 1.0),
}


@pytest.mark.parametrize(("build", "centred", "offset"), NORMS.values(), ids=NORMS.keys())
def test_a_norm_is_recognised_by_what_it_does(build, centred, offset):
    norm = Norm.of("norm", build(), width=WIDTH)
    assert (norm.centred, norm.offset) == (centred, offset)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["rms", "layer", "gemma"])
def test_a_norm_is_recognised_in_every_precision(name, dtype):
    build, centred, offset = NORMS[name]
    norm = Norm.of("norm", build().to(dtype), width=WIDTH)
    assert (norm.centred, norm.offset) == (centred, offset)


@pytest.mark.parametrize(("build", "centred", "offset"), NORMS.values(), ids=NORMS.keys())
def test_a_small_move_of_the_stream_comes_out_along_the_formula(build, centred, offset):
    module = build()
    norm = Norm(module, centred, offset)
    stream, direction = torch.randn(20, WIDTH) + 2 * centred, torch.randn(1, WIDTH) + 1
    with torch.no_grad():
        moved = module(stream + 1e-2 * direction) - module(stream - 1e-2 * direction)
    assert cosine_similarity(moved, norm.in_front(direction)).min() > 0.99


@pytest.mark.parametrize(("build", "centred", "offset"), NORMS.values(), ids=NORMS.keys())
def test_what_moves_the_output_of_a_norm_along_a_direction_comes_in_along_the_transposed_formula(
    build, centred, offset
):
    module = build()
    norm = Norm(module, centred, offset)
    stream, direction = torch.randn(20, WIDTH).requires_grad_(), torch.randn(1, WIDTH) + 1
    out = module(stream)
    (exact,) = torch.autograd.grad(out, stream, direction.expand_as(out))
    assert cosine_similarity(exact, norm.behind(direction)).min() > 0.99


def test_the_mean_is_taken_out_behind_the_gain_and_not_before_it():
    module = NORMS["layer"][0]()
    rows = torch.randn(1, WIDTH) + 1
    behind = Norm(module, centred=True).behind(rows)
    assert behind.mean().abs() < 1e-6
    assert not torch.allclose(behind, Norm(module, centred=True).in_front(rows), atol=1e-2)


def test_leaving_the_centring_out_would_be_noticed():
    module = NORMS["layer"][0]()
    stream, direction = torch.randn(1, WIDTH), torch.randn(1, WIDTH) + 1
    with torch.no_grad():
        moved = module(stream + 1e-2 * direction) - module(stream - 1e-2 * direction)
    assert cosine_similarity(moved, Norm(module, centred=True).in_front(direction)) > 0.99
    assert cosine_similarity(moved, Norm(module, centred=False).in_front(direction)) < 0.9


def test_the_gain_is_read_anew_every_time():
    module = NORMS["rms"][0]()
    norm, rows = Norm(module, centred=False), torch.eye(WIDTH)[:1]
    before, version = norm.in_front(rows), norm.weight._version
    with torch.no_grad():
        module.weight.mul_(2)
    assert torch.equal(norm.in_front(rows), 2 * before)
    assert norm.weight._version > version


@pytest.mark.parametrize("module", [nn.BatchNorm1d(WIDTH).eval(), nn.Tanh(), nn.GroupNorm(4, WIDTH)])
def test_another_norm_is_refused_by_name(module):
    with pytest.raises(ValueError, match=r"'blocks.0.norm' \(\w+\) is neither an RMSNorm nor a LayerNorm"):
        Norm.of("blocks.0.norm", module, width=WIDTH)
