"""Training of the SAEs: top-k dictionaries of the base's residual stream, by SAELens' own trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interptrain.concepts.contrast import collect
from interptrain.sites.hooks import HookPoint
from interptrain.tiny_world.corpus import pretraining_documents
from interptrain.tiny_world.tokens import batches

if TYPE_CHECKING:
    from sae_lens import TrainingSAE
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

LAYER = 2
HOOK = f"blocks.{LAYER}.hook_resid_post"
OUTPUT_LAYER = 3  # the last: the unembedding alone reads it, so its latents bring about the words they stand for
OUTPUT_HOOK = f"blocks.{OUTPUT_LAYER}.hook_resid_post"
LATENTS, ACTIVE = 256, 8  # wider ones learn many copies of a feature, which blurs every null
TOKENS, BATCH, LEARNING_RATE = 600_000, 1024, 3e-3


def activations(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, seed: int, hook: str = HOOK
) -> Iterator[Tensor]:
    """Residual activations `[token, d_model]` of freshly drawn documents, first tokens left out, without end."""
    for batch in batches(tokenizer, pretraining_documents(seed), 64, mask_prompt=False):
        batch["labels"][:, 1] = -100  # `<q>` always looks the same
        yield collect(model, hook, [batch]).values


def train_sae(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    hook: str = HOOK,
    seed: int = 0,
    tokens: int = TOKENS,
    progress: Callable[[int], None] = lambda tokens: None,
) -> TrainingSAE[Any]:
    """Train a top-k SAE on the base's activations behind one of its layers.

    Args:
        model: the base.
        tokenizer: its tokenizer.
        hook: `blocks.L.hook_resid_post` of that layer.
        seed: of the weights and of the documents.
        tokens: how many activations to train on.
        progress: called for every batch with its number of tokens.

    Raises:
        ValueError: the hook is no place in the base's residual stream.
    """
    from sae_lens import LoggingConfig, SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.mixing_buffer import mixing_buffer

    torch.manual_seed(seed)
    metadata = SAEMetadata(
        model_name="interptrain-tiny-world",
        hook_name=hook,
        hf_hook_name=f"model.layers.{HookPoint.parse(hook).layer}",
        context_size=model.config.max_position_embeddings,
        prepend_bos=False,
    )
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=model.config.hidden_size,
            d_sae=LATENTS,
            k=ACTIVE,
            normalize_activations="expected_average_only_in",
            metadata=metadata,
        )
    )
    steps = tokens // BATCH
    config = SAETrainerConfig(
        total_training_samples=tokens,
        train_batch_size_samples=BATCH,
        lr=LEARNING_RATE,
        lr_end=LEARNING_RATE / 10,
        lr_warm_up_steps=20,
        lr_decay_steps=steps // 5,
        dead_feature_window=100,
        feature_sampling_window=100,
        n_batches_for_norm_estimate=16,
        logger=LoggingConfig(log_to_wandb=False),
    )
    mixed = mixing_buffer(16 * BATCH, BATCH, activations(model, tokenizer, seed=seed + 1000, hook=hook))
    return SAETrainer(config, sae, _counted(mixed, progress)).fit()


def _counted(stream: Iterator[Tensor], progress: Callable[[int], None]) -> Iterator[Tensor]:
    for batch in stream:
        progress(len(batch))
        yield batch
