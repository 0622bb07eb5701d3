"""Concepts from SAELens dictionaries: groups of latents and their decoder rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from interptrain.concepts.bank import ConceptBank, Readout
from interptrain.sites.hooks import HookPoint

if TYPE_CHECKING:
    from sae_lens import SAE


def from_saelens(
    sae: SAE[Any],
    concepts: Mapping[str, Sequence[int]],
    *,
    alive: Bool[Tensor, "latent"] | None = None,
    model: str | None = None,
    hook: str | None = None,
) -> ConceptBank:
    """Make a bank whose concepts are groups of an SAE's latents.

        d_i = W_dec[i] / ||W_dec[i]||

    Released decoders differ in scale, so rows are normalised here. A transcoder's rows lie where it writes,
    at its `hook_name_out`. The whole SAE goes into the bank as the read-out of its hook.

    Args:
        sae: any SAELens SAE or transcoder with a `W_dec` of shape `[latent, d_model]`, also one in training.
        concepts: latent numbers of each concept.
        alive: latents that fire at all, for null distributions; None counts every latent as alive.
        model: the model the SAE belongs to; None takes the SAE's metadata.
        hook: the hook point of the rows; None takes the SAE's metadata.

    Raises:
        TypeError: `sae` is no SAELens SAE.
        ValueError: no concepts, an unknown or repeated latent, a decoder row without a direction, no `W_dec`,
            or a hook that is missing or no place in the residual stream.

    Example:
        >>> from sae_lens import StandardSAE, StandardSAEConfig
        >>> sae = StandardSAE(StandardSAEConfig(d_in=8, d_sae=32))
        >>> bank = from_saelens(sae, {"pirate": [3, 17]}, hook="blocks.1.hook_resid_post")
        >>> bank.names, bank.rows("pirate"), bank.sources[1]["latent"]
        (('pirate',), (0, 1), 17)
    """
    readout = _readout(sae, alive)
    decoder = readout.weights["W_dec"]
    where = _hook(sae, hook)
    metadata = sae.cfg.metadata
    origin = {
        "kind": "sae",
        "architecture": readout.config["architecture"],
        **{key: metadata[key] for key in ("release", "sae_id", "neuronpedia_id") if metadata[key] is not None},
    }
    directions = {name: decoder[_latents(name, chosen, len(decoder))] for name, chosen in concepts.items()}
    bank = ConceptBank.from_directions(directions, hook=where, model=model or metadata.model_name)
    sources = tuple({**origin, "latent": int(latent)} for chosen in concepts.values() for latent in chosen)
    return ConceptBank(bank.directions, bank.concepts, bank.hooks, sources, model=bank.model, readouts={where: readout})


def load_sae_readout(readout: Readout) -> SAE[Any]:
    """Rebuild the SAE that a read-out keeps, to encode activations with.

    Raises:
        ValueError: the installed SAELens does not know the architecture.

    Example:
        >>> from sae_lens import TopKSAE, TopKSAEConfig
        >>> sae = TopKSAE(TopKSAEConfig(d_in=8, d_sae=32, k=4))
        >>> bank = from_saelens(sae, {"pirate": [3]}, hook="blocks.1.hook_resid_post")
        >>> x = torch.randn(5, 8)
        >>> rebuilt = load_sae_readout(bank.readouts["blocks.1.hook_resid_post"])
        >>> torch.equal(rebuilt.encode(x), sae.encode(x))
        True
    """
    from sae_lens import SAE
    from sae_lens.registry import SAE_CLASS_REGISTRY

    architecture = readout.config.get("architecture")
    if architecture not in SAE_CLASS_REGISTRY:
        raise ValueError(
            f"the read-out's SAE has architecture '{architecture}', "
            f"the installed SAELens knows {', '.join(SAE_CLASS_REGISTRY)}"
        )
    with torch.random.fork_rng(devices=[]):  # its start weights, thrown away below, must not move the user's chance
        sae = SAE.from_dict({**readout.config, "device": "cpu"})
    weights = dict(readout.weights)
    sae.process_state_dict_for_loading(weights)
    sae.load_state_dict(weights)
    return sae.eval().requires_grad_(False)


def _readout(sae: SAE[Any], alive: Tensor | None) -> Readout:
    from sae_lens import SAE, TrainingSAE

    if not isinstance(sae, SAE):
        raise TypeError(f"from_saelens needs a SAELens SAE, found {type(sae).__name__}")
    # Cloned first: SAELens folds decoder norms into these tensors in place.
    weights = {name: tensor.detach().clone() for name, tensor in sae.state_dict().items()}
    if isinstance(sae, TrainingSAE):
        sae.process_state_dict_for_saving_inference(weights)
        config = sae.cfg.get_inference_sae_cfg_dict()
    else:
        sae.process_state_dict_for_saving(weights)
        config = sae.cfg.to_dict()
    decoder = weights.get("W_dec")
    if decoder is None or decoder.ndim != 2:
        found = "none" if decoder is None else f"one of shape {list(decoder.shape)}"
        raise ValueError(
            f"a {type(sae).__name__} must have a W_dec of shape [latent, d_model] to give directions, found {found}"
        )
    if alive is None:
        alive = torch.ones(len(decoder), dtype=torch.bool)
    elif alive.shape != (len(decoder),):
        raise ValueError(f"alive has shape {list(alive.shape)} but the SAE has {len(decoder)} latents")
    weights = {name: tensor.cpu().contiguous() for name, tensor in weights.items()}
    return Readout(json.loads(json.dumps({**config, "device": "cpu"})), weights, alive.cpu())


def _hook(sae: SAE[Any], hook: str | None) -> str:
    metadata = sae.cfg.metadata
    side = "_out" if metadata.hook_name_out or metadata.hf_hook_name_out else ""
    named = [hook] if hook else [metadata[f"hook_name{side}"], metadata[f"hf_hook_name{side}"]]
    known = [name for name in named if name is not None]
    if not known:
        raise ValueError(
            "the SAE's metadata names no hook point; say where it was trained, hook='blocks.L.hook_resid_post'"
        )
    if sae.cfg.reshape_activations == "hook_z":
        raise ValueError(
            f"the SAE was trained at '{known[0]}' on the heads' outputs (hook_z); its decoder rows are no directions "
            "of the residual stream, which a concept needs"
        )
    refusals = []
    for name in known:
        try:
            HookPoint.parse(name)
        except ValueError as error:
            refusals.append(str(error))
        else:
            return name
    raise ValueError("; ".join(refusals))


def _latents(name: str, chosen: Sequence[int], total: int) -> list[int]:
    latents = [int(latent) for latent in chosen]
    if not latents:
        raise ValueError(f"concept '{name}' names no latents")
    for latent in latents:
        if not 0 <= latent < total:
            raise ValueError(
                f"concept '{name}' asks for latent {latent} but the SAE has {total}, numbered 0 to {total - 1}"
            )
    if len(set(latents)) < len(latents):
        raise ValueError(f"concept '{name}' names a latent twice: {latents}")
    return latents
