"""Which axis of a layer's parameter is which, plain or adapted; adapters are recognised by their structure."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Axes:
    """The axes of a parameter that are its layer's input and output; None where it has no such axis.

    Args:
        inputs: None for a bias and for the outer factor `B`.
        outputs: None for the inner factor `A`.
        lora: whether the parameter belongs to `W = W0 + s B A`.
        scaling: `s`; 1 for the layer's own parameters.
        partner: path from the layer to the pair's other factor; empty for what is no factor.
        experts: how many matrices the parameter holds.
    """

    inputs: int | None
    outputs: int | None
    lora: bool = False
    scaling: float = 1.0
    partner: tuple[str, ...] = ()
    experts: int = 1


def axes_of(name: str, layer: nn.Module, path: tuple[str, ...], attribute: str) -> Axes:
    """Axes of a layer's parameter, found by where it stands inside the layer.

    A linear map's weight is `[out, in]`, a Conv1D's `[in, out]`, an embedding's `[token, out]`; LoRA's `A` is
    `[r, in]` and its `B` `[out, r]`, whichever of them is adapted.

    Args:
        name: of the layer, for messages.
        layer: the module that a family names.
        path: from the layer to the module that owns the parameter; empty for the layer's own.
        attribute: the parameter's name in its owner.

    Raises:
        ValueError: the layer is packed, or adapted in a way in which `W = W0 + s B A` does not hold.
    """
    match path, attribute:
        case ((() | ("base_layer",) | ("modules_to_save", _)), "weight"):
            return _weight_axes(".".join((name, *path)), layer.get_submodule(".".join(path)))
        case ((() | ("base_layer",) | ("modules_to_save", _)), "bias"):
            return Axes(inputs=None, outputs=0)
        case ("lora_A", adapter), "weight":
            return Axes(1, None, lora=True, scaling=_scaling(name, layer, adapter), partner=("lora_B", adapter))
        case ("lora_B", adapter), "weight":
            return Axes(None, 0, lora=True, scaling=_scaling(name, layer, adapter), partner=("lora_A", adapter))
        case ("lora_B", adapter), "bias":
            return Axes(None, 0, lora=True, scaling=_scaling(name, layer, adapter))
        case _:
            raise ValueError(f"'{name}' trains '{'.'.join((*path, attribute))}', which is not understood")


def bare(module: nn.Module) -> nn.Module:
    """A module without what adapters put around it, which they call `base_layer` or keep in `modules_to_save`.

    Example:
        >>> bare(nn.Identity())
        Identity()
    """
    children = dict(module.named_children())
    if "base_layer" in children:
        return bare(children["base_layer"])
    if "modules_to_save" in children:
        return bare(saved_copy(type(module).__name__, module))
    return module


def saved_copy(name: str, module: nn.Module) -> nn.Module:
    """A module, or the copy of it that an adapter trains in its place (`modules_to_save`).

    Raises:
        ValueError: several adapters each hold a copy.
    """
    children = dict(module.named_children())
    if "modules_to_save" not in children:
        return module
    copies = dict(children["modules_to_save"].named_children())
    if len(copies) != 1:
        raise ValueError(f"'{name}' is kept by {len(copies)} adapters ({', '.join(copies)}), expected one")
    return next(iter(copies.values()))


def _weight_axes(name: str, layer: nn.Module) -> Axes:
    weight = dict(layer.named_parameters(recurse=False)).get("weight")
    if weight is None or not weight.is_floating_point() or weight.element_size() < 2:
        found = "no weight" if weight is None else f"a weight of {weight.dtype}"
        raise ValueError(f"'{name}' ({type(layer).__name__}) has {found}, expected one of floats: is it quantised?")
    shape = tuple(weight.shape)
    if isinstance(layer, nn.Embedding) and shape == (layer.num_embeddings, layer.embedding_dim):
        return Axes(inputs=None, outputs=1)
    if isinstance(layer, nn.Linear) and shape == (layer.out_features, layer.in_features):
        return Axes(inputs=1, outputs=0)
    if type(layer).__name__ == "Conv1D" and shape == (vars(layer).get("nx"), vars(layer).get("nf")):
        return Axes(inputs=0, outputs=1)
    raise ValueError(f"'{name}' ({type(layer).__name__}) is not a Linear, Conv1D or Embedding: {list(shape)}")


def _scaling(name: str, layer: nn.Module, adapter: str) -> float:
    """`s` of a plain LoRA pair; what stands beside the pair must not change what it does."""
    children, settings = dict(layer.named_children()), vars(layer)
    if "lora_magnitude_vector" in children and adapter in dict(children["lora_magnitude_vector"].named_children()):
        raise ValueError(f"'{name}' is adapted with DoRA, whose update is not s B A")
    if variant := settings.get("lora_variant", {}).get(adapter):
        raise ValueError(f"'{name}' is a LoRA variant ({type(variant).__name__}), whose update may not be s B A")
    factors = [children[factor].get_submodule(adapter) for factor in ("lora_A", "lora_B")]
    if "base_layer" not in children or not all(isinstance(factor, nn.Linear) for factor in factors):
        found = ", ".join(type(factor).__name__ for factor in factors)
        raise ValueError(f"'{name}' has factors of type {found}, expected two Linear beside a base_layer")
    _weight_axes(f"{name}.base_layer", children["base_layer"])
    return float(settings["scaling"][adapter])
