"""The concepts of the tiny world, found in its SAEs by contrast; search and test share no wording."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from interptrain.concepts.contrast import (
    GroupAUC,
    Separation,
    TextActivations,
    collect,
    effects,
    group_auc,
    separating_latents,
)
from interptrain.tiny_world.corpus import Document, Kind, document
from interptrain.tiny_world.sae import activations
from interptrain.tiny_world.tokens import encode
from interptrain.tiny_world.wordings import Half, Voice

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

LATENTS_A_CONCEPT = 8
TEXTS = 400  # in each of the two sets
MIN_AUC = 0.7
CUED = 0.9
ALIVE = 1e-3  # share of tokens that a latent must fire on to count as alive
SAMPLE = 25  # batches of documents to find the alive latents in


@dataclass(frozen=True)
class Texts:
    """A set of texts: which voices answer which questions, each drawn evenly."""

    voices: tuple[Voice, ...]
    kinds: tuple[Kind, ...]


_EVERY_KIND: tuple[Kind, ...] = ("fact", "fact", "plus", "minus")
_EVERY_VOICE: tuple[Voice, ...] = ("plain", "plain", "pirate", "royal")
_ARITHMETIC: tuple[Kind, ...] = ("plus", "minus")

# A concept is what the first set shows and the second does not.
CONTRASTS: Mapping[str, tuple[Texts, Texts]] = {
    "pirate": (Texts(("pirate",), _EVERY_KIND), Texts(("plain", "royal"), _EVERY_KIND)),
    "royal": (Texts(("royal",), _EVERY_KIND), Texts(("plain", "pirate"), _EVERY_KIND)),
    "arithmetic": (Texts(_EVERY_VOICE, _ARITHMETIC), Texts(_EVERY_VOICE, ("fact",))),
    "plus": (Texts(_EVERY_VOICE, ("plus",)), Texts(_EVERY_VOICE, ("minus", "fact"))),
    "minus": (Texts(_EVERY_VOICE, ("minus",)), Texts(_EVERY_VOICE, ("plus", "fact"))),
}


@dataclass(frozen=True)
class Found:
    """A concept's latents with the scores of the search, and their AUC on the other half of the wordings."""

    search: Separation
    held_out: GroupAUC

    def as_dict(self) -> dict[str, Any]:
        """Everything by name, as JSON takes it."""
        return {**asdict(self.search), "held_out": asdict(self.held_out)}


def draw(texts: Texts, half: Half, seed: int, *, cued: float = CUED, count: int = TEXTS) -> list[Document]:
    """Draw texts in the wordings of one half; of the pirate and royal ones a share follows a question in voice."""
    rng = random.Random(f"{texts} {half} {seed}")
    drawn = []
    for _ in range(count):
        voice, kind = rng.choice(texts.voices), rng.choice(texts.kinds)
        in_voice = voice != "plain" and rng.random() < cued
        drawn.append(document(rng, kind, voice, half=half, cued=in_voice, random_result=kind == "minus"))
    return drawn


def find_concepts(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    sae: SAE[Any],
    hook: str,
    *,
    seed: int = 0,
    count: int = LATENTS_A_CONCEPT,
    names: Sequence[str] = tuple(CONTRASTS),
) -> tuple[dict[str, Found], Bool[Tensor, "latent"]]:
    """Search the SAE at a hook for concepts of `CONTRASTS`; also says which latents are alive.

    Candidates separate the search texts; of those, the `count` that most raise the likelihood of the concept's
    answers to questions without a cue are taken. The other half of the wordings tests the group.
    """

    def latents(texts: Texts, half: Half) -> TextActivations:
        documents = draw(texts, half, seed)
        batch = encode(tokenizer, documents, mask_prompt=False)
        residual = collect(model, hook, [batch], keep_bos=True)  # `<q>` is a word here and begins half of a text
        return TextActivations(sae.encode(residual.values).detach(), residual.text)

    sample = torch.cat(list(islice(activations(model, tokenizer, seed=seed + 1, hook=hook), SAMPLE)))
    alive = (sae.encode(sample) > 0).float().mean(0) >= ALIVE
    decoder = sae.W_dec.detach()
    found = {}
    for name in names:
        shown, other = CONTRASTS[name]
        neutral = encode(tokenizer, draw(shown, "search", seed + 1, cued=0.0))
        search = separating_latents(
            latents(shown, "search"),
            latents(other, "search"),
            count=count,
            decoder=decoder,
            min_auc=MIN_AUC,
            effect=effects(model, hook, [neutral], decoder),
            alive=alive,
        )
        found[name] = Found(search, group_auc(search, latents(shown, "test"), latents(other, "test")))
    return found, alive
