"""Find where a model's trainable parameters meet the residual stream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import nn

from interptrain.concepts.bank import ConceptBank
from interptrain.sites.checks import check_model, check_site
from interptrain.sites.experts import axes_of_weight, weight_meant
from interptrain.sites.hooks import HookPoint
from interptrain.sites.layer import axes_of
from interptrain.sites.norm import Norm
from interptrain.sites.parts import EMBEDDINGS, HEAD, Part, parts
from interptrain.sites.sharding import refuse
from interptrain.sites.site import LeftOut, Site, Sites, touches
from interptrain.sites.stack import find_stack

ON_REQUEST = "left out on request"
NORM = "a norm's gain or bias scales the stream, it is no linear writer or reader"
INNER = "acts inside the heads, not on the stream"
READER_BIAS = "a reader's bias does not meet the stream"
INNER_FACTOR = "the LoRA factor without a residual axis"
LORA_READER = 'a LoRA reader: its gradient cannot be steered (dW = s dB A while B = 0), where="update" can'
TOO_LATE = "runs after the hook point"
TOO_EARLY = "reads the stream before the hook point"


def find_sites(model: nn.Module, bank: ConceptBank, *, skip: Sequence[str] = (), where: str = "gradient") -> Sites:
    """Sort every trainable parameter of a model into sites and those left out, with the reason.

    Sites are the writers that run before a hook of the bank (embeddings, attention and MLP outputs, their
    biases) and the readers that run after it. With LoRA, `W = W0 + s B A`, a writer's residual axis is that of
    `B`'s rows and a reader's that of `A`'s columns. A head that is the embedding is one site, on both sides.

    Args:
        model: holds one transformer of a known family, at any depth, adapted or not.
        bank: the concepts; its hooks and width are checked against the model.
        skip: patterns (`fnmatch`) of parameter names to leave out, understood or not.
        where: what will be edited. In "gradient" mode LoRA readers are left out: with `B = 0` the step is
            `s dB A`, of which `A`'s gradient decides nothing.

    Raises:
        ValueError: the model is not the bank's; it has no known blocks, or two stacks of them; a trainable
            parameter is not understood, or shared by two modules; or nothing is left that meets the stream.
        TypeError: the parameters are spread over processes otherwise than FSDP2 does it.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from interptrain.concepts.bank import ConceptBank
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=12,
        ...     num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1))
        >>> bank = ConceptBank.from_directions({"pirate": torch.eye(8)[0]}, hook="blocks.0.hook_resid_post")
        >>> sites = find_sites(model, bank, skip=["lm_head*"])
        >>> sites
        Sites(3 writers, 5 readers, 13 left out)
        >>> sites.sites[1].name, sites.sites[1].role, sites.sites[1].axis
        ('model.layers.0.self_attn.o_proj.weight', 'writer', 0)
        >>> sites.left_out[-1]
        LeftOut(name='lm_head.weight', reason='left out on request')
    """
    if where not in ("gradient", "update"):
        raise ValueError(f'where is "gradient" or "update", found {where!r}')
    refuse(model)
    stack = find_stack(model)
    check_model(bank, stack)
    hooks = [HookPoint.parse(hook) for hook in bank.hook_points]
    for hook in hooks:
        hook.locate_in(stack)
    search = _Search({part.name: part for part in parts(stack)}, [hook.position for hook in hooks], where)

    sites: list[Site] = []
    left_out: list[LeftOut] = []
    for trained in _trainable(model, skip):
        found = ON_REQUEST if trained.skipped else search.classify(trained)
        if isinstance(found, Site):
            check_site(found, bank)
            sites.append(found)
        else:
            left_out.append(LeftOut(trained.name, found))
    if not sites:
        raise ValueError(
            f"no trainable parameter of {type(model).__name__} is a site (a writer up to a hook of the bank, "
            f"a reader after it): {_why_none(left_out)}"
        )
    return Sites(tuple(sites), tuple(left_out))


@dataclass(frozen=True, eq=False)
class _Trainable:
    name: str
    owners: tuple[str, ...]  # one, but where modules share the parameter
    attribute: str
    skipped: bool


def _trainable(model: nn.Module, skip: Sequence[str]) -> Iterator[_Trainable]:
    if isinstance(skip, str):
        raise TypeError(f"skip is a list of patterns, found the string {skip!r}; write [{skip!r}]")
    names: dict[nn.Parameter, list[str]] = {}
    for owner, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            names.setdefault(parameter, []).append(f"{owner}.{attribute}" if owner else attribute)
    for pattern in skip:
        if not any(fnmatchcase(name, pattern) for several in names.values() for name in several):
            raise ValueError(f"skip pattern {pattern!r} matches no parameter of {type(model).__name__}")
    for parameter, several in names.items():
        if parameter.requires_grad:
            skipped = any(fnmatchcase(name, pattern) for name in several for pattern in skip)
            owners = tuple(name.rpartition(".")[0] for name in several)
            yield _Trainable(several[0], owners, several[0].rpartition(".")[2], skipped)


@dataclass(frozen=True, eq=False)
class _Search:
    parts: dict[str, Part]
    hooks: list[float]
    where: str

    def classify(self, trained: _Trainable) -> Site | str:
        """The site that a parameter is, or the reason why it is none."""
        if len(trained.owners) > 1:
            return self._classify_tied(trained)
        owner = trained.owners[0]
        part = self._part_of(owner, trained.attribute)
        if part is None:
            raise ValueError(
                f"'{trained.name}' trains, but what it does to the residual stream is not understood; "
                f"to train it without steering it, leave it out: skip=['{owner or trained.name}*']"
            )
        try:
            return self._classify_in(part, owner, trained)
        except ValueError as error:
            raise ValueError(
                f"{error}; to train it without steering it, leave it out: skip=['{part.place}.*']"
            ) from error

    def _classify_tied(self, trained: _Trainable) -> Site | str:
        """An embedding that is the head too: one weight `[word, d_model]`, a writer and a reader in one."""
        found = {each.kind: each for each in self.parts.values() if each.name in trained.owners}
        table, head = found.get("writer"), found.get("reader")
        ends = table is not None and head is not None and (table.position, head.position) == (EMBEDDINGS, HEAD)
        if len(trained.owners) != 2 or not ends or table is None or head is None:
            owners = " and ".join(repr(owner) for owner in trained.owners)
            raise ValueError(
                f"'{trained.name}' is shared by {owners}, so that one step changes both uses; "
                f"untie them, or leave it out: skip=['{trained.name}']"
            )
        writer, reader = (self._classify_in(part, part.name, trained) for part in (table, head))
        assert isinstance(writer, Site), writer
        assert isinstance(reader, Site), reader
        return replace(writer, role="tied", norm=reader.norm)

    def _part_of(self, owner: str, attribute: str) -> Part | None:
        """The module around a parameter that the family knows, or the weight that it is or adapts."""
        names = [*owner.split("."), attribute]
        prefixes = [".".join(names[:depth]) for depth in range(len(names), 0, -1)]
        if (found := next((self.parts[prefix] for prefix in prefixes if prefix in self.parts), None)) is not None:
            return found
        around = (part for part in self.parts.values() if part.weight is not None and part.place in prefixes)
        meant = (part for part in around if weight_meant(part.module, _inside(owner, part), attribute) == part.weight)
        return next(meant, None)

    def _classify_in(self, part: Part, owner: str, trained: _Trainable) -> Site | str:
        if part.kind == "norm":
            return NORM
        if part.kind == "inner":
            return INNER
        path = _inside(owner, part)
        axes_in = axes_of if part.weight is None else axes_of_weight
        axes = axes_in(part.name, part.module, path, trained.attribute)
        axis = axes.outputs if part.kind == "writer" else axes.inputs
        if axis is None:
            return INNER_FACTOR if axes.lora else READER_BIAS
        if not any(touches(part.kind, part.position, hook) for hook in self.hooks):
            return TOO_LATE if part.kind == "writer" else TOO_EARLY
        if part.kind == "reader" and axes.lora and self.where == "gradient":
            return LORA_READER
        module = part.module.get_submodule(".".join(path))
        width = module.get_parameter(trained.attribute).shape[axis]
        norm = None if part.norm is None else Norm.of(part.norm.name, part.norm.module, width=width)
        partner = part.module.get_submodule(".".join(axes.partner)) if axes.partner else None
        return Site(
            trained.name, module, trained.attribute, part.kind, axis, part.position, norm, axes.lora, axes.scaling,
            partner, axes.experts,
        )  # fmt: skip


def _inside(owner: str, part: Part) -> tuple[str, ...]:
    """The path from a part's module to the module that owns a parameter in it."""
    inside = owner.removeprefix(part.place).removeprefix(".")
    return tuple(inside.split(".")) if inside else ()


def _why_none(left_out: Sequence[LeftOut]) -> str:
    if not left_out:
        return "nothing in it trains"
    counts = Counter(left.reason for left in left_out)
    return "; ".join(f"{count} parameters: {reason}" for reason, count in counts.most_common())
