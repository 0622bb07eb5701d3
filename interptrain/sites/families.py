"""Families of transformers, recognised by the names of the modules in a block, never by a config class."""

from __future__ import annotations

from dataclasses import replace

from interptrain.sites.family import Family, Half

QKV, HEAD_NORMS = ("q_proj", "k_proj", "v_proj"), ("q_norm", "k_norm")
LLAMA_ATTENTION = Half("self_attn", "input_layernorm", QKV, ("o_proj",), HEAD_NORMS)
LLAMA_MLP = Half("mlp", "post_attention_layernorm", ("gate_proj", "up_proj"), ("down_proj",))
EXPERTS = replace(LLAMA_MLP, readers=("gate.weight", "experts.gate_up_proj"), writers=("experts.down_proj",))
SHARED_EXPERT = replace(
    EXPERTS,
    readers=(*EXPERTS.readers, "shared_expert.gate_proj", "shared_expert.up_proj", "shared_expert_gate"),
    writers=(*EXPERTS.writers, "shared_expert.down_proj"),
    inner=("shared_expert.act_fn",),
)

LLAMA = Family(
    title="Llama-like",  # Llama, Mistral, Qwen2, Qwen3, and with experts Mixtral, Qwen2-MoE, Qwen3-MoE
    attention=LLAMA_ATTENTION,
    mlp=(LLAMA_MLP, EXPERTS, SHARED_EXPERT),
    embeddings=("embed_tokens",),
    final_norm="norm",
)
PHI3 = replace(
    LLAMA,
    title="Phi-3",
    attention=replace(LLAMA_ATTENTION, readers=("qkv_proj",), inner=()),
    mlp=replace(LLAMA_MLP, readers=("gate_up_proj",)),
)
GEMMA = replace(
    LLAMA,
    title="Gemma-2/3",
    attention=replace(LLAMA_ATTENTION, post_norm="post_attention_layernorm"),
    mlp=replace(LLAMA_MLP, norm="pre_feedforward_layernorm", post_norm="post_feedforward_layernorm"),
)
GPT2 = Family(
    title="GPT-2",
    attention=Half("attn", "ln_1", ("c_attn",), ("c_proj",)),
    mlp=Half("mlp", "ln_2", ("c_fc",), ("c_proj",)),
    embeddings=("wte", "wpe"),
    final_norm="ln_f",
)
NEOX = Family(
    title="GPT-NeoX",  # Pythia
    attention=Half("attention", "input_layernorm", ("query_key_value",), ("dense",)),
    mlp=Half("mlp", "post_attention_layernorm", ("dense_h_to_4h",), ("dense_4h_to_h",)),
    embeddings=("embed_in",),
    final_norm="final_layer_norm",
    parallel=True,
    settings={"use_parallel_residual": True},
)
NEOX_SEQUENTIAL = replace(NEOX, title="sequential GPT-NeoX", parallel=False, settings={"use_parallel_residual": False})
OPT = Family(
    title="OPT",
    attention=Half("self_attn", "self_attn_layer_norm", QKV, ("out_proj",)),
    mlp=Half("", "final_layer_norm", ("fc1",), ("fc2",)),
    embeddings=("embed_tokens", "embed_positions"),
    final_norm="final_layer_norm",
    settings={"do_layer_norm_before": True},
)
OPT_POST_NORM = replace(
    OPT,
    title="post-norm OPT",
    settings={"do_layer_norm_before": False},
    refused="each norm stands behind the sum of stream and half and norms the stream itself, so nothing that is "
    "written stays along its direction",
)
OLMO2 = replace(
    LLAMA,
    title="OLMo-2/3",  # norms behind the halves alone: readers take the stream as it is
    attention=replace(LLAMA_ATTENTION, norm=None, post_norm="post_attention_layernorm"),
    mlp=replace(LLAMA_MLP, norm=None, post_norm="post_feedforward_layernorm"),
)
FAMILIES = [LLAMA, PHI3, GEMMA, OLMO2, GPT2, NEOX, NEOX_SEQUENTIAL, OPT, OPT_POST_NORM]  # `register_family` adds


def register_family(family: Family) -> None:
    """Have `find_sites` and hook points know a family from now on, before those that are known already.

    Args:
        family: of a model of one's own; `Family.from_mapping` makes one of plain dicts.

    Raises:
        ValueError: another family of this title is known.

    Example:
        >>> half = Half("mix", "n1", ("qkv",), ("o",))
        >>> mine = Family("mine", half, Half("ff", "n2", ("up",), ("down",)), ("tokens",), "last", "out")
        >>> register_family(mine)
        >>> register_family(mine)  # once is enough
        >>> FAMILIES.remove(mine)
    """
    for known in FAMILIES:
        if known == family:
            return
        if known.title == family.title:
            raise ValueError(f"another family is called '{family.title}' already; give this one a title of its own")
    FAMILIES.insert(0, family)
