"""Concepts from SAELens dictionaries: groups of latents and their decoder rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from interptrain.concepts.bank import ConceptBank, Readout
from interptrain.concepts.centred import take_out_mean, trained_centred
from interptrain.sites.hooks import HookPoint
from interptrain.sites.reading import heads_into_stream, reading_point

if TYPE_CHECKING:
    from sae_lens import SAE


def from_saelens(
    sae: SAE[Any],
    concepts: Mapping[str, Sequence[int]],
    *,
    alive: Bool[Tensor, "latent"] | None = None,
    model: str | nn.Module | None = None,
    hook: str | None = None,
) -> ConceptBank:
    """Make a bank whose concepts are groups of an SAE's latents.

        d_i = W_dec[i] / ||W_dec[i]||          of the residual stream, or of what is added to it
        d_i ~ W_O W_dec[i]                     of the heads' outputs (`attn.hook_z`), in front of the output map

    Released decoders differ in scale, so rows are normalised here. A transcoder's rows lie where it writes,
    at its `hook_name_out`, those of an SAE of the heads' outputs where these are added, at `hook_attn_out`; both
    encode where they read. The whole SAE goes into the bank as the read-out of its hook; one that was trained on a
    stream without its mean (GPT-2's by TransformerLens) takes the mean out there, see `concepts.centred`.

    Args:
        sae: any SAELens SAE or transcoder with a `W_dec` of shape `[latent, d_model]`, also one in training.
        concepts: latent numbers of each concept.
        alive: latents that fire at all, for null distributions; None counts every latent as alive.
        model: the name of the model that the SAE belongs to, or the model itself, of which an SAE of the heads'
            outputs needs `W_O` as it is now; None takes the name in the SAE's metadata.
        hook: the hook point of the rows (for a transcoder where it writes); None takes the SAE's metadata.

    Raises:
        TypeError: `sae` is no SAELens SAE.
        ValueError: no concepts, an unknown or repeated latent, a decoder row without a direction, no `W_dec`, a
            hook that is missing or no place that is known, a transcoder that does not say where it writes, an SAE of
            the heads' outputs without its model, or one whose input scaling is not folded into its weights.

    Example:
        >>> from sae_lens import StandardSAE, StandardSAEConfig
        >>> sae = StandardSAE(StandardSAEConfig(d_in=8, d_sae=32))
        >>> bank = from_saelens(sae, {"pirate": [3, 17]}, hook="blocks.1.hook_resid_post")
        >>> bank.names, bank.rows("pirate"), bank.sources[1]["latent"]
        (('pirate',), (0, 1), 17)
    """
    if not isinstance(sae, _sae_class()):
        raise TypeError(f"from_saelens needs a SAELens SAE, found {type(sae).__name__}")
    places, metadata = places_of(sae, hook), sae.cfg.metadata
    readout = _readout(sae, alive, places, model)
    origin = {
        "kind": "sae",
        "architecture": readout.config["architecture"],
        **{key: metadata[key] for key in ("release", "sae_id", "neuronpedia_id") if metadata[key] is not None},
    }
    chosen = {name: _latents(name, latents, len(readout.alive)) for name, latents in concepts.items()}
    decoder = readout.decoder
    bank = ConceptBank.from_directions(
        {name: decoder[latents] for name, latents in chosen.items()},
        hook=places.rows,
        model=model if isinstance(model, str) else metadata.model_name,
    )
    sources = tuple({**origin, "latent": latent} for latents in chosen.values() for latent in latents)
    return replace(bank, sources=sources, readouts={places.rows: readout})


def from_several_saes(
    saes: Sequence[SAE[Any]],
    concepts: Mapping[str, Mapping[str, Sequence[int]]],
    *,
    alive: Mapping[str, Bool[Tensor, "latent"]] | None = None,
    model: str | nn.Module | None = None,
) -> ConceptBank:
    """Make one bank of several SAEs, one a hook point: a concept may have latents in each of them.

    Args:
        saes: of one model; each names its hook in its metadata.
        concepts: of each concept, latent numbers by hook point, as an SAE names it or as the bank does.
        alive: by hook point, latents that fire at all.
        model: as for `from_saelens`.

    Raises:
        TypeError: one of them is no SAELens SAE.
        ValueError: what `from_saelens` raises, a hook point that none of the SAEs has or that several have, or an SAE
            of which no latent is asked for.

    Example:
        >>> from sae_lens import StandardSAE, StandardSAEConfig
        >>> from sae_lens.saes.sae import SAEMetadata
        >>> hooks = "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"
        >>> saes = [StandardSAE(StandardSAEConfig(d_in=8, d_sae=32, metadata=SAEMetadata(hook_name=h))) for h in hooks]
        >>> bank = from_several_saes(saes, {"pirate": {hooks[0]: [3], hooks[1]: [17, 5]}, "sums": {hooks[1]: [9]}})
        >>> bank.names, bank.rows("pirate"), bank.hook_points == hooks
        (('pirate', 'sums'), (0, 1, 2), True)
    """
    names = [_names_of(sae) for sae in saes]
    known = [name for several in names for name in several]
    asked = {hook for latents in concepts.values() for hook in latents} | set(alive or {})
    if unknown := sorted(asked.difference(known)):
        raise ValueError(f"no SAE is at {', '.join(unknown)}; there are SAEs at {', '.join(dict.fromkeys(known))}")
    if doubled := sorted({name for name in known if known.count(name) > 1}):
        raise ValueError(f"several SAEs are at {', '.join(doubled)}; a bank has one read-out a hook point")
    banks = []
    for sae, own in zip(saes, names, strict=True):
        chosen = {name: latents[hook] for name, latents in concepts.items() for hook in own if hook in latents}
        if not chosen:
            raise ValueError(f"no concept has latents of the SAE at {own[0]}; leave it out")
        masks = [mask for hook, mask in (alive or {}).items() if hook in own]
        banks.append(from_saelens(sae, chosen, alive=masks[0] if masks else None, model=model))
    return reduce(ConceptBank.merge, banks).select(*concepts)


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
    sae = SAE.from_dict({**readout.config, "device": "meta"})  # no start weights are drawn, and none are held
    weights = dict(readout.weights)
    sae.process_state_dict_for_loading(weights)
    sae.load_state_dict(weights, assign=True)  # the read-out's own tensors
    sae.device = torch.device("cpu")
    sae.cfg.device = "cpu"
    return sae.eval().requires_grad_(False)


def shared_sae(readout: Readout) -> SAE[Any]:
    """The rebuilt SAE of a read-out, one for all who encode with it, as long as the read-out lives."""
    if readout not in _SHARED:
        _SHARED[readout] = load_sae_readout(readout)
    return _SHARED[readout]


_SHARED: WeakKeyDictionary[Readout, SAE[Any]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Places:
    """Where an SAE reads, and where its rows lie in the stream.

    Args:
        rows: hook point of the directions.
        reads: hook point that it encodes; None where the rows lie.
        layer_of_heads: the layer whose heads it reads, if it does.
    """

    rows: str
    reads: str | None = None
    layer_of_heads: int | None = None


def places_of(sae: SAE[Any], hook: str | None = None) -> Places:
    """Where an SAE reads and writes, by its metadata or as said.

    Raises:
        ValueError: a place is missing, or is none that is known; with the reason.

    Example:
        >>> from sae_lens import StandardSAE, StandardSAEConfig
        >>> places_of(StandardSAE(StandardSAEConfig(d_in=8, d_sae=32)), "blocks.3.attn.hook_z")
        Places(rows='blocks.3.hook_attn_out', reads='blocks.3.attn.hook_z', layer_of_heads=3)
    """
    metadata = sae.cfg.metadata
    reads = [metadata.hook_name, metadata.hf_hook_name]
    if "transcoder" in sae.cfg.architecture():
        rows = _known([hook or metadata.hook_name_out, None if hook else metadata.hf_hook_name_out], HookPoint.parse)
        return Places(rows, _known(reads, reading_point))
    at = _known([hook] if hook else reads, reading_point)
    point = reading_point(at)
    if isinstance(point, HookPoint):
        return Places(at)
    if point.given == "z":
        return Places(f"blocks.{point.layer}.hook_attn_out", at, point.layer)
    raise ValueError(f"the SAE was trained at '{at}', behind a norm: its decoder rows are no directions of the stream")


def _known(named: Sequence[str | None], parse: Callable[[str], object]) -> str:
    """The first name that is understood."""
    refusals = []
    for name in named:
        if name is None:
            continue
        try:
            parse(name)
        except ValueError as error:
            refusals.append(str(error))
        else:
            return name
    raise ValueError(
        "; ".join(refusals)
        or "the SAE's metadata names no hook point; say where it was trained (of a transcoder: where it writes), "
        "hook='blocks.L.hook_resid_post'"
    )


def _names_of(sae: SAE[Any]) -> tuple[str, ...]:
    """What an SAE's hook point may be called: as its metadata does, and as the bank does."""
    metadata = sae.cfg.metadata
    named = (places_of(sae).rows, metadata.hook_name, metadata.hf_hook_name)
    return tuple(dict.fromkeys(name for name in named if name is not None))


def _sae_class() -> type[SAE[Any]]:
    from sae_lens import SAE

    return SAE


def _readout(sae: SAE[Any], alive: Tensor | None, places: Places, model: str | nn.Module | None) -> Readout:
    weights, config = _as_saved(sae)
    if trained_centred(config["metadata"]):
        weights = take_out_mean(weights, subtracts_bias=bool(config.get("apply_b_dec_to_input")))
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
    into_stream = None if places.layer_of_heads is None else _out_of_heads(places, decoder, model)
    config |= {
        "device": "cpu",
        "reshape_activations": "none",
    }  # heads are read side by side, as the output map has them
    weights = {name: tensor.cpu().contiguous() for name, tensor in weights.items()}
    return Readout(json.loads(json.dumps(config)), weights, alive.cpu(), places.reads, into_stream)


def _as_saved(sae: SAE[Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and configuration as SAELens would save them for inference; what it would scale elsewhere is refused."""
    from sae_lens import TrainingSAE

    scaling = sae.cfg.normalize_activations
    if scaling in ("expected_average_only_in", "covariance_whitening"):
        raise ValueError(
            f"the SAE's inputs are to be scaled ('{scaling}'), which neither its weights nor its encode do yet: "
            "fold it in first, as SAELens' trainer does at its end: "
            "sae.fold_activation_norm_scaling_factor(d_in ** 0.5 / mean norm of its training activations)"
        )
    # Cloned first: SAELens folds decoder norms into these tensors in place.
    weights = {name: tensor.detach().clone() for name, tensor in sae.state_dict().items()}
    if isinstance(sae, TrainingSAE):
        sae.process_state_dict_for_saving_inference(weights)
        return weights, dict(sae.cfg.get_inference_sae_cfg_dict())
    sae.process_state_dict_for_saving(weights)
    return weights, dict(sae.cfg.to_dict())


def _out_of_heads(places: Places, decoder: Tensor, model: str | nn.Module | None) -> Tensor:
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"the SAE was trained at '{places.reads}' on the heads' outputs (hook_z): its directions in the stream are "
            "W_O d, so give the model: from_saelens(sae, concepts, model=model)"
        )
    assert places.layer_of_heads is not None
    into_stream = heads_into_stream(model, places.layer_of_heads)
    if len(into_stream) != decoder.shape[1]:
        raise ValueError(
            f"the SAE at '{places.reads}' is {decoder.shape[1]} wide but the heads there {len(into_stream)} together; "
            "was it trained on another model?"
        )
    return into_stream


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
