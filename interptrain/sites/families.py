"""Families of transformers, recognised by the names of the modules in a block, never by a config class."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

INSIDE = ("act", "act_fn", "rotary_emb")


@dataclass(frozen=True)
class Half:
    """One half of a block, `h <- h + writer(inner(readers(norm(h))))`.

    Args:
        module: its name in the block.
        norm: the norm in front of its readers, by name in the block.
        readers: linear maps that take the normed stream, by name in the half.
        writer: the linear map whose output is added to the stream.
        inner: what may stand between the two and touches neither.
    """

    module: str
    norm: str
    readers: tuple[str, ...]
    writer: str
    inner: tuple[str, ...] = ()

    @property
    def linear(self) -> tuple[str, ...]:
        """Readers and writer."""
        return (*self.readers, self.writer)


@dataclass(frozen=True)
class Family:
    """Module names of a pre-norm transformer: `embeddings -> blocks of attention, mlp -> final norm -> head`.

    Args:
        title: what messages call it.
        attention: first half of a block.
        mlp: second half.
        embeddings: tables that write the stream's first value, by name beside the stack of blocks.
        final_norm: the norm in front of the head, beside the stack.
        head: the reader behind it, beside the stack or in a module around it.
    """

    title: str
    attention: Half
    mlp: Half
    embeddings: tuple[str, ...]
    final_norm: str
    head: str = "lm_head"

    def mismatch(self, block: nn.Module) -> str | None:
        """Why a block is not of this family, or None if it is.

        Every parameter of the block must be one the family knows, trainable or not: a frozen norm behind a
        writer changes what the writer adds just as much as a trained one.
        """
        halves = (self.attention, self.mlp)
        expected = [name for half in halves for name in (half.module, half.norm)]
        if reason := _difference(block, expected, optional=()):
            return reason
        for half in halves:
            inside = block.get_submodule(half.module)
            if reason := _difference(inside, half.linear, optional=half.inner):
                return f"'{half.module}' {reason}"
        return None


def _difference(module: nn.Module, expected: Iterable[str], optional: Iterable[str]) -> str | None:
    children = dict(module.named_children())
    known = {*expected, *optional}
    unknown = [name for name, child in children.items() if name not in known and not _is_inert(name, child)]
    unknown += [name for name, _ in module.named_parameters(recurse=False)]
    if unknown:
        return f"has {', '.join(repr(name) for name in unknown)}"
    missing = [name for name in expected if name not in children]
    return f"has no {', '.join(repr(name) for name in missing)}" if missing else None


def _is_inert(name: str, child: nn.Module) -> bool:
    """Whether a module leaves directions alone: dropout, or what acts inside a half without parameters."""
    return isinstance(child, (nn.Dropout, nn.Identity)) or (name in INSIDE and not list(child.parameters()))


LLAMA = Family(
    title="Llama-like",
    attention=Half("self_attn", "input_layernorm", ("q_proj", "k_proj", "v_proj"), "o_proj", ("q_norm", "k_norm")),
    mlp=Half("mlp", "post_attention_layernorm", ("gate_proj", "up_proj"), "down_proj"),
    embeddings=("embed_tokens",),
    final_norm="norm",
)
GPT2 = Family(
    title="GPT-2",
    attention=Half("attn", "ln_1", ("c_attn",), "c_proj"),
    mlp=Half("mlp", "ln_2", ("c_fc",), "c_proj"),
    embeddings=("wte", "wpe"),
    final_norm="ln_f",
)
FAMILIES = (LLAMA, GPT2)
