"""What ships with the package: the base, its tokenizer, its two SAEs and the concepts found in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from interptrain.concepts.bank import ConceptBank
from interptrain.concepts.saelens import from_saelens
from interptrain.tiny_world.sae import HOOK, OUTPUT_HOOK

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

DATA = Path(__file__).parent / "data"
SAE_FOLDERS: Mapping[str, str] = {HOOK: "sae", OUTPUT_HOOK: "sae-output"}


def load_base(folder: Path = DATA) -> LlamaForCausalLM:
    """The pretrained base, in eval mode; each call gives a model of its own."""
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder / "base", local_files_only=True).eval()


def load_tokenizer(folder: Path = DATA) -> PreTrainedTokenizerFast:
    """The word-level tokenizer."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder / "base", local_files_only=True)


def load_card(folder: Path = DATA) -> dict[str, Any]:
    """What the build measured: scores, seeds, versions, times, and every concept's search.

    `sae` and `concepts` are those of `HOOK`; the same of `OUTPUT_HOOK` is under `output`.
    """
    card: dict[str, Any] = json.loads((folder / "card.json").read_text())
    return card


def card_at(card: dict[str, Any], hook: str) -> dict[str, Any]:
    """The part of the card with one hook's `sae` and `concepts`."""
    part: dict[str, Any] = card["output"] if hook == OUTPUT_HOOK else card
    return part


def load_sae(folder: Path = DATA, hook: str = HOOK) -> SAE[Any]:
    """An SAE of the base's residual stream, as SAELens loads it.

    Args:
        folder: a built tiny world.
        hook: `HOOK`, or `OUTPUT_HOOK` for the SAE of the last layer.

    Raises:
        ValueError: the tiny world has no SAE at this hook.

    Example:
        >>> load_sae(hook=OUTPUT_HOOK).cfg.metadata.hook_name
        'blocks.3.hook_resid_post'
    """
    from sae_lens import SAE

    if hook not in SAE_FOLDERS:
        raise ValueError(f"the tiny world has SAEs at {' and '.join(SAE_FOLDERS)}, none at '{hook}'")
    return SAE.load_from_disk(folder / SAE_FOLDERS[hook]).eval()


def concept_bank(folder: Path = DATA, hook: str = HOOK) -> ConceptBank:
    """The bank of the concepts that the search found at a hook: pirate, royal, arithmetic, plus and minus.

    Latents of the default hook tell what a text is about; those of `OUTPUT_HOOK`, behind the last layer, what is
    about to be said. How well each concept separates texts in wordings that the search never saw is in the card:
    `load_card()["concepts"]["pirate"]["held_out"]`, and under `load_card()["output"]` for `OUTPUT_HOOK`.

    Args:
        folder: a built tiny world.
        hook: `HOOK` or `OUTPUT_HOOK`.

    Raises:
        ValueError: the tiny world has no SAE at this hook.

    Example:
        >>> bank = concept_bank(hook=OUTPUT_HOOK)
        >>> bank.hook_points, len(bank.rows("pirate"))
        (('blocks.3.hook_resid_post',), 8)
    """
    sae, card = load_sae(folder, hook), card_at(load_card(folder), hook)
    alive = torch.ones(sae.cfg.d_sae, dtype=torch.bool)
    alive[card["sae"]["dead"]] = False
    return from_saelens(sae, {name: found["latents"] for name, found in card["concepts"].items()}, alive=alive)
