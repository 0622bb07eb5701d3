"""Where dictionaries encode: every hook name that SAELens' loaders make, and what is there."""

import re
from pathlib import Path

import pytest
import torch
from sae_lens.loading import pretrained_sae_loaders

from interptrain.sites import HookPoint
from interptrain.sites.reading import InputPoint, heads_into_stream, reading_point
from tests.helpers.models import WIDTH, gpt2, llama, lora
from tests.unit.sites.models import shaken

IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
WRITTEN = re.compile(r'f?"((?:blocks\.|model\.layers\.|hook_embed)[^"]*)"')
BY_CONFIGURATION = {"{cfg_info['feature_input_hook']}", "{cfg_info['feature_output_hook']}"}

# What the loaders of public releases call the place, layer 3, and what is there; a reason where it is refused.
NAMES = {
    "blocks.3.hook_resid_post": "resid_post", "blocks.3.hook_mlp_out": "mlp_out", "blocks.3.attn.hook_z": "z",
    "blocks.3.hook_mlp_in": "mlp_in", "blocks.3.mlp.hook_in": "mlp_in",
    "blocks.3.ln2.hook_normalized": "mlp_normalized",
    "model.layers.3": "resid_post", "model.layers.3.output": "resid_post",
    "model.layers.3.self_attn.o_proj.input": "z", "model.layers.3.pre_feedforward_layernorm.output": "mlp_in",
    "model.layers.3.post_feedforward_layernorm.output": "mlp_out",
    "hook_embed": "is not a place in the residual stream: the token embedding, which is blocks.0.hook_resid_pre where",
}  # fmt: skip
# What configurations of releases say, which the loaders hand on, and the names of `sae_id`s.
MORE = {
    "blocks.3.hook_resid_pre": "resid_pre", "blocks.3.hook_resid_mid": "resid_mid",
    "blocks.3.hook_attn_out": "attn_out",
    "blocks.3.mlp.hook_out": "mlp_out", "blocks.3.attn.hook_out": "attn_out", "transformer.h.3": "resid_post",
    "transformer.h.3.attn.c_proj.input": "z", "model.language_model.layers.3.output": "resid_post",
    "gpt_neox.layers.3.attention": "attn_out", "model.layers.3.mlp.input": "mlp_in",
    "model.layers.3.mlp.output": "mlp_out",
    "blocks.3.mlp.hook_post": "the MLP's neurons, whose directions are not the stream's",
    "blocks.3.mlp.hook_pre": "the MLP's neurons", "blocks.3.attn.hook_q": "inside the heads",
    "blocks.3.ln1.hook_normalized": "the stream behind a norm", "ln_final.hook_normalized": "the stream behind a norm",
    "model.layers.3.post_attention_layernorm.output": "what the MLP reads in Llama and the attention's output in Gemma",
    "model.norm": "the stream behind a norm", "lm_head": "is not a place in the residual stream; expected",
}  # fmt: skip


def test_the_table_has_every_form_that_the_installed_loaders_write():
    source = Path(pretrained_sae_loaders.__file__).read_text()
    forms = set()
    for name in WRITTEN.findall(source):
        form = re.sub(r"^blocks\.\d+\.", "blocks.3.", name)
        for variable in re.findall(r"{[^}]*}", form):
            form = form if variable in BY_CONFIGURATION else form.replace(variable, "3")
        forms.add(form)
    assert {form for form in forms if not any(each in form for each in BY_CONFIGURATION)} == set(NAMES)
    assert any(each in form for form in forms for each in BY_CONFIGURATION)  # those of MORE


@pytest.mark.parametrize(("name", "what"), (NAMES | MORE).items())
def test_every_name_of_a_release_is_mapped_or_refused_with_the_reason(name, what):
    if what in ("z", "mlp_in", "mlp_normalized"):
        point = reading_point(name)
        assert (point.given, point.layer) == (what, 3)
        with pytest.raises(ValueError, match="is not a place in the residual stream: "):
            HookPoint.parse(name)
    elif " " in what:
        with pytest.raises(ValueError) as raised:
            reading_point(name)
        assert f"'{name}'" in str(raised.value)
        assert what in str(raised.value)
    else:
        point = reading_point(name)
        assert (point.place, point.layer, HookPoint.parse(name)) == (what, 3, point)


def caught(model, *names):
    """What is at each of these places in one pass, without their gradients."""
    seen = {}
    handles = [reading_point(n).listen(model, lambda h, n=n: seen.__setitem__(n, h.detach())) for n in names]
    model(input_ids=IDS)
    for handle in handles:
        handle.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return [seen[name] for name in names]


@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.parametrize("adapted", [False, True])
def test_the_heads_outputs_through_their_map_are_the_attention_s_output(build, adapted):
    model = shaken(lora(build()) if adapted else build())
    z, out = caught(model, "blocks.1.attn.hook_z", "blocks.1.hook_attn_out")
    into = heads_into_stream(model, 1).double()
    bias = out - z @ into
    torch.testing.assert_close(bias, bias[:1, :1].expand_as(bias), rtol=1e-5, atol=1e-5)
    assert (build is gpt2) == bool(bias.abs().max() > 1e-2)


@pytest.mark.parametrize("build", [llama, gpt2])
def test_what_the_mlp_is_given_is_the_normed_stream_with_and_without_the_gain(build):
    model = shaken(build())
    layer = (model.transformer.h if build is gpt2 else model.model.layers)[1]
    norm = layer.ln_2 if build is gpt2 else layer.post_attention_layernorm
    taken = []
    layer.mlp.register_forward_pre_hook(lambda _module, args: taken.append(args[0]))
    mid, given, plain = caught_with_hooks_left(
        model, "blocks.1.hook_resid_mid", "blocks.1.mlp.hook_in", "blocks.1.ln2.hook_normalized"
    )
    assert torch.equal(given, taken[0])
    centred = mid - mid.mean(-1, keepdim=True) if build is gpt2 else mid
    eps = norm.eps if build is gpt2 else norm.variance_epsilon
    expected = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    torch.testing.assert_close(plain, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(plain * norm.weight + (norm.bias if build is gpt2 else 0), given, rtol=1e-4, atol=1e-5)


def caught_with_hooks_left(model, *names):
    seen = {}
    for name in names:
        reading_point(name).listen(model, lambda h, n=name: seen.__setitem__(n, h.detach()))
    model(input_ids=IDS)
    return [seen[name] for name in names]


def test_a_point_of_another_layer_has_the_same_place():
    assert InputPoint.parse("model.layers.7.self_attn.o_proj.input").at(2).name == "blocks.2.attn.hook_z"
    assert reading_point("model.layers.7").at(2).name == "blocks.2.hook_resid_post"


@pytest.mark.parametrize("name", ["blocks.5.attn.hook_z", "blocks.5.mlp.hook_in"])
def test_a_layer_beyond_the_model_is_refused_with_both_numbers(name):
    with pytest.raises(ValueError, match=r"is at layer 5 but 'model.layers' has 3 blocks"):
        reading_point(name).listen(llama(), print)
    with pytest.raises(ValueError, match="is at layer 5 but"):
        heads_into_stream(llama(), 5)


def test_the_map_out_of_the_heads_has_the_width_of_both_sides():
    assert heads_into_stream(llama(), 0).shape == (WIDTH, WIDTH)
