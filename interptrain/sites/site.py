"""A site: where one parameter meets the residual stream."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from interptrain.concepts.bank import ConceptBank
from interptrain.sites.hooks import HookPoint
from interptrain.sites.norm import Norm

Role = Literal["writer", "reader", "tied"]


@dataclass(frozen=True, eq=False)
class Site:
    r"""A trainable parameter with the residual stream on one of its axes.

    A *writer* adds its output to the stream, so a step `dW` moves the stream along `d` by `d^T dW x`. A
    *reader* takes the normed stream in, so `dW` answers to `d` by `dW (w * d)`, with `w` the norm's gain. A *tied*
    weight is an embedding that is the head too, and so both.

    Args:
        name: as `model.named_parameters()` gives it.
        module: its owner; a LoRA factor is owned by the factor's own module.
        attribute: its name there.
        role: "writer", "reader" or "tied".
        axis: the parameter axis that is the stream's.
        position: place in the stream: embeddings -1, attention of block L at L + .25, its MLP at L + .75 (a parallel
            one at L + .25), head inf.
        norm: readers, and what is tied: the norm in front. Writers: a norm behind, on the way to the stream.
        lora: whether it belongs to an adapter `W = W0 + s B A`: `B` (or its bias) of a writer, `A` of a reader.
        scaling: `s`; 1 where it does not.
        partner: the module of the pair's other factor, `A` of a writer, `B` of a reader; None for what is no factor.
        experts: how many matrices the parameter holds, one an expert.
    """

    name: str
    module: nn.Module
    attribute: str
    role: Role
    axis: int
    position: float
    norm: Norm | None = None
    lora: bool = False
    scaling: float = 1.0
    partner: nn.Module | None = None
    experts: int = 1

    @property
    def approximate(self) -> bool:
        """Whether its directions leave out what depends on the data: a writer behind which a norm stands.

        Its step moves the stream by `J dW x` with the norm's Jacobian `J = (gain * (I - y y^T / n)) / spread`, and its
        directions are `J^T d` without `y y^T`. Gains hold of the step along them; along the stream's `d` nearly.
        """
        return self.role == "writer" and self.norm is not None

    @cached_property
    def sides(self) -> tuple[Site, ...]:
        """The site as a writer and as a reader, where it is tied; else the site."""
        if self.role != "tied":
            return (self,)
        return replace(self, role="writer", norm=None), replace(self, role="reader", position=math.inf)

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter as it stands now; sharding may have replaced the object since the site was found."""
        return self.module.get_parameter(self.attribute)

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """What a step of this site may change: the parameter, and the pair's other factor where there is one."""
        return (self.parameter,) if self.partner is None else (self.parameter, self.partner.get_parameter("weight"))

    @property
    def entrance(self) -> nn.Module:
        """The module that receives what the whole map, `W` or `s B A`, is applied to."""
        return self.partner if self.partner is not None and self.role == "writer" else self.module

    @property
    def width_in(self) -> int | None:
        """The width of what the entrance receives; None where it is no vector, or does not matter, as for a bias."""
        if isinstance(self.entrance, nn.Embedding) or self.parameter.ndim != 2 or self.experts > 1:
            return None
        return self.parameter.shape[1 - self.axis] if self.partner is None else self.parameters[1].shape[self.axis - 1]

    def directions(self, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "_ d_model"]:
        """Unit rows in the parameter's own coordinates, with the norm's present gain.

            writer: d                         behind an RMSNorm: w * d        behind a LayerNorm: w * (d - mean(d))
            writer, a norm behind it: w * d, less its mean where that is a LayerNorm
            tied: d of the writer, then those of the reader

        First order: good while `h` is not itself along `d`.
        """
        each = [side._directions(rows) for side in self.sides]
        return each[0] if len(each) == 1 else torch.cat(each)

    def seen(self, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """The same of what is not tied, not normalised."""
        if self.norm is None:
            return rows
        return self.norm.behind(rows) if self.role == "writer" else self.norm.in_front(rows)

    def _directions(self, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        return rows if self.norm is None else normalize(self.seen(rows), dim=-1)

    def rows(self, bank: ConceptBank) -> tuple[int, ...]:
        """Bank rows that this site touches: their hook lies after it (writers) or before it (readers)."""
        places = [HookPoint.parse(hook).position for hook in bank.hooks]
        return tuple(row for row, place in enumerate(places) if touches(self.role, self.position, place))


def touches(role: Role, position: float, hook: float) -> bool:
    """Whether a writer runs at or before a hook's position, or a reader at or after it; what is tied does both."""
    return role == "tied" or (position <= hook if role == "writer" else hook <= position)


@dataclass(frozen=True)
class LeftOut:
    """A trainable parameter that is no site, and why."""

    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class Sites:
    """What `find_sites` found: together, `sites` and `left_out` are all that trains.

    Args:
        sites: in the order of `model.named_parameters()`.
        left_out: every other trainable parameter.
    """

    sites: tuple[Site, ...]
    left_out: tuple[LeftOut, ...]

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __repr__(self) -> str:
        counts = Counter(site.role for site in self.sites)
        tied = f"{counts['tied']} tied, " if counts["tied"] else ""
        return f"Sites({counts['writer']} writers, {counts['reader']} readers, {tied}{len(self.left_out)} left out)"
