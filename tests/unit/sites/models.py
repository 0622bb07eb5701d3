"""More small models for the tests of sites: other families, a hand-written one, and weights that are not trivial."""

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

from interptrain.concepts.bank import ConceptBank
from tests.helpers.models import WIDTH, WORDS, llama

SMALL = {
    "vocab_size": WORDS, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32, "pad_token_id": 0,
    "tie_word_embeddings": False,
}  # fmt: skip


def bank(*, hook="blocks.0.hook_resid_post", width=WIDTH, rows=2, model=None):
    """Overlapping directions of one concept at one hook."""
    directions = torch.randn(rows, width, generator=torch.Generator().manual_seed(7)) + 0.5
    return ConceptBank.from_directions({"pirate": directions}, hook=hook, model=model)


def qwen3():
    return Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=8))


def mistral():
    return MistralForCausalLM(MistralConfig(**SMALL))


def gpt2(*, tied=False):
    """A GPT-2 of two layers; its head shares the embedding's weight only if asked to."""
    sizes = {"vocab_size": WORDS, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 32}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, tie_word_embeddings=tied))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.c_attn(x).chunk(3, -1)
        return self.c_proj(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.c_fc, self.act, self.c_proj = nn.Linear(WIDTH, 48), nn.GELU(), nn.Linear(48, WIDTH)

    def forward(self, x):
        return self.c_proj(self.act(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(WIDTH), Attention()
        self.ln_2, self.mlp = nn.LayerNorm(WIDTH), Mlp()

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class PlainTransformer(nn.Module):
    """Written by hand with the names of GPT-2 and `Linear` where that has `Conv1D`."""

    def __init__(self):
        super().__init__()
        self.wte, self.h = nn.Embedding(WORDS, WIDTH), nn.ModuleList([Block(), Block()])
        self.ln_f, self.lm_head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, input_ids):
        x = self.wte(input_ids)
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


FAMILIES = {
    "llama": llama, "mistral": mistral, "qwen3": qwen3, "gpt2": gpt2, "plain": PlainTransformer,
}  # fmt: skip


def shaken(model):
    """The model in float64 with norm gains, biases and LoRA's B away from 1 and 0, so that a wrong formula shows."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.double()
        if parameter.ndim == 1 or "lora_B" in name:
            parameter.data += torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5
    return model.double().eval()
