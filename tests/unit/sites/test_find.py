"""Everything that trains is sorted, and nothing twice."""

import dataclasses

import pytest
import torch
from torch import nn

from interptrain.concepts.bank import ConceptBank
from interptrain.sites import find_sites
from tests.helpers.models import Tuning, llama, lora
from tests.unit.sites.families import model_of
from tests.unit.sites.models import FAMILIES, bank, gpt2

CASES = [(name, False) for name in FAMILIES] + [(name, True) for name in FAMILIES if name != "plain"]


def described(sites):
    return {site.name: (site.role, site.axis, site.position) for site in sites}


def reasons(sites):
    return {left.name: left.reason for left in sites.left_out}


@pytest.mark.parametrize("where", ["gradient", "update"])
@pytest.mark.parametrize(("family", "adapted"), CASES)
def test_sites_and_what_is_left_out_are_together_all_that_trains(family, adapted, where):
    model = lora(FAMILIES[family]()) if adapted else FAMILIES[family]()
    sites = find_sites(model, bank(), where=where)
    names = [site.name for site in sites] + [left.name for left in sites.left_out]
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sorted(names) == sorted(trained)
    assert all(site.parameter is model.get_parameter(site.name) for site in sites)
    assert all(left.reason for left in sites.left_out)


def test_the_default_sites_of_a_llama_are_writers_up_to_the_hook_and_readers_after_it():
    sites = find_sites(llama(), bank(hook="blocks.1.hook_resid_post"))
    expected = {"model.embed_tokens.weight": ("writer", 1, -1.0)}
    for layer in (0, 1):
        expected[f"model.layers.{layer}.self_attn.o_proj.weight"] = ("writer", 0, layer + 0.25)
        expected[f"model.layers.{layer}.mlp.down_proj.weight"] = ("writer", 0, layer + 0.75)
    for name in ("q_proj", "k_proj", "v_proj"):
        expected[f"model.layers.2.self_attn.{name}.weight"] = ("reader", 1, 2.25)
    for name in ("gate_proj", "up_proj"):
        expected[f"model.layers.2.mlp.{name}.weight"] = ("reader", 1, 2.75)
    expected["lm_head.weight"] = ("reader", 1, float("inf"))
    assert described(sites) == expected
    left = reasons(sites)
    assert left["model.layers.2.mlp.down_proj.weight"] == "runs after the hook point"
    assert left["model.layers.1.mlp.up_proj.weight"] == "reads the stream before the hook point"
    assert left["model.norm.weight"].startswith("a norm's gain or bias")


def test_the_default_sites_of_a_gpt2_have_its_transposed_axes_and_its_writers_biases():
    sites = find_sites(gpt2(), bank(hook="transformer.h.0"))
    assert described(sites) == {
        "transformer.wte.weight": ("writer", 1, -1.0),
        "transformer.wpe.weight": ("writer", 1, -1.0),
        "transformer.h.0.attn.c_proj.weight": ("writer", 1, 0.25),
        "transformer.h.0.attn.c_proj.bias": ("writer", 0, 0.25),
        "transformer.h.0.mlp.c_proj.weight": ("writer", 1, 0.75),
        "transformer.h.0.mlp.c_proj.bias": ("writer", 0, 0.75),
        "transformer.h.1.attn.c_attn.weight": ("reader", 0, 1.25),
        "transformer.h.1.mlp.c_fc.weight": ("reader", 0, 1.75),
        "lm_head.weight": ("reader", 1, float("inf")),
    }
    assert reasons(sites)["transformer.h.1.attn.c_attn.bias"] == "a reader's bias does not meet the stream"


@pytest.mark.parametrize(
    ("hook", "last_writer", "first_reader"),
    [
        ("blocks.1.hook_resid_pre", "model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj"),
        ("blocks.1.hook_attn_out", "model.layers.1.self_attn.o_proj", "model.layers.1.mlp.gate_proj"),
        ("blocks.1.hook_resid_mid", "model.layers.1.self_attn.o_proj", "model.layers.1.mlp.gate_proj"),
        ("blocks.1.hook_mlp_out", "model.layers.1.mlp.down_proj", "model.layers.2.self_attn.q_proj"),
        ("blocks.1.hook_resid_post", "model.layers.1.mlp.down_proj", "model.layers.2.self_attn.q_proj"),
    ],
)
def test_the_hook_point_cuts_between_writers_and_readers(hook, last_writer, first_reader):
    sites = find_sites(llama(), bank(hook=hook))
    writers = [site.name for site in sites if site.role == "writer"]
    readers = [site.name for site in sites if site.role == "reader"]
    assert writers[-1] == f"{last_writer}.weight"
    assert readers[0] == f"{first_reader}.weight"


def test_with_two_hooks_a_site_touches_the_rows_on_its_own_side():
    both = bank(hook="blocks.0.hook_resid_post", rows=2).merge(bank(hook="blocks.1.hook_resid_post", rows=1))
    rows = {site.name: site.rows(both) for site in find_sites(llama(), both)}
    assert rows["model.embed_tokens.weight"] == (0, 1, 2)
    assert rows["model.layers.1.mlp.down_proj.weight"] == (2,)
    assert rows["model.layers.1.mlp.up_proj.weight"] == (0, 1)
    assert rows["model.layers.2.mlp.up_proj.weight"] == (0, 1, 2)
    assert "model.layers.2.mlp.down_proj.weight" not in rows


def test_lora_readers_are_left_out_by_name_in_gradient_mode_and_sites_in_update_mode():
    model = lora(llama())
    name = "base_model.model.model.layers.2.mlp.up_proj.lora_A.default.weight"
    gradient, update = (find_sites(model, bank(), where=where) for where in ("gradient", "update"))
    assert "dW = s dB A" in reasons(gradient)[name]
    assert described(update)[name] == ("reader", 1, 2.75)
    assert {site.role for site in gradient} == {"writer"}
    inner = "base_model.model.model.layers.0.mlp.down_proj.lora_A.default.weight"
    assert reasons(update)[inner] == "the LoRA factor without a residual axis"


@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_a_lora_site_carries_the_scaling_of_its_pair(rank_stabilised):
    sites = find_sites(lora(llama(), rank=4, use_rslora=rank_stabilised), bank())
    assert {site.scaling for site in sites} == {4.0 if rank_stabilised else 2.0}
    assert all(site.lora for site in sites)
    assert all(site.scaling == 1 and not site.lora for site in find_sites(llama(), bank()))


def test_the_biases_of_lora_writers_are_sites():
    sites = described(find_sites(lora(gpt2(), targets=["c_proj"], lora_bias=True), bank()))
    assert sites["base_model.model.transformer.h.0.mlp.c_proj.lora_B.default.bias"] == ("writer", 0, 0.75)
    sites = described(find_sites(lora(gpt2(), targets=["c_proj"], bias="lora_only"), bank()))
    assert sites["base_model.model.transformer.h.0.mlp.c_proj.base_layer.bias"] == ("writer", 0, 0.75)


def test_each_trained_adapter_has_its_own_sites():
    model = lora(llama())
    model.add_adapter("second", model.peft_config["default"])
    model.set_adapter("second")
    assert all(".second." in site.name for site in find_sites(model, bank()))


def test_a_head_and_embedding_that_an_adapter_keeps_are_sites_like_any_other():
    model = lora(llama(), targets=["o_proj"], modules_to_save=["lm_head", "embed_tokens"])
    sites = described(find_sites(model, bank()))
    assert sites["base_model.model.lm_head.modules_to_save.default.weight"] == ("reader", 1, float("inf"))
    assert sites["base_model.model.model.embed_tokens.modules_to_save.default.weight"] == ("writer", 1, -1.0)


def test_a_reader_behind_a_norm_that_an_adapter_keeps_follows_the_trained_copy():
    model = lora(llama(), targets=["up_proj"], modules_to_save=["post_attention_layernorm"])
    site = find_sites(model, bank(), where="update").sites[0]
    wrapper = model.base_model.model.model.layers[1].post_attention_layernorm
    assert site.norm.module is wrapper.modules_to_save["default"]
    assert site.norm.weight.requires_grad


def test_sites_are_found_inside_a_lightning_module_and_a_second_name_for_a_module_does_no_harm():
    module = Tuning(lora(llama()))
    module.backbone = module.model.base_model.model.model
    found = {site.name for site in find_sites(module, bank())}
    names = dict(module.named_parameters())
    assert found
    assert found <= names.keys()
    assert {name.removeprefix("model.") for name in found} == {s.name for s in find_sites(lora(llama()), bank())}


def test_frozen_parameters_are_neither_sites_nor_left_out():
    model = llama()
    model.requires_grad_(False)
    model.model.layers[0].mlp.requires_grad_(True)
    sites = find_sites(model, bank())
    assert [site.name for site in sites] == ["model.layers.0.mlp.down_proj.weight"]
    assert {left.name.rsplit(".", 2)[1] for left in sites.left_out} == {"gate_proj", "up_proj"}


def test_skipped_parameters_are_left_out_on_request():
    sites = find_sites(llama(), bank(), skip=["*embed_tokens*", "lm_head.*"])
    on_request = {name for name, reason in reasons(sites).items() if reason == "left out on request"}
    assert on_request == {"model.embed_tokens.weight", "lm_head.weight"}


def test_tied_embeddings_can_be_skipped_by_either_name():
    for pattern in ("transformer.wte.weight", "lm_head.weight"):
        sites = find_sites(gpt2(tied=True), bank(), skip=[pattern])
        assert reasons(sites)["transformer.wte.weight"] == "left out on request"


def test_a_site_finds_a_parameter_that_was_replaced_after_it():
    model = llama()
    site = next(iter(find_sites(model, bank())))
    replaced = nn.Parameter(torch.zeros_like(site.parameter))
    model.model.embed_tokens.weight = replaced
    assert site.parameter is replaced


def test_a_readers_directions_follow_the_gain_while_it_trains():
    model = llama()
    site = next(site for site in find_sites(model, bank()) if site.role == "reader")
    rows = bank().directions
    assert torch.allclose(site.directions(rows), rows, atol=1e-6)
    with torch.no_grad():
        site.norm.weight[: rows.shape[1] // 2] = 0
    assert site.directions(rows)[:, : rows.shape[1] // 2].abs().max() == 0
    assert torch.allclose(site.directions(rows).norm(dim=-1), torch.ones(len(rows)))


def test_a_writers_directions_are_the_banks_own():
    site = next(iter(find_sites(llama(), bank())))
    rows = bank().directions
    assert site.directions(rows) is rows


def test_finding_sites_changes_neither_the_model_nor_the_random_numbers():
    model = llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    find_sites(model, bank())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("named", "loaded"),
    [("gpt2-small", "openai-community/gpt2"), ("google/Gemma-2-2B", "gemma-2-2b"), ("gpt2", "/models/other"),
     ("./my-model", "gpt2"), (None, "gpt2"), ("gpt2", "")],
)  # fmt: skip
def test_a_bank_of_the_same_or_an_unknown_model_is_taken(named, loaded):
    model = llama()
    model.config.name_or_path = loaded
    assert len(find_sites(Tuning(model), bank(model=named)))


def test_a_bank_of_another_model_is_refused_until_it_is_said_to_be_meant():
    model = llama()
    model.config.name_or_path = "meta-llama/Llama-3.2-1B"
    other = bank(model="gpt2-small")
    with pytest.raises(ValueError, match=r"belong to model 'gpt2-small' but this one is 'meta-llama/Llama-3.2-1B'"):
        find_sites(lora(model), other)
    assert len(find_sites(model, dataclasses.replace(other, model=None)))


def test_a_summary_says_how_many_of_each_were_found():
    assert (
        repr(find_sites(llama(), bank(hook="blocks.1.hook_resid_post"))) == "Sites(5 writers, 6 readers, 19 left out)"
    )


def test_a_direction_that_a_reader_cannot_see_is_refused_by_concept_and_name():
    flat = ConceptBank.from_directions({"flat": torch.ones(32)}, hook="blocks.0.hook_resid_post")
    with pytest.raises(ValueError, match=r"concept 'flat' \(row 0\) vanishes .* 'transformer.h.1.attn.c_attn.weight'"):
        find_sites(gpt2(), flat)


@pytest.mark.parametrize(("family", "sees"), [("neox", False), ("neox-sequential", True)])
def test_the_mlp_of_a_parallel_block_reads_before_what_its_attention_adds(family, sees):
    model = model_of(family).eval()
    name = "gpt_neox.layers.0.mlp.dense_h_to_4h.weight"
    readers = [site.name for site in find_sites(model, bank(hook="blocks.0.hook_attn_out")) if site.role == "reader"]
    assert (name in readers) is sees
    received = []
    model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
        lambda _m, args: received.append(args[0])
    )
    for _ in range(2):
        model(input_ids=torch.tensor([[1, 2, 3]]))
        model.gpt_neox.layers[0].attention.dense.weight.data += 1
    assert torch.equal(*received) is not sees
