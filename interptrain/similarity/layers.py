"""Which linear layers' gradients are compared, and what they are given and give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from interptrain.sites.stack import find_stack

Take = Callable[[str, Tensor, Tensor], None]  # a layer's name, g [batch, token, out] and x [batch, token, in]


def linear_layers(model: nn.Module, patterns: Sequence[str] = ()) -> dict[str, nn.Module]:
    """The linear layers to compare gradients of, by name.

    Those that patterns name; without any, those of the blocks that train (of an adapted model the adapters), or all
    of the blocks where none trains. A layer is `y = W x + b`, whichever way round its weight is kept.

    Args:
        model: a causal language model of a known family.
        patterns: of module names (`fnmatch`).

    Raises:
        ValueError: a pattern matches no linear layer, or there is none.

    Example:
        >>> from interptrain.tiny_world import load_base
        >>> len(linear_layers(load_base())), list(linear_layers(load_base(), ["lm_*"]))
        (28, ['lm_head'])
    """
    linear = {name: module for name, module in model.named_modules() if sizes(module) is not None}
    if patterns:
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in linear):
                raise ValueError(f"'{pattern}' matches no linear layer; there are {', '.join([*linear][:5])}, ...")
        return {name: m for name, m in linear.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}
    blocks = find_stack(model).name
    inside = {name: module for name, module in linear.items() if name.startswith(f"{blocks}.")}
    training = {name: m for name, m in inside.items() if any(p.requires_grad for p in m.parameters(recurse=False))}
    if not inside:
        raise ValueError(f"no linear layer in '{blocks}'; name the layers to compare with patterns")
    return training or inside


def sizes(module: nn.Module) -> tuple[int, int] | None:
    """Widths of a linear layer's input and output; None of another module, and of one around a linear layer.

    Example:
        >>> sizes(nn.Linear(3, 5)), sizes(nn.ReLU())
        ((3, 5), None)
    """
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D":  # transformers': GPT-2's linear layers
        return int(vars(module)["nx"]), int(vars(module)["nf"])
    return None


def listen(layers: Mapping[str, nn.Module], counted: Tensor, take: Take) -> list[RemovableHandle]:
    """Hand each layer's `g = dL/dy` and `x` of the next pass to `take`, as `[batch, token, width]`.

    Raises:
        ValueError: in that pass, a layer is given some of the tokens only, as an expert is.
    """
    return [
        module.register_forward_hook(partial(_forward, name, tuple(counted.shape), take))
        for name, module in layers.items()
    ]


def _forward(
    name: str, shape: tuple[int, ...], take: Take, _module: nn.Module, args: tuple[Any, ...], output: Tensor
) -> None:
    x = args[0].detach()
    if x.shape[:-1].numel() != shape[0] * shape[1]:
        raise ValueError(
            f"'{name}' is given {x.shape[:-1].numel()} of {shape[0] * shape[1]} tokens, so an example's share cannot "
            "be told apart: is it an expert? Name the layers to compare without it"
        )
    if output.requires_grad:
        output.register_hook(lambda g: take(name, g.detach().reshape(*shape, -1), x.reshape(*shape, -1)))
