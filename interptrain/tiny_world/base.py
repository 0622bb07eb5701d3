"""Pretraining of the base: a small Llama that has read the tiny world."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING

import torch

from interptrain.tiny_world.corpus import pretraining_documents
from interptrain.tiny_world.tokens import batches

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

STEPS, BATCH, LEARNING_RATE = 2500, 64, 2e-3


def train_base(
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int = 0,
    steps: int = STEPS,
    progress: Callable[[float], None] = lambda loss: None,
) -> LlamaForCausalLM:
    """Pretrain the base from scratch on every token of freshly drawn documents.

    Args:
        tokenizer: of the tiny world.
        seed: of the weights and of the documents.
        steps: of 64 documents, one OneCycle in all.
        progress: called after every step with its loss.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=64,
            tie_word_embeddings=False,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    stream = batches(tokenizer, pretraining_documents(seed), BATCH, mask_prompt=False)
    for batch in islice(stream, steps):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress(float(loss.detach()))
    return model.eval()
