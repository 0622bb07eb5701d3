"""A tiny random model of every architecture, with a tokenizer of its kind, as its repository on the hub holds them.

Names, model classes, tokenizer classes, special tokens, precision and tied heads are those of the repositories;
sizes are not, but where a release of SAEs fixes the width (Gemma Scope, Qwen-Scope), where the width is real.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from tests.helpers import words
from tests.helpers.words import TEXTS, Words

WIDTH = 32
STREAM = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128}
PLAIN = STREAM | {"intermediate_size": 48}
GROUPED = PLAIN | {"num_key_value_heads": 2}
WITH_HEADS = GROUPED | {"head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


@dataclass(frozen=True)
class Family:
    """A repository of the hub that holds a model.

    Args:
        model: its name there.
        kind: `model_type` in its configuration.
        words: its tokenizer.
        sizes: what else its configuration says.
        dtype: of its weights.
    """

    model: str
    kind: str
    words: Words
    sizes: dict[str, Any]
    dtype: torch.dtype = torch.bfloat16

    @property
    def width(self) -> int:
        """Of the residual stream."""
        return self.sizes["n_embd" if self.kind == "gpt2" else "hidden_size"]

    def save(self, root: Path) -> None:
        """Write the repository below the root of the hub; larger models have several files of weights, as there."""
        folder = root / self.model
        folder.mkdir(parents=True)
        self.words.save(folder)
        self._random(Tokenizer.from_file(str(folder / "tokenizer.json"))).save_pretrained(folder, max_shard_size="64KB")

    def _random(self, tokenizer: Tokenizer) -> PreTrainedModel:
        """The model for this tokenizer; gains and biases are not those that training starts from."""
        ends = {
            f"{role}_token_id": tokenizer.token_to_id(self.words.special.get(f"{role}_token", ""))
            for role in ("bos", "eos", "pad")
        }
        config = AutoConfig.for_model(self.kind, vocab_size=tokenizer.get_vocab_size(), **self.sizes, **ends)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=self.dtype)
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.data += 0.1 * torch.randn(parameter.shape).to(self.dtype)
        return model


FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        "openai-community/gpt2", "gpt2", words.GPT2, {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 128},
        dtype=torch.float32,
    ),
    "llama": Family("meta-llama/Llama-3.1-8B", "llama", words.LLAMA3, GROUPED),
    "mistral": Family("mistralai/Mistral-7B-v0.1", "mistral", words.LLAMA2, GROUPED),
    "qwen2": Family("Qwen/Qwen2.5-7B-Instruct", "qwen2", words.QWEN_CHAT, GROUPED | {"num_hidden_layers": 4}),
    "qwen3": Family(
        "Qwen/Qwen3-1.7B-Base", "qwen3", words.QWEN, WITH_HEADS | {"hidden_size": 2048, "tie_word_embeddings": True}
    ),
    "phi3": Family("microsoft/Phi-3-mini-4k-instruct", "phi3", words.PHI3, GROUPED),
    "gpt_neox": Family("EleutherAI/pythia-70m-deduped", "gpt_neox", words.NEOX, PLAIN, dtype=torch.float16),
    "opt": Family(
        "facebook/opt-125m", "opt", words.OPT, STREAM | {"ffn_dim": 48, "word_embed_proj_dim": WIDTH},
        dtype=torch.float16,
    ),
    "gemma2": Family(
        "google/gemma-2-2b", "gemma2", words.GEMMA, WITH_HEADS | {"hidden_size": 2304, "query_pre_attn_scalar": 8}
    ),
    "gemma3": Family("google/gemma-3-270m", "gemma3_text", words.GEMMA, WITH_HEADS | {"query_pre_attn_scalar": 8}),
    "mixtral": Family("mistralai/Mixtral-8x7B-v0.1", "mixtral", words.LLAMA2, GROUPED | {"num_local_experts": 4}),
    "qwen2_moe": Family(
        "Qwen/Qwen1.5-MoE-A2.7B", "qwen2_moe", words.QWEN, GROUPED | EXPERTS | {"shared_expert_intermediate_size": 40}
    ),
    "qwen3_moe": Family("Qwen/Qwen3-30B-A3B", "qwen3_moe", words.QWEN_CHAT, WITH_HEADS | EXPERTS),
    "olmo2": Family("allenai/OLMo-2-0425-1B", "olmo2", words.OLMO, GROUPED, dtype=torch.float32),
}  # fmt: skip


def logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """What a model says to the first text."""
    with torch.no_grad():
        return model(**tokenizer(TEXTS[0], return_tensors="pt")).logits.float()
