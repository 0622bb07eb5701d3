"""The concepts of a run: a saved bank, latents of an SAE, two sets of texts, or what only the data say.

Where nothing is asked for, the concept is `data`: the way from the model's own answers to those of the training set,

    d = mean h over the data's answers - mean h over its own answers to the same questions

which its own data must ask for: a reading to start from, not a finding. What else they teach is the question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interptrain.concepts import ConceptBank, Readout, load_sae_readout
from interptrain.concepts.activation import latents_of
from interptrain.concepts.contrast import TextActivations, collect, difference_of_means, effects, separating_latents
from interptrain.recipes.examples import Columns, Example, read_examples
from interptrain.recipes.loading import TINY_WORLD, blocks_of
from interptrain.recipes.voice import Voice

if TYPE_CHECKING:
    from sae_lens import SAE

DATA = "data"
TEXTS, PROBES = 64, 16  # texts of a contrast, and of a probe set
DEPTH = 2 / 3  # of the layers: where a contrast is read, if nobody says


@dataclass(frozen=True)
class Sought:
    """Where the concepts come from.

    Args:
        bank: a folder that `ConceptBank.save` wrote.
        sae: a folder or release of SAELens, or `tiny-world`.
        sae_id: which SAE of a release; of `tiny-world`, its hook.
        latents: of the SAE, by concept.
        contrast: by concept, a file of texts that show it and one of texts that do not.
        hook: where a contrast without an SAE is read.
        group: how many latents make a contrasted concept.
        other_model: take an SAE of another model than the one that trains, say of the base that it was tuned from.
    """

    bank: Path | None = None
    sae: str | None = None
    sae_id: str | None = None
    latents: Mapping[str, tuple[int, ...]] | None = None
    contrast: Mapping[str, tuple[Path, Path]] | None = None
    hook: str | None = None
    group: int = 8
    other_model: bool = False

    def __post_init__(self) -> None:
        if self.bank and (self.sae or self.latents or self.contrast or self.hook):
            raise ValueError("concepts names a finished bank; sae, latents, contrast and hook belong to one to be made")
        if self.latents and not self.sae:
            raise ValueError("latents are of an SAE: name it with sae (and sae_id)")
        if self.sae and self.hook:
            raise ValueError("hook says where a contrast is read; with an SAE that is where the SAE was trained")
        if both := sorted({*(self.latents or {})} & {*(self.contrast or {})}):
            raise ValueError(f"{', '.join(both)}: a concept has latents or a contrast, not both")


def find_bank(sought: Sought, voice: Voice, data: Sequence[Example]) -> ConceptBank:
    """The bank that is asked for.

    Args:
        sought: where the concepts come from.
        voice: the model before training.
        data: questions with the answers that will be trained on; where nothing is asked for, the model answers them.

    Raises:
        ValueError: a bank, SAE or file cannot be read, or there is no such concept in them.
    """
    if sought.bank:
        return ConceptBank.load(sought.bank)
    contrasts: dict[str, tuple[Sequence[Example], Sequence[Example]]] = {
        name: (_texts(shown, voice), _texts(absent, voice)) for name, (shown, absent) in (sought.contrast or {}).items()
    }
    if not (contrasts or sought.latents):
        contrasts[DATA] = (data[:TEXTS], voice.own(data[:TEXTS]))
    return _from_dictionary(sought, voice, contrasts) if sought.sae else _from_means(sought, voice, contrasts)


def load_sae(name: str, sae_id: str | None) -> SAE[Any]:
    """An SAE from a folder, a release that SAELens knows, or a repository of the hub.

    Raises:
        ValueError: there is none.
    """
    from sae_lens import SAE

    if name == TINY_WORLD:
        from interptrain.tiny_world import load_sae as load_tiny

        return load_tiny(hook=sae_id) if sae_id else load_tiny()
    try:
        if Path(name).is_dir():
            return SAE.load_from_disk(name).eval()
        if sae_id is None:
            raise ValueError(f"'{name}' is no folder; of a release one SAE is named with sae_id")
        sae = SAE.from_pretrained(name, sae_id).eval()
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot load the SAE '{name}'{f', {sae_id!r}' if sae_id else ''}: {error}") from error
    sae.cfg.metadata.release, sae.cfg.metadata.sae_id = name, sae_id  # SAELens leaves them out
    return sae


def probe_sets(sought: Sought, voice: Voice, own: Sequence[Example], held: Sequence[Example]) -> dict[str, Any]:
    """Texts that are watched: the model's own answers (`neutral`), and for contrasted concepts those that show them."""
    shown: dict[str, Sequence[Example]] = {
        name: _texts(files[0], voice) for name, files in (sought.contrast or {}).items()
    }
    if not (sought.bank or sought.latents or sought.contrast):
        shown = {DATA: held}
    sets = {"neutral": own, **shown}
    for name, texts in sets.items():
        if len(texts) < 2:
            raise ValueError(f"{len(texts)} text shows '{name}', expected two or more to tell it from others by")
    return {name: voice.batches(texts[:PROBES]) for name, texts in sets.items()}


def default_hook(model: nn.Module) -> str:
    """Where directions are read if nobody says: two thirds up the stack."""
    return f"blocks.{max(0, round(DEPTH * blocks_of(model)) - 1)}.hook_resid_post"


def _from_means(
    sought: Sought, voice: Voice, contrasts: Mapping[str, tuple[Sequence[Example], Sequence[Example]]]
) -> ConceptBank:
    hook = sought.hook or default_hook(voice.model)
    directions = {name: _direction(name, *_both(voice, hook, sides)) for name, sides in contrasts.items()}
    return ConceptBank.from_directions(directions, hook=hook, source={"kind": "difference of means"})


def _from_dictionary(
    sought: Sought, voice: Voice, contrasts: Mapping[str, tuple[Sequence[Example], Sequence[Example]]]
) -> ConceptBank:
    """Latents by number, and for each contrast those that tell its texts apart; `data` stays a direction of means."""
    from interptrain.concepts.saelens import from_saelens

    assert sought.sae is not None
    sae = load_sae(sought.sae, sought.sae_id)
    whole = from_saelens(sae, {DATA: [0]}, model=voice.model)
    hook = whole.hooks[0]
    reads, decoder = whole.readouts[hook].reads or hook, whole.readouts[hook].decoder
    both = {name: _both(voice, reads, sides) for name, sides in contrasts.items()}
    encoder = load_sae_readout(whole.readouts[hook])
    _check_width(encoder, reads, [side.values for sides in both.values() for side in sides])
    latents = dict(sought.latents or {})
    for name in both.keys() - {DATA}:
        shown, absent = (_encoded(encoder, side) for side in both[name])
        effect = effects(voice.model, hook, voice.batches(contrasts[name][0][:TEXTS]), decoder)
        try:
            found = separating_latents(shown, absent, count=sought.group, decoder=decoder, effect=effect)
        except ValueError as error:
            raise ValueError(f"concept '{name}': {error} (group: {sought.group})") from error
        latents[name] = found.latents
    alive = _alive(encoder, [each for sides in both.values() for each in sides])
    if latents:
        bank = from_saelens(sae, latents, alive=alive, model=voice.model)
        return replace(bank, model=None) if sought.other_model else bank
    readout: Readout = from_saelens(sae, {DATA: [0]}, alive=alive, model=voice.model).readouts[hook]
    means = _from_means(replace(sought, sae=None, hook=hook), voice, contrasts)
    made_for = None if sought.other_model else sae.cfg.metadata.model_name
    return replace(means, readouts={hook: readout}, model=made_for)


def _both(
    voice: Voice, hook: str, sides: tuple[Sequence[Example], Sequence[Example]]
) -> tuple[TextActivations, TextActivations]:
    shown, absent = (collect(voice.model, hook, voice.batches(side[:TEXTS])) for side in sides)
    return shown, absent


def _direction(name: str, shown: TextActivations, absent: TextActivations) -> Tensor:
    try:
        return difference_of_means(shown, absent)
    except ValueError as error:
        raise ValueError(f"concept '{name}' has no direction, its two sets of texts look the same: {error}") from error


def _encoded(sae: SAE[Any], activations: TextActivations) -> TextActivations:
    return replace(activations, values=latents_of(sae, activations.values))


def _check_width(sae: SAE[Any], reads: str, activations: Sequence[Tensor]) -> None:
    for each in activations:
        if each.shape[1] != sae.cfg.d_in:
            raise ValueError(
                f"the SAE reads activations of width {sae.cfg.d_in} but the model has {each.shape[1]} at '{reads}'; "
                "was it trained on another model?"
            )


def _alive(sae: SAE[Any], sides: Sequence[TextActivations]) -> Tensor | None:
    """Latents that fire on these texts; None without any."""
    found = [(_encoded(sae, side).values > 0).any(0) for side in sides]
    return torch.stack(found).any(0) if found else None


def _texts(path: Path, voice: Voice) -> list[Example]:
    return read_examples(path, Columns(), voice.tokenizer)
