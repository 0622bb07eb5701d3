"""What is not understood is named, before anything trains."""

import pytest
import pytorch_lightning as pl
import torch
from peft import AdaLoraConfig, IA3Config, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from interptrain.sites import find_sites
from interptrain.sites.layer import bare
from tests.helpers.models import Tuning, llama, lora
from tests.unit.sites.families import adapted, model_of
from tests.unit.sites.models import SMALL, PlainTransformer, bank, gpt2


def other_family(kind, **options):
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(SMALL | options)))


UNKNOWN = {
    "cohere": ({}, r"'model.layers.0' \(CohereDecoderLayer\) .* has no 'post_attention_layernorm'"),
    "qwen3_next": ({"num_experts": 2, "head_dim": 8}, r"'model.layers.0' \(Qwen3NextDecoderLayer\) .*'linear_attn'"),
    "glm4": ({"head_dim": 8}, r"'model.layers.0' \(Glm4DecoderLayer\) .* 'post_self_attn_layernorm'"),
    "flex_olmo": ({"num_experts": 2}, r"\(FlexOlmoDecoderLayer\) is not .*'post_feedforward_layernorm'"),
    "gpt_oss": ({"num_local_experts": 2, "head_dim": 8}, r"'model.layers.0' \(GptOssDecoderLayer\) .*'sinks'"),
    "bloom": ({"n_layer": 1, "n_head": 4}, r"'transformer.h.0' \(BloomBlock\) is not .*'self_attention'"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "options", "message"), [(kind, *rest) for kind, rest in UNKNOWN.items()])
def test_a_family_that_is_not_understood_is_refused_by_the_module_that_differs(kind, options, message):
    with pytest.raises(ValueError, match=message) as raised:
        find_sites(other_family(kind, **options), bank())
    assert "(Llama-like, Phi-3, Gemma-2/3, OLMo-2/3, GPT-2, GPT-NeoX, sequential GPT-NeoX, OPT)" in str(raised.value)


def test_an_opt_whose_norms_stand_behind_the_sum_is_refused_with_the_reason():
    with pytest.raises(
        ValueError, match=r"\(OPTDecoderLayer\) is post-norm OPT, not to be read: each norm stands behind"
    ):
        find_sites(model_of("opt", do_layer_norm_before=False), bank())


def test_between_the_halves_of_a_parallel_block_there_is_no_stream():
    with pytest.raises(ValueError, match=r"'blocks.0.hook_resid_mid' does not exist in 'gpt_neox.layers' \(GPT-NeoX\)"):
        find_sites(model_of("neox"), bank(hook="blocks.0.hook_resid_mid"))
    assert find_sites(model_of("neox-sequential"), bank(hook="blocks.0.hook_resid_mid"))


def test_what_a_norm_still_changes_is_no_place_in_the_stream():
    with pytest.raises(ValueError, match=r"'model.layers.0.mlp' puts out what 'post_feedforward_layernorm' norms"):
        find_sites(model_of("gemma2"), bank(hook="model.layers.0.mlp"))
    assert find_sites(model_of("gemma2"), bank(hook="blocks.0.hook_mlp_out"))


def test_experts_that_lie_transposed_are_refused():
    model = model_of("mixtral")
    model.model.layers[0].mlp.experts.is_transposed = True
    with pytest.raises(ValueError, match=r"layers.0.mlp.experts.gate_up_proj' holds its experts transposed"):
        find_sites(model, bank())


def test_packed_experts_are_refused_by_name_and_type():
    model = adapted("mixtral", model_of("mixtral"))
    experts = bare(model.base_model.model.model.layers[0].mlp.experts)
    experts.down_proj = nn.Parameter(torch.zeros(3, 32, 10, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"mlp.experts.down_proj' is a weight of torch.uint8.*quantised"):
        find_sites(model, bank())


def test_a_parameter_that_an_expert_block_has_beside_its_weights_is_refused():
    model = model_of("qwen2-moe")
    model.model.layers[0].mlp.experts.down_bias = nn.Parameter(torch.zeros(3, 32), requires_grad=False)
    with pytest.raises(ValueError, match=r"'mlp.experts' has 'down_bias'"):
        find_sites(model, bank())


def test_a_block_that_scales_what_it_puts_out_by_a_buffer_is_refused():
    model = llama()
    model.model.layers[1].register_buffer("layer_scalar", torch.ones(1))
    with pytest.raises(
        ValueError, match=r"'model.layers.1' \(LlamaDecoderLayer\) is not Llama-like: it has 'layer_scalar'"
    ):
        find_sites(model, bank())


@pytest.mark.parametrize("model", [nn.Linear(4, 4), nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4), 2)])
def test_a_model_without_known_blocks_is_refused(model):
    with pytest.raises(ValueError, match="found no blocks of a known family"):
        find_sites(model, bank())


def test_a_block_with_a_parameter_of_its_own_is_refused_by_its_name():
    model = PlainTransformer()
    model.h[1].layer_scale = nn.Parameter(torch.ones(32), requires_grad=False)
    with pytest.raises(ValueError, match=r"'h.1' \(Block\) is not GPT-2: it has 'layer_scale'"):
        find_sites(model, bank())


def test_two_stacks_of_blocks_are_refused_with_both_names():
    module = Tuning(llama())
    module.teacher = gpt2()
    with pytest.raises(ValueError, match=r"'model.model.layers' \(Llama-like, 3 blocks\), 'teacher.transformer.h'"):
        find_sites(module, bank())


def test_an_unknown_module_that_trains_is_refused_by_name_and_can_be_skipped():
    module = Tuning(llama())
    module.value_head = nn.Linear(32, 1)
    with pytest.raises(ValueError, match=r"'value_head.weight' trains, .* skip=\['value_head\*'\]"):
        find_sites(module, bank())
    sites = find_sites(module, bank(), skip=["value_head*"])
    assert [left.name for left in sites.left_out if left.reason == "left out on request"] == [
        "value_head.weight", "value_head.bias",
    ]  # fmt: skip


def test_a_head_behind_no_known_norm_is_not_understood():
    model = PlainTransformer()
    del model.ln_f
    with pytest.raises(ValueError, match=r"'lm_head.weight' trains, but"):
        find_sites(model, bank())


def test_a_norm_that_is_not_understood_is_refused_by_name():
    model = PlainTransformer()
    model.h[1].ln_2 = nn.GroupNorm(4, 32)
    with pytest.raises(ValueError, match=r"'h.1.ln_2' \(GroupNorm\) is neither .* skip=\['h.1.mlp.c_fc.\*'\]"):
        find_sites(model, bank())


def test_dora_is_refused_by_name():
    model = lora(llama(), targets=["o_proj"], use_dora=True)
    with pytest.raises(ValueError, match=r"layers.0.self_attn.o_proj' is adapted with DoRA.* skip=\['.*o_proj.\*'\]"):
        find_sites(model, bank())


def test_lora_of_an_embedding_is_refused_by_name():
    with pytest.raises(ValueError, match=r"embed_tokens' trains 'lora_embedding_A.default'"):
        find_sites(lora(llama(), targets=["embed_tokens", "o_proj"]), bank())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (IA3Config(target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"]), "ia3_l.default"),
        (AdaLoraConfig(target_modules=["o_proj"], total_step=10, tinit=1, tfinal=1), "lora_A.default"),
        (PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"), "prompt_encoder.default.embedding.weight"),
    ],
)
def test_other_adapters_are_refused_by_the_parameter_they_train(config, message):
    with pytest.raises(ValueError, match=f"{message}'.* not understood.*skip="):
        find_sites(get_peft_model(llama(), config), bank())


def test_a_packed_base_weight_is_refused_by_name_and_type():
    model = lora(llama(), targets=["o_proj"])
    base = model.base_model.model.model.layers[0].self_attn.o_proj.base_layer
    base.weight = nn.Parameter(torch.zeros(512, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"o_proj.base_layer' \(Linear\) has a weight of torch.uint8.*quantised"):
        find_sites(model, bank())


def test_a_weight_whose_shape_is_not_its_layers_is_refused():
    model = PlainTransformer()
    model.h[0].mlp.c_proj.weight = nn.Parameter(torch.zeros(48, 32))
    with pytest.raises(ValueError, match=r"'h.0.mlp.c_proj' \(Linear\) is not a Linear, Conv1D or Embedding"):
        find_sites(model, bank())


def test_a_parametrised_weight_is_refused():
    model = PlainTransformer()
    torch.nn.utils.parametrizations.weight_norm(model.h[0].mlp.c_proj)
    with pytest.raises(ValueError, match=r"'h.0.mlp.c_proj' trains 'parametrizations.weight.original0'"):
        find_sites(model, bank())


def test_a_module_kept_by_two_adapters_is_refused():
    model = lora(llama(), targets=["up_proj"], modules_to_save=["post_attention_layernorm"])
    model.add_adapter("second", model.peft_config["default"])
    with pytest.raises(ValueError, match=r"post_attention_layernorm' is kept by 2 adapters \(default, second\)"):
        find_sites(model, bank(), where="update")


def test_another_width_is_refused_with_both_widths():
    with pytest.raises(ValueError, match=r"width 2048 but 'model.embed_tokens.weight' has 32 on axis 1"):
        find_sites(llama(), bank(width=2048))


def test_a_hook_beyond_the_model_is_refused():
    with pytest.raises(ValueError, match=r"at layer 9 but 'model.layers' has 3 blocks"):
        find_sites(llama(), bank(hook="blocks.9.hook_resid_post"))


def test_a_hook_outside_the_stream_is_refused():
    with pytest.raises(ValueError, match=r"'blocks.0.attn.hook_z' is not a place in the residual stream"):
        find_sites(llama(), bank(hook="blocks.0.attn.hook_z"))


def test_a_model_in_which_nothing_trains_is_refused():
    model = llama()
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing in it trains"):
        find_sites(model, bank())


def test_when_everything_is_left_out_the_reasons_are_said():
    model = lora(llama(), targets=["q_proj"])
    with pytest.raises(ValueError, match=r"3 parameters: the LoRA factor .*; 2 parameters: a LoRA reader"):
        find_sites(model, bank())


def test_a_skip_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match=r"skip pattern 'lm_heads\*' matches no parameter"):
        find_sites(llama(), bank(), skip=["lm_heads*"])


def test_a_single_skip_pattern_must_stand_in_a_list():
    with pytest.raises(TypeError, match=r"write \['lm_head\*'\]"):
        find_sites(llama(), bank(), skip="lm_head*")


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match=r'where is "gradient" or "update", found \'weights\''):
        find_sites(llama(), bank(), where="weights")


def test_a_lightning_module_without_a_transformer_is_refused():
    module = pl.LightningModule()
    module.layer = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="in LightningModule: it holds no list of blocks"):
        find_sites(module, bank())
