"""Names of places in the stream, and the modules where they are."""

from functools import partial

import pytest
import torch
from torch import nn

from interptrain.sites import HookPoint
from tests.helpers.models import Tuning, gpt2, llama, lora
from tests.unit.sites.families import CONFIGS, model_of
from tests.unit.sites.models import shaken

POSITIONS = {
    "blocks.2.hook_resid_pre": 2.0, "blocks.2.hook_resid_mid": 2.5, "blocks.2.hook_resid_post": 3.0,
    "blocks.2.hook_attn_out": 2.5, "blocks.2.hook_mlp_out": 3.0, "model.layers.2": 3.0, "layers.2": 3.0,
    "transformer.h.11": 12.0, "model.layers.2.output": 3.0, "model.layers.2.input": 2.0,
    "model.layers.2.self_attn": 2.5, "transformer.h.2.attn": 2.5, "model.layers.2.mlp": 3.0,
    "model.layers.2.post_feedforward_layernorm.output": 3.0, "blocks.2.mlp.hook_out": 3.0,
}  # fmt: skip


@pytest.mark.parametrize(("name", "position"), POSITIONS.items())
def test_a_hook_point_knows_its_place_in_the_stream(name, position):
    assert HookPoint.parse(name).position == position


@pytest.mark.parametrize(
    "name",
    [
        "blocks.2.attn.hook_z", "blocks.2.mlp.hook_post", "blocks.2.ln1.hook_normalized", "hook_embed",
        "blocks.2.hook_resid_post.hook_sae_acts_post", "ln_final.hook_normalized", "model.layers.2.self_attn.o_proj",
        "model.layers.12.self_attn.o_proj.input", "model.layers.12.pre_feedforward_layernorm.output", "model.norm", "",
    ],
)  # fmt: skip
def test_a_name_outside_the_residual_stream_is_refused_by_name(name):
    with pytest.raises(ValueError, match="is not a place in the residual stream") as raised:
        HookPoint.parse(name)
    assert f"'{name}'" in str(raised.value)
    assert "blocks.L.hook_X" in str(raised.value)


def observe(model, name):
    module, side = HookPoint.parse(name).locate(model)
    seen = []
    if side == "input":
        module.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    else:
        module.register_forward_hook(lambda _m, _a, out: seen.append(out[0] if isinstance(out, tuple) else out))
    return seen


@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.parametrize("wrapped", [False, True])
def test_the_located_modules_carry_the_stream(build, wrapped):
    bare = build().eval()
    model = Tuning(lora(bare)).eval() if wrapped else bare
    places = ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
    seen = {place: observe(model, f"blocks.1.hook_{place}") for place in places}
    hidden = bare(input_ids=torch.tensor([[1, 2, 3]]), output_hidden_states=True).hidden_states
    stream = {place: values[0] for place, values in seen.items()}
    torch.testing.assert_close(stream["resid_pre"], hidden[1])
    torch.testing.assert_close(stream["resid_mid"], stream["resid_pre"] + stream["attn_out"])
    torch.testing.assert_close(stream["resid_post"], stream["resid_mid"] + stream["mlp_out"])


def test_both_ways_of_naming_a_block_lead_to_the_same_module():
    model = llama()
    assert HookPoint.parse("blocks.1.hook_resid_post").locate(model) == (model.model.layers[1], "output")
    assert HookPoint.parse("model.layers.1").locate(model) == (model.model.layers[1], "output")


def test_a_layer_beyond_the_model_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"'blocks.5.hook_resid_pre' is at layer 5 but 'model.layers' has 3 blocks"):
        HookPoint.parse("blocks.5.hook_resid_pre").locate(llama())


def test_a_bare_list_of_blocks_is_a_stack_too():
    blocks = nn.ModuleList(list(llama().model.layers))
    assert HookPoint.parse("blocks.0.hook_resid_mid").locate(blocks)[0] is blocks[0].post_attention_layernorm


PLACES = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")


def observe_all(model):
    """What is seen at every place of a layer once the hooks so far have acted, and at the next layer's start."""
    seen = {place: observe(model, f"blocks.1.hook_{place}") for place in PLACES}
    return seen | {"next": observe(model, "blocks.2.hook_resid_pre")}


@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("place", ["resid_pre", "mlp_out", "resid_post"])
def test_an_edited_activation_is_the_one_that_the_model_goes_on_with(build, wrapped, place):
    bare = build().eval()
    model = Tuning(lora(bare)).eval() if wrapped else bare
    before = observe_all(model)
    HookPoint.parse(f"blocks.1.hook_{place}").edit(model, lambda activation: 2 * activation + 1)
    after = observe_all(model)
    bare(input_ids=torch.tensor([[1, 2, 3]]))
    made = before if place == "resid_post" else after
    assert torch.equal(after[place][0], 2 * before[place][0] + 1)
    torch.testing.assert_close(after["resid_mid"][0], after["resid_pre"][0] + after["attn_out"][0])
    torch.testing.assert_close(made["resid_post"][0], after["resid_mid"][0] + after["mlp_out"][0])
    assert torch.equal(after["next"][0], after["resid_post"][0])


@pytest.mark.parametrize("place", ["resid_pre", "mlp_out"])
def test_an_edit_ends_with_its_handle(place):
    model, ids = llama().eval(), torch.tensor([[1, 2, 3]])
    expected = model(input_ids=ids).logits
    handle = HookPoint.parse(f"blocks.1.hook_{place}").edit(model, torch.zeros_like)
    assert not torch.allclose(model(input_ids=ids).logits, expected)
    handle.remove()
    assert torch.equal(model(input_ids=ids).logits, expected)


@pytest.mark.parametrize("place", ["resid_pre", "mlp_out"])
def test_the_gradient_goes_through_an_edit(place):
    model = llama().eval()
    before = observe(model, f"blocks.1.hook_{place}")
    HookPoint.parse(f"blocks.1.hook_{place}").edit(model, lambda activation: 2 * activation)
    after = observe(model, f"blocks.1.hook_{place}")
    loss = model(input_ids=torch.tensor([[1, 2, 3]])).logits.square().sum()
    below, above = torch.autograd.grad(loss, [before[0], after[0]])
    assert torch.equal(below, 2 * above)


def test_an_activation_that_is_given_by_name_is_edited_too():
    model, stream = llama().eval(), torch.randn(1, 3, 32)
    block, turns = model.model.layers[1], model.model.rotary_emb(stream, torch.arange(3)[None])
    expected = block(hidden_states=2 * stream, position_embeddings=turns)
    HookPoint.parse("blocks.1.hook_resid_pre").edit(model, lambda activation: 2 * activation)
    assert torch.equal(block(hidden_states=stream, position_embeddings=turns), expected)


@pytest.mark.usefixtures("unchecked_shapes")
def test_what_stands_beside_an_edited_activation_in_an_output_stays():
    model, stream = llama().eval(), torch.randn(1, 3, 32)
    attention, turns = model.model.layers[1].self_attn, model.model.rotary_emb(stream, torch.arange(3)[None])
    given = {"hidden_states": stream, "position_embeddings": turns, "attention_mask": None}
    expected = attention(**given)
    HookPoint.parse("blocks.1.hook_attn_out").edit(model, lambda activation: activation + 1)
    found = attention(**given)
    assert torch.equal(found[0], expected[0] + 1)
    assert len(found) == len(expected) == 2


def heard(model, names):
    """The activation at each place, as listeners get it, of one forward pass; and what the model puts out."""
    caught = {}
    handles = [HookPoint.parse(name).listen(model, partial(caught.__setitem__, name)) for name in names]
    out = model(input_ids=torch.tensor([[1, 2, 3], [4, 5, 6]]), output_hidden_states=True)
    for handle in handles:
        handle.remove()
    return {name.rpartition("hook_")[2]: value for name, value in caught.items()}, out


@pytest.mark.parametrize("family", CONFIGS)
def test_each_familys_places_add_up_to_its_stream(family):
    model = shaken(model_of(family))
    parallel = family == "neox"
    seen, out = heard(model, [f"blocks.0.hook_{place}" for place in PLACES if not (parallel and place == "resid_mid")])
    torch.testing.assert_close(seen["resid_pre"], out.hidden_states[0])
    torch.testing.assert_close(seen["resid_post"], out.hidden_states[1])
    mid = seen["resid_pre"] + seen["attn_out"]
    if not parallel:
        torch.testing.assert_close(seen["resid_mid"], mid)
    torch.testing.assert_close(seen["resid_post"], mid + seen["mlp_out"])


@pytest.mark.parametrize("place", PLACES)
def test_listening_to_an_opt_gets_texts_and_their_gradients_and_changes_no_bit(place):
    model, ids = model_of("opt").eval(), torch.tensor([[1, 2, 3], [4, 5, 6]])
    alone = model(input_ids=ids).logits
    caught = []
    handle = HookPoint.parse(f"blocks.0.hook_{place}").listen(model, caught.append)
    logits = model(input_ids=ids).logits
    assert torch.equal(logits, alone)
    assert caught[0].shape == (2, 3, 32)
    (gradient,) = torch.autograd.grad(logits.square().sum(), caught[0])
    assert gradient.norm() > 0
    handle.remove()
    model(input_ids=ids)
    assert len(caught) == 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("place", ["resid_mid", "mlp_out"])
def test_an_edit_between_the_halves_of_an_opt_block_reaches_what_follows(place):
    model = model_of("opt").eval()
    before, _ = heard(model, ["blocks.0.hook_mlp_out", "blocks.0.hook_resid_post"])
    HookPoint.parse(f"blocks.0.hook_{place}").edit(
        model, lambda stream: stream * torch.tensor([1.0, 0.0, 1.0])[:, None]
    )
    after, _ = heard(model, ["blocks.0.hook_mlp_out", "blocks.0.hook_resid_post"])
    same = (before["mlp_out"] == after["mlp_out"]).all(-1)
    assert same.tolist() == [[True, False, True]] * 2
    assert not torch.equal(before["resid_post"][:, 1], after["resid_post"][:, 1])


@pytest.mark.parametrize(
    ("family", "name", "same"),
    [
        ("neox", "gpt_neox.layers.1", "resid_post"), ("neox", "gpt_neox.layers.1.attention", "attn_out"),
        ("opt", "model.decoder.layers.1", "resid_post"), ("opt", "model.decoder.layers.1.fc2", "mlp_out"),
        ("opt", "model.decoder.layers.1.self_attn", "attn_out"), ("gemma3", "model.layers.1", "resid_post"),
        ("mixtral", "model.layers.1.mlp", "mlp_out"),
    ],
)  # fmt: skip
def test_hugging_faces_name_of_a_place_leads_where_the_other_does(family, name, same):
    model = model_of(family)
    assert HookPoint.parse(name).locate(model) == HookPoint.parse(f"blocks.1.hook_{same}").locate(model)
