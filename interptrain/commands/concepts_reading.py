"""What the commands of concepts read with: a model, an SAE at one of its hooks, texts; and where they may write."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from interptrain.concepts import Readout
from interptrain.concepts.activation import TOKENS, latents_of
from interptrain.concepts.candidates import TextSet
from interptrain.concepts.contrast import collect
from interptrain.meters.tokens import bos_token, first_labels, leading_bos, loss_positions
from interptrain.recipes.banks import load_sae
from interptrain.recipes.examples import Example, encode
from interptrain.recipes.loading import ModelChoice, device, in_bf16, load_model, load_tokenizer
from interptrain.recipes.provenance import data_file
from interptrain.recipes.voice import Voice
from interptrain.sites.hooks import HookPoint

Precision = Literal["auto", "32", "bf16"]
AT_ONCE = 32  # texts run together


def open_tokenizer(model: str) -> Any:
    """The model's tokenizer, before the model itself is loaded: texts can be refused sooner."""
    return load_tokenizer(ModelChoice(model, tuning="full"))


def open_voice(model: str, tokenizer: Any, *, max_length: int, precision: Precision, at_once: int = AT_ONCE) -> Voice:
    """The model where models are run, in eval mode."""
    loaded = load_model(ModelChoice(model, tuning="full")).eval()
    kept = loaded.to(torch.bfloat16) if in_bf16(precision) else loaded
    return Voice(kept.to(device()), tokenizer, max_length, at_once)


def check_hook(hook: str, voice: Voice) -> None:
    """Refuse a hook that is no place in the model's stream.

    Raises:
        ValueError: it is not.
    """
    HookPoint.parse(hook).locate(voice.model)


@dataclass(frozen=True, eq=False)
class Opened:
    """An SAE and where it stands.

    Args:
        sae: as its release has it.
        readout: what encodes with it.
        encoder: the same, rebuilt.
        hook: where its rows lie.
        reads: where it encodes.
    """

    sae: Any
    readout: Readout
    encoder: Any
    hook: str
    reads: str


def open_sae(name: str, sae_id: str | None, voice: Voice) -> Opened:
    """Load an SAE and see that it is as wide as the model.

    Raises:
        ValueError: there is none, it is of a place that is not in the model, or of another width.
    """
    from interptrain.concepts.saelens import from_saelens, load_sae_readout

    sae = load_sae(name, sae_id)
    whole = from_saelens(sae, {"all": [0]}, model=voice.model)
    hook = whole.hooks[0]
    check_hook(hook, voice)
    readout = whole.readouts[hook]
    encoder, width = load_sae_readout(readout), voice.model.config.get_text_config().hidden_size
    if readout.decoder.shape[1] != width:
        raise ValueError(
            f"the SAE's directions have width {readout.decoder.shape[1]} but '{voice.model.config.name_or_path}' has "
            f"a stream of {width}; was it trained on another model?"
        )
    return Opened(sae, readout, encoder, hook, readout.reads or hook)


def read_texts(
    voice: Voice, hook: str, opened: Opened | None, examples: Sequence[Example]
) -> tuple[TextSet, Tensor | None]:
    """Each text's mean activations over what is in the loss, where its answer begins, and its latents.

    Of a plain text the answer begins half way.

    Returns:
        The reading, and how many tokens each latent fires on.
    """
    whole = collect(voice.model, hook, voice.batches(examples))
    begun = [{**batch, "labels": first_labels(batch["labels"])} for batch in voice.batches(voice.questions(examples))]
    reading = TextSet(whole.means(), collect(voice.model, hook, begun).means())
    if opened is None:
        return reading, None
    read = whole if opened.reads == hook else collect(voice.model, opened.reads, voice.batches(examples))
    if read.values.shape[1] != opened.encoder.cfg.d_in:
        raise ValueError(
            f"the SAE reads activations of width {opened.encoder.cfg.d_in} but the model has {read.values.shape[1]} "
            f"at '{opened.reads}'; was it trained on another model?"
        )
    counts = torch.bincount(read.text)
    sums, fires = torch.zeros(len(counts), opened.readout.decoder.shape[0]), torch.zeros(len(opened.readout.alive))
    for values, text in zip(read.values.split(TOKENS), read.text.split(TOKENS), strict=True):
        latents = latents_of(opened.encoder, values)
        sums.index_add_(0, text, latents)
        fires += (latents > 0).sum(0)
    return replace(reading, latents=sums / counts[:, None]), fires


def usable(voice: Voice, texts: Sequence[Example]) -> list[Example]:
    """The texts of which something is read once they are cut off, whole and where the answer to a question begins."""
    return [
        each for each in texts
        if is_read(voice, each) and is_read(voice, voice.questions([each])[0], at=first_labels)
    ]  # fmt: skip


def is_read(voice: Voice, text: Example, *, at: Callable[[Tensor], Tensor] = torch.clone) -> bool:
    """Whether `collect` counts a token of a text: one that predicts what is in the loss, and is no BOS token.

    Args:
        voice: the model and its tokenizer.
        text: cut off at the voice's length.
        at: which of the labels; all of them.
    """
    rows = encode(voice.tokenizer, [text], voice.max_length)
    if not rows:
        return False
    ids, labels = (torch.tensor([rows[0][name]]) for name in ("input_ids", "labels"))
    counted = loss_positions(at(labels)) & ~leading_bos(ids, torch.ones_like(ids), bos_token(voice.model))
    return bool(counted.any())


def origin_of(path: Path, says: str) -> dict[str, str]:
    """A file by its name and hash."""
    found = data_file(path, says, 0)
    return {"name": found["name"], "says": found["says"], "sha256": found["sha256"]}


def check_new_folder(folder: Path, flag: str) -> None:
    """Refuse a folder that holds something already, or that cannot be made.

    Raises:
        ValueError: it is a file, not empty, or where nothing can be written.
    """
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    if folder != there and not (there.is_dir() and os.access(there, os.W_OK)):
        found = "is read-only" if there.is_dir() else "is a file"
        raise ValueError(f"cannot write to '{folder}': '{there}' {found}; name another ({flag})")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"'{folder}' is a file, expected a folder to write; name another ({flag})")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"'{folder}' holds something already; name a new or empty folder ({flag})")


def check_new_file(path: Path) -> None:
    """Refuse a file that is there already, or that cannot be written.

    Raises:
        ValueError: it is.
    """
    if path.exists():
        raise ValueError(f"'{path}' is there already; name a new file (--out)")
    folder = path.absolute().parent
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ValueError(
            f"cannot write '{path}': '{folder}' is no folder that can be written; name another file (--out)"
        )


def printable(text: str) -> str:
    """A text as a terminal may show it: line ends stay, other control characters become a dot.

    Example:
        >>> printable("a\\x1b[31mb")
        'a·[31mb'
    """
    return "".join(each if each.isprintable() or each == "\n" else "·" for each in text)
