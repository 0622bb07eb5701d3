"""One small model of each family, and where PEFT puts LoRA on it."""

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tests.helpers.models import WIDTH
from tests.unit.sites.models import SMALL

EXPERTS = {
    "moe_intermediate_size": 20, "num_experts_per_tok": 2, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "output_router_logits": False, "router_aux_loss_coef": 0.0,
}  # fmt: skip
NEOX = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "rotary_pct": 0.5}
CONFIGS = {
    "phi3": ("phi3", {"resid_pdrop": 0.0, "embd_pdrop": 0.0}),
    "neox": ("gpt_neox", NEOX),
    "neox-sequential": ("gpt_neox", NEOX | {"use_parallel_residual": False}),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": WIDTH, "dropout": 0.0}),
    "gemma2": ("gemma2", {"head_dim": 8, "query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", {"head_dim": 8, "query_pre_attn_scalar": 8}),
    "olmo2": ("olmo2", {}),
    "mixtral": ("mixtral", {"num_local_experts": 3, "intermediate_size": 20}),
    "qwen2-moe": ("qwen2_moe", EXPERTS | {"num_experts": 3, "shared_expert_intermediate_size": 24}),
    "qwen3-moe": ("qwen3_moe", EXPERTS | {"num_experts": 3, "mlp_only_layers": [0], "head_dim": 8}),
}  # fmt: skip
APPROXIMATE = ("gemma2", "gemma3", "olmo2")
FUSED = ("mixtral", "qwen2-moe", "qwen3-moe")


def model_of(family, *, layers=2, tied=False, **options):
    """A model of a family, two layers deep unless asked otherwise; the same weights every time."""
    kind, own = CONFIGS[family]
    torch.manual_seed(0)
    own = own | ({"experts_implementation": "eager"} if family in FUSED else {})  # the fused kernels take no float64
    settings = SMALL | own | {"num_hidden_layers": layers, "tie_word_embeddings": tied} | options
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings))


def adapted(family, model, **options):
    """The model with LoRA on every linear map in its blocks, and on the experts and routers that are none."""
    if family in FUSED:
        options["target_parameters"] = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"]
    maps = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=maps, **options))
