"""Hook points: names of places in the residual stream, as TransformerLens and Hugging Face write them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from interptrain.sites.family import Half
from interptrain.sites.stack import Stack, find_stack

Place = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]

# What a half adds stands with the stream it is added to: both have the same gradient.
_OFFSET: dict[Place, float] = {
    "resid_pre": 0.0, "attn_out": 0.5, "resid_mid": 0.5, "mlp_out": 1.0, "resid_post": 1.0,
}  # fmt: skip
_LENS = re.compile(r"blocks\.(\d+)\.(?:hook_(resid_pre|resid_mid|resid_post|attn_out|mlp_out)|(attn|mlp)\.hook_out)")
_HALF = r"self_attn|attn|attention|mlp|fc2|post_feedforward_layernorm"
_BLOCK = re.compile(rf"(?:.+\.)?(?:layers|h)\.(\d+)(?:\.(?:(input|output)|({_HALF})(?:\.output)?))?")
_PLACE_OF: dict[str | None, Place] = {
    None: "resid_post", "output": "resid_post", "input": "resid_pre",
    "self_attn": "attn_out", "attn": "attn_out", "attention": "attn_out", "mlp": "mlp_out",
    "fc2": "mlp_out", "post_feedforward_layernorm": "mlp_out",
}  # fmt: skip
# What is elsewhere, for the message that refuses it.
_ELSEWHERE = {
    r"hook_embed|.*embed_tokens|.*wte": "the token embedding, which is blocks.0.hook_resid_pre where nothing is added "
    "or scaled behind it (rotary positions; not GPT-2, OPT, Gemma): say so with hook='blocks.0.hook_resid_pre'",
    r"hook_pos_embed": "the position embedding",
    r".*attn\.hook_z|.*(o_proj|c_proj|out_proj|dense)\.input": "the heads' outputs, whose directions in the stream "
    "are those behind W_O: from_saelens(sae, ..., model=model) takes them there",
    r".*(hook_q|hook_k|hook_v|hook_pattern|hook_attn_scores|hook_result|hook_rot_q|hook_rot_k)": "inside the heads",
    r".*mlp\.hook_(pre|pre_linear|post)": "the MLP's neurons, whose directions are not the stream's",
    r".*(ln1|ln2|ln_final)\.hook_(normalized|scale)|.*hook_mlp_in|.*mlp\.(hook_in|input)|.*(input_layernorm|"
    r"pre_feedforward_layernorm|ln_1|ln_2)(\.output)?|(.*\.)?(norm|ln_f)": "the stream behind a norm, which a "
    "transcoder may read but no direction of the stream lies in",
    r".*post_attention_layernorm(\.output)?": "what the MLP reads in Llama and the attention's output in Gemma; say "
    "which, with hook='blocks.L.mlp.hook_in' or 'blocks.L.hook_attn_out'",
}  # fmt: skip


@dataclass(frozen=True)
class HookPoint:
    """A place in the residual stream of one layer.

    Args:
        name: as it was written.
        layer: counted from 0.
        place: which of the layer's places.

    Example:
        >>> HookPoint.parse("blocks.2.hook_resid_post").position
        3.0
        >>> HookPoint.parse("model.layers.2").place
        'resid_post'
        >>> HookPoint.parse("blocks.2.mlp.hook_post")
        Traceback (most recent call last):
        ValueError: 'blocks.2.mlp.hook_post' is not a place in the residual stream: the MLP's neurons...
    """

    name: str
    layer: int
    place: Place

    @classmethod
    def parse(cls, name: str) -> Self:
        """Read `blocks.L.hook_resid_post` and its kin, or a Hugging Face module name (its output is meant).

        Raises:
            ValueError: the name is of no place in the residual stream.
        """
        if match := _LENS.fullmatch(name):
            place: Place = match[2] or f"{match[3]}_out"  # type: ignore[assignment]
            return cls(name, int(match[1]), place)
        if match := _BLOCK.fullmatch(name):
            return cls(name, int(match[1]), _PLACE_OF[match[2] or match[3]])
        there = next((f": {what}" for pattern, what in _ELSEWHERE.items() if re.fullmatch(pattern, name)), "")
        raise ValueError(
            f"'{name}' is not a place in the residual stream{there}; expected 'blocks.L.hook_X' with X one of "
            f"{', '.join(_OFFSET)}, or a block's name such as 'model.layers.L' or 'transformer.h.L'"
        )

    def at(self, layer: int) -> Self:
        """The same place of another layer."""
        return type(self)(f"blocks.{layer}.hook_{self.place}", layer, self.place)

    @property
    def position(self) -> float:
        """Place in the stream: `resid_pre` L, `resid_mid` L + .5, `resid_post` L + 1."""
        return self.layer + _OFFSET[self.place]

    def locate(self, model: nn.Module) -> tuple[nn.Module, Literal["input", "output"]]:
        """The module whose first input or (first) output is the activation at this point.

        Where a norm stands behind a half's writers (Gemma-2, Gemma-3), `attn_out` and `mlp_out` are its output.

        Raises:
            ValueError: the model has no known blocks, or too few, or no such place.
        """
        return self.locate_in(find_stack(model))

    def listen(self, model: nn.Module, receive: Callable[[Tensor], None]) -> RemovableHandle:
        """Hand every forward pass's activation at this point to `receive`; the handle's `remove` ends it.

        Raises:
            ValueError: the model has no known blocks, or too few, or no such place.
        """
        stack = find_stack(model)
        module, side = self.locate_in(stack)
        if self._flat_in(stack):  # what is received must be what the model goes on with
            return self.edit(model, lambda activation: _passed_on(activation, receive))
        if side == "output":
            return module.register_forward_hook(lambda _module, _args, output: receive(_first(output)))
        return module.register_forward_pre_hook(
            lambda _module, args, kwargs: receive(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )

    def edit(self, model: nn.Module, change: Callable[[Tensor], Tensor]) -> RemovableHandle:
        """Replace every forward pass's activation at this point by a function of it; the handle's `remove` ends it.

        Raises:
            ValueError: the model has no known blocks, or too few, or no such place.
        """
        stack = find_stack(model)
        module, side = self.locate_in(stack)
        if self._flat_in(stack):
            block = BlockShape(stack.blocks[self.layer])
            return Both(block.handle, _edit(module, side, block.shaped(change)))
        return _edit(module, side, change)

    def _flat_in(self, stack: Stack) -> bool:
        """Whether the activation is `[batch * token, d_model]`, as between the halves of an OPT block."""
        return self.place in ("resid_mid", "mlp_out") and not stack.halves[self.layer][1].module

    def locate_in(self, stack: Stack) -> tuple[nn.Module, Literal["input", "output"]]:
        """The same, in a stack of blocks already found."""
        if self.layer >= len(stack.blocks):
            raise ValueError(
                f"hook '{self.name}' is at layer {self.layer} but '{stack.name}' has {len(stack.blocks)} blocks, "
                "counted from 0; was the SAE trained on another model?"
            )
        block, (attention, mlp) = stack.blocks[self.layer], stack.halves[self.layer]
        match self.place:
            case "resid_pre":
                return block, "input"
            case "resid_mid":
                return block.get_submodule(self._between(mlp, stack)), "input"
            case "resid_post":
                return block, "output"
            case "attn_out":
                return block.get_submodule(self._added(attention)), "output"
            case "mlp_out":
                return block.get_submodule(self._added(mlp)), "output"

    def _between(self, mlp: Half, stack: Stack) -> str:
        """What receives the stream between the two halves of a block, by name."""
        if stack.family.parallel:
            raise ValueError(
                f"'{self.name}' does not exist in '{stack.name}' ({stack.family.title}), whose attention and MLP both "
                f"read what the block receives; take 'blocks.{self.layer}.hook_resid_pre' or '...hook_resid_post'"
            )
        return mlp.norm or mlp.module or mlp.readers[0]

    def _added(self, half: Half) -> str:
        """What puts out what a half adds to the stream, by name: a norm behind its writers, where there is one."""
        if half.post_norm is None:
            return half.module or half.writers[-1]
        if f"hook_{self.place}" not in self.name and half.post_norm not in self.name:
            raise ValueError(
                f"'{self.name}' puts out what '{half.post_norm}' norms before it reaches the stream, which is no place "
                f"in it; take 'blocks.{self.layer}.hook_{self.place}', the norm's output"
            )
        return half.post_norm


def _edit(module: nn.Module, side: str, change: Callable[[Tensor], Tensor]) -> RemovableHandle:
    if side == "output":
        return module.register_forward_hook(lambda _module, _args, output: _with_first(output, change))
    return module.register_forward_pre_hook(
        lambda _module, args, kwargs: _with_argument(args, kwargs, change), with_kwargs=True
    )


def _passed_on(activation: Tensor, receive: Callable[[Tensor], None]) -> Tensor:
    receive(activation)
    return activation


class BlockShape:
    """Remembers the shape of what a block receives."""

    def __init__(self, block: nn.Module) -> None:
        self._shape = torch.Size()
        self.handle = block.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, _block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._shape = (args[0] if args else kwargs["hidden_states"]).shape

    def of_texts(self, activation: Tensor) -> Tensor:
        """`[batch * token, width]`, or what has that shape already, as `[batch, token, width]`."""
        return activation.view(*self._shape[:-1], activation.shape[-1])

    def shaped(self, change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """A change of `[batch, token, d_model]` as one of `[batch * token, d_model]`."""
        return lambda flat: change(flat.view(self._shape)).view(flat.shape)


class Both(RemovableHandle):
    """Two handles as one."""

    def __init__(self, *handles: RemovableHandle) -> None:
        self._handles = handles

    def remove(self) -> None:
        """Remove both."""
        for handle in self._handles:
            handle.remove()


def _first(output: Tensor | tuple[Any, ...]) -> Tensor:
    """The activation of a module that may put out more, as an attention its weights or None in their place."""
    first: Tensor = output if isinstance(output, Tensor) else output[0]
    return first


def _with_first(output: Tensor | tuple[Any, ...], change: Callable[[Tensor], Tensor]) -> Tensor | tuple[Any, ...]:
    return change(output) if isinstance(output, Tensor) else (change(output[0]), *output[1:])


def _with_argument(
    args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[[Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (change(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}
