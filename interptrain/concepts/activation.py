"""How strongly concepts are on in an activation: by their latents, or along their direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interptrain.concepts.bank import ConceptBank, Readout

Activation = Callable[[Tensor], Tensor]  # [*token, d_model] -> [*token, concept]

_WHOLE_TEXTS = "temporal"  # an architecture that encodes no single activation
TOKENS = 1024  # encoded at a time: a dictionary's latents are many times as wide as the stream


def measured_by_latents(bank: ConceptBank, name: str, hook: str) -> bool:
    """Whether a concept's activation at a hook is its latents': it is a group of latents that can be encoded."""
    readout, rows = bank.readouts.get(hook), bank.rows(name, hook)
    if readout is None or not encodes_tokens(readout):
        return False
    return bool(rows) and all("latent" in bank.sources[row] for row in rows)


def encodes_tokens(readout: Readout) -> bool:
    """Whether a read-out encodes single activations; a temporal SAE reads whole texts."""
    return _WHOLE_TEXTS not in readout.config.get("architecture", "")


def concept_activations(bank: ConceptBank) -> dict[str, Activation]:
    """What is to be read at each place, so that the sum over the places is each concept's activation.

    The places are the bank's hook points, and those where its read-outs encode if that is elsewhere: in front of the
    MLP for a transcoder, in front of the output map for an SAE of the heads' outputs.

    Raises:
        ValueError: SAELens does not know a read-out's architecture.
        ModuleNotFoundError: a read-out is needed and SAELens is not installed.
    """
    found: dict[str, Activation] = {hook: concept_activation(bank, hook) for hook in bank.hook_points}
    for hook in bank.hook_points:
        if (elsewhere := activation_elsewhere(bank, hook)) is not None:
            place, latents = elsewhere
            found[place] = latents if place not in found else _sum(found[place], latents)
    return found


def _sum(one: Activation, other: Activation) -> Activation:
    return lambda activation: one(activation) + other(activation)


def activation_elsewhere(bank: ConceptBank, hook: str) -> tuple[str, Activation] | None:
    """Where the read-out of a hook encodes if not there, and the activation of its concepts' latents by that.

    None where it encodes at the hook, or no concept is a group of its latents.
    """
    readout = bank.readouts.get(hook)
    by_latents = [name for name in bank.names if measured_by_latents(bank, name, hook)]
    if readout is None or readout.reads is None or not by_latents:
        return None
    latents = _latent_activation(bank, hook, by_latents)

    def activation(given: Float[Tensor, "*token d_in"]) -> Float[Tensor, "*token concept"]:
        return latents(given.detach().float().flatten(0, -2)).view(*given.shape[:-1], len(bank.names))

    return readout.reads, activation


def concept_activation(
    bank: ConceptBank, hook: str
) -> Callable[[Float[Tensor, "*token d_model"]], Float[Tensor, "*token concept"]]:
    """The function that reads every concept's activation off the residual stream at a hook.

        z_c(h) = sum_{i in c} a_i(h) ||W_dec[i]||      where the concept is a group of latents of the hook's read-out
        z_c(h) = m_c . h                               elsewhere (m_c: the concept's unit mean direction)

    `a_i` are the whole SAE's activations, competition included. Both are lengths along the concept's directions in
    the units of the stream (of the SAE's rescaled input, if it rescales). A concept without rows at the hook is 0, and
    so is one that the read-out encodes at another place: `concept_activations` has that place too.
    The function computes on the device of what it is given, and the SAE stays there.

    Args:
        bank: the concepts.
        hook: one of its hook points.

    Raises:
        ValueError: the bank has no rows at the hook, or SAELens does not know the read-out's architecture.
        ModuleNotFoundError: a read-out is needed and SAELens is not installed.

    Example:
        >>> bank = ConceptBank.from_directions({"pirate": torch.tensor([3.0, 4.0])}, hook="blocks.1.hook_resid_post")
        >>> concept_activation(bank, "blocks.1.hook_resid_post")(torch.tensor([[1.0, 0.0], [3.0, 4.0]]))
        tensor([[0.6000],
                [5.0000]])
    """
    from interptrain.meters.spans import mean_directions

    rows = [row for row, at in enumerate(bank.hooks) if at == hook]
    if not rows:
        raise ValueError(f"the bank has no directions at '{hook}'; it has some at {', '.join(bank.hook_points)}")
    by_latents = [name for name in bank.names if measured_by_latents(bank, name, hook)]
    along = mean_directions(bank, rows)[0]
    along[[bank.names.index(name) for name in by_latents]] = 0.0
    here = by_latents and bank.readouts[hook].reads is None
    latents = _latent_activation(bank, hook, by_latents) if here else None

    def activation(residual: Float[Tensor, "*token d_model"]) -> Float[Tensor, "*token concept"]:
        flat = residual.detach().float().reshape(-1, bank.d_model)
        projected = flat @ along.to(flat.device).T
        both = projected if latents is None else projected + latents(flat)
        return both.view(*residual.shape[:-1], len(bank.names))

    return activation


@torch.no_grad()
def latents_of(
    sae: Any, activations: Float[Tensor, "token d_in"], columns: Sequence[int] | None = None
) -> Float[Tensor, "token latent"]:
    """An SAE's latents of some activations, a part at a time.

    Args:
        sae: of SAELens, on the device of the activations.
        activations: one row a token.
        columns: of these latents alone; None for all.
    """
    parts = []
    for part in activations.split(TOKENS):
        latents = sae.encode(part.to(sae.dtype)).float()
        parts.append(latents if columns is None else latents[:, list(columns)])
    return torch.cat(parts)


def _latent_activation(bank: ConceptBank, hook: str, names: list[str]) -> Activation:
    """The part of the named concepts: activation times decoder norm, summed over their latents."""
    from interptrain.concepts.saelens import shared_sae

    readout = bank.readouts[hook]
    try:
        sae = shared_sae(readout)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"concepts {', '.join(names)} are latents of an SAE at '{hook}', and measuring their activation needs "
            "SAELens: pip install 'interptrain[sae]'",
            name=error.name,
        ) from error
    rows = [row for name in names for row in bank.rows(name, hook)]
    columns = torch.tensor([int(bank.sources[row]["latent"]) for row in rows])
    decoder = readout.decoder[columns]
    normed = bool(readout.config.get("rescale_acts_by_decoder_norm"))  # then activations hold the norm already
    weights = torch.zeros(len(rows), len(bank.names))
    weights[torch.arange(len(rows)), [bank.names.index(bank.concepts[row]) for row in rows]] = (
        torch.ones(len(rows)) if normed else decoder.norm(dim=-1)
    )

    def activation(flat: Float[Tensor, "token d_in"]) -> Float[Tensor, "token concept"]:
        there = sae.to(flat.device)
        summed = columns.to(flat.device), weights.to(flat.device)
        parts = [there.encode(part.to(sae.dtype))[:, summed[0]].float() @ summed[1] for part in flat.split(TOKENS)]
        return torch.cat(parts)

    return activation
