"""What ships with the package: the base, its tokenizer, its SAE and the concepts found in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from interptrain.concepts.bank import ConceptBank
from interptrain.concepts.saelens import from_saelens

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

DATA = Path(__file__).parent / "data"


def load_base(folder: Path = DATA) -> LlamaForCausalLM:
    """The pretrained base, in eval mode; each call gives a model of its own."""
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder / "base", local_files_only=True).eval()


def load_tokenizer(folder: Path = DATA) -> PreTrainedTokenizerFast:
    """The word-level tokenizer."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder / "base", local_files_only=True)


def load_card(folder: Path = DATA) -> dict[str, Any]:
    """What the build measured: scores, seeds, versions, times, and every concept's search."""
    card: dict[str, Any] = json.loads((folder / "card.json").read_text())
    return card


def load_sae(folder: Path = DATA) -> SAE[Any]:
    """The SAE of the base's residual stream, as SAELens loads it."""
    from sae_lens import SAE

    return SAE.load_from_disk(folder / "sae").eval()


def concept_bank(folder: Path = DATA) -> ConceptBank:
    """The bank of the concepts that the search found: pirate, royal, arithmetic, plus and minus.

    How well each separates texts in wordings that the search never saw is in the card:
    `load_card()["concepts"]["pirate"]["held_out"]`.
    """
    card = load_card(folder)
    sae = load_sae(folder)
    alive = torch.ones(sae.cfg.d_sae, dtype=torch.bool)
    alive[card["sae"]["dead"]] = False
    return from_saelens(sae, {name: found["latents"] for name, found in card["concepts"].items()}, alive=alive)
