"""The embedded world: a small pretrained Llama, its SAEs, its corpus and its scorer.

Example:
    >>> from interptrain.tiny_world import concept_bank, load_base, load_tokenizer, score
    >>> bank = concept_bank()
    >>> bank.names
    ('pirate', 'royal', 'arithmetic', 'plus', 'minus')
    >>> score(load_base(), load_tokenizer(), prompts=20).kept
    1.0
"""

from interptrain.tiny_world.finetuning import finetuning_set
from interptrain.tiny_world.probes import neutral_batches, probe_batches, probe_sets
from interptrain.tiny_world.sae import OUTPUT_HOOK
from interptrain.tiny_world.score import Behaviour, score
from interptrain.tiny_world.shipped import concept_bank, load_base, load_card, load_sae, load_tokenizer

__all__ = [
    "OUTPUT_HOOK",
    "Behaviour",
    "concept_bank",
    "finetuning_set",
    "load_base",
    "load_card",
    "load_sae",
    "load_tokenizer",
    "neutral_batches",
    "probe_batches",
    "probe_sets",
    "score",
]
