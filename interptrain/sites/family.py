"""What a family of transformers is: the names of the modules in its blocks, and what each does to the stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from itertools import chain
from typing import Any, Self, TypeAlias

from torch import nn

from interptrain.sites.layer import bare

INSIDE = ("act", "act_fn", "activation_fn", "rotary_emb")

Tree: TypeAlias = dict[str, Any]  # of trees: names inside a block; an empty tree is a layer or a parameter


@dataclass(frozen=True)
class Half:
    """One half of a block, `h <- h + post_norm(writers(inner(readers(norm(h)))))`.

    Args:
        module: its name in the block; empty where its layers stand in the block itself.
        norm: the norm in front of its readers, by name in the block; None where they read the stream as it is.
        readers: what takes the normed stream, by name in the half: linear maps, or weights `[..., out, in]` of their
            own, such as `experts.gate_up_proj`.
        writers: what is added to the stream, likewise.
        inner: what may stand between the two and touches neither.
        post_norm: a norm between the writers and the stream, by name in the block.
    """

    module: str
    norm: str | None
    readers: tuple[str, ...]
    writers: tuple[str, ...]
    inner: tuple[str, ...] = ()
    post_norm: str | None = None

    @property
    def norms(self) -> tuple[str, ...]:
        """Names in the block."""
        return tuple(name for name in (self.norm, self.post_norm) if name is not None)

    def inside(self, names: Iterable[str]) -> tuple[str, ...]:
        """Names in the half as names in the block."""
        return tuple(f"{self.module}.{name}" if self.module else name for name in names)

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> Self:
        """Read `{"module": ..., "norm": ..., "readers": [...], "writers": [...]}`; see `Family.from_mapping`."""
        return cls(**_checked(cls, given, lists=("readers", "writers", "inner")))


@dataclass(frozen=True)
class Family:
    """Module names of a transformer: `embeddings -> blocks of attention and mlp -> final norm -> head`.

    Args:
        title: what messages call it.
        attention: first half of a block.
        mlp: second half; several where blocks differ, as in stacks of which some layers have experts.
        embeddings: tables that write the stream's first value, by name beside the stack of blocks.
        final_norm: the norm in front of the head, beside the stack.
        head: the reader behind it, beside the stack or in a module around it.
        parallel: whether both halves read what the block receives, `h <- h + attention(h) + mlp(h)`.
        settings: attributes that a block of this family has, with their values.
        refused: why a model of this family cannot be read; None where it can.
    """

    title: str
    attention: Half
    mlp: Half | tuple[Half, ...]
    embeddings: tuple[str, ...]
    final_norm: str
    head: str = "lm_head"
    parallel: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    refused: str | None = None

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> Self:
        """Read a family from plain dicts, lists and strings, as YAML and JSON carry them.

        Args:
            given: the fields of `Family` by name; `attention` and `mlp` (or each of a list of them) those of `Half`.

        Raises:
            ValueError: a field is missing, or one that is not known is given.

        Example:
            >>> family = Family.from_mapping({
            ...     "title": "mine", "embeddings": ["tokens"], "final_norm": "last", "head": "out",
            ...     "attention": {"module": "mix", "norm": "n1", "readers": ["qkv"], "writers": ["o"]},
            ...     "mlp": {"module": "", "norm": "n2", "readers": ["up"], "writers": ["down"]},
            ... })
            >>> family.mlp.readers
            ('up',)
        """
        found = _checked(cls, given, lists=("embeddings",))
        found["attention"] = Half.from_mapping(found["attention"])
        mlp = found["mlp"]
        several = not isinstance(mlp, Mapping)
        found["mlp"] = tuple(Half.from_mapping(each) for each in mlp) if several else Half.from_mapping(mlp)
        return cls(**found)

    def halves(self, block: nn.Module) -> tuple[Half, Half] | None:
        """The two halves of a block of this family, or None for any other block.

        Every parameter of the block must be one the family knows, trainable or not: a frozen norm behind a
        writer changes what the writer adds just as much as a trained one.
        """
        kinds = ((self.attention, mlp) for mlp in self.mlps)
        return next((kind for kind in kinds if not any(self._differences(block, kind))), None)

    def mismatch(self, block: nn.Module) -> list[str]:
        """What keeps a block from being of this family, by the kind of block that it comes nearest to; empty if none.

        The names in it are in quotes.
        """
        return min((list(self._differences(block, (self.attention, mlp))) for mlp in self.mlps), key=nearness)

    @property
    def mlps(self) -> tuple[Half, ...]:
        """What the second half of a block may be."""
        return (self.mlp,) if isinstance(self.mlp, Half) else self.mlp

    def _differences(self, block: nn.Module, halves: tuple[Half, Half]) -> Iterator[str]:
        settings = vars(bare(block))
        for name, value in self.settings.items():
            if settings.get(name) != value:
                yield f"has {name}={settings.get(name)!r}, expected {value!r}"
        expected, optional = _tree(chain.from_iterable(_names(half) for half in halves)), _tree(())
        for half in halves:
            _grow(optional, half.inside(half.inner))
        yield from _differences(block, expected, optional, "")


def nearness(differences: list[str]) -> int:
    """How many names differ: fewest is nearest."""
    return sum(max(1, text.count("'") // 2) for text in differences)


def _names(half: Half) -> tuple[str, ...]:
    return (*half.norms, *half.inside((*half.readers, *half.writers)))


def _tree(names: Iterable[str]) -> Tree:
    tree: Tree = {}
    _grow(tree, names)
    return tree


def _grow(tree: Tree, names: Iterable[str]) -> None:
    for name in names:
        at = tree
        for part in name.split("."):
            at = at.setdefault(part, {})


def _differences(module: nn.Module, expected: Tree, optional: Tree, name: str) -> Iterator[str]:
    """What a module has and should not, or should have and has not; then the same of those inside it."""
    inner = bare(module)
    children = dict(inner.named_children())
    own = [key for key, _ in inner.named_parameters(recurse=False)]
    if not name:
        own += [key for key, _ in inner.named_buffers(recurse=False)]
    where = f"'{name}' " if name else ""
    unknown = [key for key, child in children.items() if key not in expected | optional and not _is_inert(key, child)]
    if unknown := [*unknown, *(key for key in own if key not in expected)]:
        yield f"{where}has {', '.join(repr(key) for key in unknown)}"
    if missing := [key for key in expected if key not in children and key not in own]:
        yield f"{where}has no {', '.join(repr(key) for key in missing)}"
    for key, below in expected.items():
        if below and key in children:
            inside = optional.get(key, {})
            yield from _differences(children[key], below, inside, f"{name}.{key}" if name else key)


def _is_inert(name: str, child: nn.Module) -> bool:
    """Whether a module leaves directions alone: dropout, or what acts inside a half without parameters."""
    return isinstance(child, (nn.Dropout, nn.Identity)) or (name in INSIDE and not list(child.parameters()))


def _checked(cls: type, given: Mapping[str, Any], *, lists: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a dataclass as a mapping gives them, lists as tuples."""
    known = {each.name: each for each in fields(cls)}
    needed = [name for name, each in known.items() if not _has_default(each)]
    unknown, missing = [key for key in given if key not in known], [name for name in needed if name not in given]
    if unknown or missing:
        found = [f"unknown {', '.join(map(repr, unknown))}"] if unknown else []
        found += [f"without {', '.join(map(repr, missing))}"] if missing else []
        raise ValueError(f"a {cls.__name__} has {', '.join(known)}; found one {' and '.join(found)}")
    for name in lists:
        if isinstance(given.get(name), str):
            raise ValueError(f"'{name}' of a {cls.__name__} is a list of names, found {given[name]!r}")
    return {key: tuple(value) if key in lists else value for key, value in given.items()}


def _has_default(each: Any) -> bool:
    return each.default is not MISSING or each.default_factory is not MISSING
