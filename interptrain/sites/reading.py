"""Where a dictionary encodes: a place in the residual stream, or what a block's maps are given."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from interptrain.sites.hooks import BlockShape, Both, HookPoint
from interptrain.sites.norm import Norm, WithoutHooks
from interptrain.sites.stack import Stack, find_stack

Given = Literal["z", "mlp_in", "mlp_normalized"]

_LENS = re.compile(r"blocks\.(\d+)\.(attn\.hook_z|mlp\.hook_in|hook_mlp_in|ln2\.hook_normalized)")
_MODULE = re.compile(
    r"(?:.+\.)?(?:layers|h)\.(\d+)\."
    r"((?:self_attn|attn|attention)\.(?:o_proj|c_proj|out_proj|dense)\.input"
    r"|pre_feedforward_layernorm(?:\.output)?|mlp\.input)"
)
_GIVEN_OF: dict[str, Given] = {
    "attn.hook_z": "z", "mlp.hook_in": "mlp_in", "hook_mlp_in": "mlp_in", "ln2.hook_normalized": "mlp_normalized",
}  # fmt: skip


@dataclass(frozen=True)
class InputPoint:
    """What a map of one layer is given, which is no place in the residual stream.

        z                the heads' outputs side by side: what `attn_out = W_O z` is made of
        mlp_in           norm(resid_mid), gain and bias included: what the MLP takes
        mlp_normalized   the same without gain and bias

    `hook_mlp_in` is the MLP's input here, as in the releases that say so; where TransformerLens means the stream in
    front of the norm, that is `resid_mid`.

    Args:
        name: as it was written.
        layer: counted from 0.
        given: which of them.

    Example:
        >>> InputPoint.parse("model.layers.7.self_attn.o_proj.input").given
        'z'
    """

    name: str
    layer: int
    given: Given

    @classmethod
    def parse(cls, name: str) -> Self:
        """Read `blocks.L.attn.hook_z` and its kin.

        Raises:
            ValueError: the name is of no such place.
        """
        if match := _LENS.fullmatch(name):
            return cls(name, int(match[1]), _GIVEN_OF[match[2]])
        if match := _MODULE.fullmatch(name):
            return cls(name, int(match[1]), "mlp_in" if match[2].startswith(("pre_", "mlp")) else "z")
        raise ValueError(
            f"'{name}' is nothing that a map is given and known here; expected 'blocks.L.attn.hook_z', "
            "'blocks.L.mlp.hook_in', 'blocks.L.hook_mlp_in' or 'blocks.L.ln2.hook_normalized'"
        )

    def at(self, layer: int) -> Self:
        """The same of another layer."""
        names = {"z": "attn.hook_z", "mlp_in": "mlp.hook_in", "mlp_normalized": "ln2.hook_normalized"}
        return type(self)(f"blocks.{layer}.{names[self.given]}", layer, self.given)

    def listen(self, model: nn.Module, receive: Callable[[Tensor], None]) -> RemovableHandle:
        """Hand every forward pass's activation at this point to `receive`; the handle's `remove` ends it.

        Raises:
            ValueError: the model has no known blocks, or too few.
        """
        stack = find_stack(model)
        block, (attention, mlp) = _block(stack, self), stack.halves[self.layer]
        if self.given == "z":
            writer = block.get_submodule(attention.inside(attention.writers)[0])
            return writer.register_forward_pre_hook(lambda _module, args: receive(args[0]))
        if mlp.norm is None:
            raise ValueError(
                f"'{self.name}' does not exist in '{stack.name}' ({stack.family.title}), whose MLP reads the stream "
                f"without a norm; take 'blocks.{self.layer}.hook_resid_mid'"
            )
        norm, shape = block.get_submodule(mlp.norm), BlockShape(block)
        if self.given == "mlp_in":
            handle = norm.register_forward_hook(lambda _module, _args, output: receive(shape.of_texts(output)))
        else:
            without_gain = _Normalized(self.name, norm)
            handle = norm.register_forward_pre_hook(
                lambda _module, args: receive(without_gain(shape.of_texts(args[0])))
            )
        return Both(shape.handle, handle)


def reading_point(name: str) -> HookPoint | InputPoint:
    """The place where a dictionary encodes, in the residual stream or not.

    Raises:
        ValueError: the name is of neither kind; says what is there.

    Example:
        >>> reading_point("blocks.2.hook_resid_post").position, reading_point("blocks.2.attn.hook_z").given
        (3.0, 'z')
        >>> reading_point("blocks.2.mlp.hook_post")
        Traceback (most recent call last):
        ValueError: 'blocks.2.mlp.hook_post' is not a place in the residual stream: the MLP's neurons...
    """
    if _LENS.fullmatch(name) or _MODULE.fullmatch(name):
        return InputPoint.parse(name)
    return HookPoint.parse(name)


@torch.no_grad()
def heads_into_stream(model: nn.Module, layer: int) -> Float[Tensor, "d_z d_model"]:
    """What the heads' outputs become in the residual stream: `W_O^T`, adapters included, as the model is now.

        attn_out(z) = W_O z + b    hence    W_O^T = attn_out(1) - attn_out(0), row by row

    Behind a norm of the attention's output (Gemma) the rows are turned as that norm does, to first order.

    Raises:
        ValueError: the model has no known blocks, or too few.
    """
    from interptrain.meters.probes import evaluating

    stack = find_stack(model)
    point = InputPoint(f"blocks.{layer}.attn.hook_z", layer, "z")
    block, (half, _) = _block(stack, point), stack.halves[layer]
    writer = block.get_submodule(half.inside(half.writers)[0])
    weight = next(writer.parameters())
    with evaluating(writer):
        ones = torch.eye(_width_of(writer), dtype=weight.dtype, device=weight.device)
        rows = writer(ones) - writer(torch.zeros_like(ones[:1]))
    out, _ = HookPoint.parse(f"blocks.{layer}.hook_attn_out").locate_in(stack)
    if out is block.get_submodule(half.module):
        return rows.float().cpu()
    return Norm.of(f"blocks.{layer}.hook_attn_out", out, width=rows.shape[1]).in_front(rows.float()).cpu()


def _width_of(writer: nn.Module) -> int:
    """How wide the input of a linear map is; a Conv1D's weight is `[in, out]`."""
    base = dict(writer.named_children()).get("base_layer", writer)
    return int(base.in_features if isinstance(base, nn.Linear) else base.get_parameter("weight").shape[0])


def _block(stack: Stack, point: InputPoint) -> nn.Module:
    if point.layer >= len(stack.blocks):
        raise ValueError(
            f"hook '{point.name}' is at layer {point.layer} but '{stack.name}' has {len(stack.blocks)} blocks, "
            "counted from 0; was the SAE trained on another model?"
        )
    return stack.blocks[point.layer]


class _Normalized:
    """A norm's output without its gain and bias, by the norm's own arithmetic."""

    def __init__(self, name: str, norm: nn.Module) -> None:
        self._name, self._norm = name, norm
        self._plain: tuple[nn.Module, dict[str, Tensor]] | None = None

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "*token d_model"]) -> Float[Tensor, "*token d_model"]:
        module, plain = self._plain or self._of(x.shape[-1])
        self._plain = module, plain
        return functional_call(module, plain, (x.detach(),))

    def _of(self, width: int) -> tuple[nn.Module, dict[str, Tensor]]:
        norm = Norm.of(self._name, self._norm, width=width)
        neutral = {"weight": 1.0 - norm.offset, "bias": 0.0}
        plain = {
            f"norm.{key}": torch.full(own.shape, neutral[key], dtype=own.dtype, device=own.device)
            for key, own in norm.module.named_parameters()
        }
        return WithoutHooks(norm.module), plain
