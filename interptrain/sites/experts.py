"""Weights that a module holds itself, such as those of fused experts and of routers, plain or adapted by LoRA.

    weight [out, in]            one matrix
    weight [expert, out, in]    one a matrix an expert

PEFT's `target_parameters` puts one wrapper a weight around the module, one inside another, each with the factors of
all experts in two matrices:

    lora_A [expert * r, in]     expert by expert          A_e = A.view(E, r, in)[e]
    lora_B [out, r * expert]    rank by rank              B_e = B.view(out, r, E)[:, :, e]
"""

from __future__ import annotations

from torch import nn

from interptrain.sites.layer import Axes, bare


def weight_meant(holder: nn.Module, path: tuple[str, ...], attribute: str) -> str:
    """Which of a module's own weights a parameter inside it belongs to: a wrapper says it, else its name does."""
    if "lora_A" not in path and "lora_B" not in path:
        return attribute
    factor = next(place for place, name in enumerate(path) if name in ("lora_A", "lora_B"))
    return str(vars(holder.get_submodule(".".join(path[:factor]))).get("parameter_name", attribute))


def axes_of_weight(name: str, holder: nn.Module, path: tuple[str, ...], attribute: str) -> Axes:
    """Axes of a weight that a module holds itself, or of a LoRA factor of it.

    Args:
        name: of the weight, for messages.
        holder: the module, as adapters have wrapped it.
        path: from it to the owner of the parameter.
        attribute: the parameter's name in its owner.

    Raises:
        ValueError: the weight is packed, transposed or of other dimensions, or adapted in a way that is not understood.
    """
    weight = bare(holder).get_parameter(weight_meant(holder, path, attribute))
    experts = _experts(name, bare(holder), weight)
    inputs, outputs = weight.ndim - 1, weight.ndim - 2
    if not path or path[-1] == "base_layer" or path[-2:-1] == ("modules_to_save",):
        return Axes(inputs, outputs, experts=experts)
    wrapper = holder.get_submodule(".".join(path[:-2]))
    scaling = vars(wrapper).get("scaling", {}).get(path[-1])
    children = dict(wrapper.named_children())
    factors = [children[each].get_submodule(path[-1]) for each in ("lora_A", "lora_B") if each in children]
    if scaling is None or attribute != "weight" or not _fit(factors, weight, experts):
        raise ValueError(f"'{name}' trains '{'.'.join((*path, attribute))}', which is not understood")
    if path[-2] == "lora_A":
        partner = (*path[:-2], "lora_B", path[-1])
        return Axes(1, None, lora=True, scaling=float(scaling), partner=partner, experts=experts)
    partner = (*path[:-2], "lora_A", path[-1])
    return Axes(None, 0, lora=True, scaling=float(scaling), partner=partner, experts=experts)


def _experts(name: str, holder: nn.Module, weight: nn.Parameter) -> int:
    """How many matrices a weight holds."""
    if not weight.is_floating_point() or weight.element_size() < 2:
        raise ValueError(f"'{name}' is a weight of {weight.dtype}, expected one of floats: is it quantised?")
    if vars(holder).get("is_transposed", False):
        raise ValueError(f"'{name}' holds its experts transposed, [expert, in, out]; expected [expert, out, in]")
    if weight.ndim not in (2, 3):
        raise ValueError(f"'{name}' has shape {list(weight.shape)}, expected [out, in] or [expert, out, in]")
    return len(weight) if weight.ndim == 3 else 1


def _fit(factors: list[nn.Module], weight: nn.Parameter, experts: int) -> bool:
    """Whether two factors are `[expert * r, in]` and `[out, r * expert]`."""
    if len(factors) != 2 or not all(isinstance(each, nn.Linear) for each in factors):
        return False
    inner, outer = (each.get_parameter("weight") for each in factors)
    ends = (inner.shape[1], outer.shape[0]) == (weight.shape[-1], weight.shape[-2])
    return ends and inner.shape[0] == outer.shape[1] and inner.shape[0] % experts == 0
