"""What the optimizer really did: each site's realised change, read and edited after the step.

dW = W_after - W_before                       a parameter
dW = s (B' A' - B A)                          the product of a LoRA pair
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interptrain.meters.achieved import AchievedGain
from interptrain.projection import (
    WHOLE,
    Factors,
    Matrix,
    Part,
    ShardedProjector,
    cap_factor,
    product_change,
    steer_product,
    thin,
)
from interptrain.sites import Site
from interptrain.sites.sharding import is_sharded, local, matrices, overwrite_, wholes
from interptrain.views import SteeredFrame

_Key: TypeAlias = tuple[nn.Module, str]  # where a parameter is found


@runtime_checkable
class Update(Protocol):
    """The realised change `dW` of one site, residual axis first."""

    @property
    def site(self) -> Site:
        """Where."""
        ...

    @property
    def part(self) -> Part:
        """What this process has of it; the rest of what is said here is about this part."""
        ...

    def matrix(self, rows: Float[Tensor, "row d_model"]) -> Matrix:
        """`dW`, or a narrower matrix with the same energy along every residual direction, to be read along `rows`."""
        ...

    def project(self, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row _"]:
        """`rows dW`."""
        ...

    def effect(self, received: Float[Tensor, "input"]) -> Float[Tensor, "d_model"]:
        """`dW x`: how the change moves what is written to the stream at an input `x`.

        Of a part of `dW` what it adds to the whole effect.
        """
        ...


@dataclass(frozen=True, eq=False)
class ParameterUpdate:
    """The change of a parameter, as far as this process has it.

    Args:
        site: where.
        before: the parameter before the step, residual axis first.
        now: a view of it as it stands; writing to it writes to the parameter.
        part: what the two are of the whole parameter.
    """

    site: Site
    before: Float[Tensor, "d_model other"]
    now: Float[Tensor, "d_model other"]
    part: Part = WHOLE

    def matrix(self, rows: Float[Tensor, "row d_model"], mixing: Tensor | None = None) -> Matrix:
        """`W_now - W_before`, to be read and steered along `rows`."""
        return Matrix(self.now, self.part.along_rows(rows), mixing, self.before, self.part)

    def project(self, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row other"]:
        """`rows dW`."""
        matrix = self.matrix(rows)
        return matrix.basis @ matrix.value()

    def effect(self, received: Float[Tensor, "input"]) -> Float[Tensor, "d_model"]:
        """`s dW x`, with `s` of an adapter's bias."""
        effect = self.site.scaling * ((self.now - self.before).float() @ self.part.along_columns(received))
        return self.part.among_rows(effect, self.site.parameter.shape[self.site.axis])


@dataclass(frozen=True, eq=False)
class ProductUpdate:
    """The change of a LoRA pair's product, `s (B' A' - B A)`; transposed for a reader.

    Args:
        site: of the factor with the residual axis.
        before: both factors before the step.
        now: views of both as they stand; copies of those that are sharded.
        sharded: each copy, and the parameter that it is of.
    """

    site: Site
    before: Factors
    now: Factors
    sharded: tuple[tuple[Tensor, Tensor], ...] = ()

    @property
    def part(self) -> Part:
        """Everything: every process gathers both factors."""
        return WHOLE

    def write_(self, edited: Factors) -> None:
        """Overwrite both parameters."""
        self.now.outer.copy_(edited.outer)
        self.now.inner.copy_(edited.inner)
        for copy, parameter in self.sharded:
            overwrite_(parameter, copy)

    def matrix(self, rows: Float[Tensor, "row d_model"]) -> Matrix:
        """A matrix of `2 r` columns with the energies of `dW`."""
        return Matrix(thin(*self._change()), rows)

    def project(self, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row other"]:
        """`rows dW`, through the factors."""
        left, right = self._change()
        return (rows @ left) @ right

    def effect(self, received: Float[Tensor, "input"]) -> Float[Tensor, "d_model"]:
        """`dW x`, through the factors."""
        left, right = self._change()
        return left @ (right @ received)

    def _change(self) -> tuple[Float[Tensor, "d_model twice_rank"], Float[Tensor, "twice_rank other"]]:
        left, right = product_change(self.before, self.now)
        return self.site.scaling * left.float(), right.float()


class Snapshots:
    """One copy of the sites' parameters, taken before the optimizer steps, in buffers that are kept.

    Of a sharded parameter each process copies what it holds.
    """

    def __init__(self) -> None:
        self._buffers: dict[_Key, Tensor] = {}

    @torch.no_grad()
    def take(self, sites: Iterable[Site]) -> None:
        """Copy what a step of these sites may change."""
        live = {key: local(parameter) for site in sites for key, parameter in _factors(site)}
        for key, held in live.items():
            kept = self._buffers.get(key)
            if kept is None or (kept.shape, kept.dtype, kept.device) != (held.shape, held.dtype, held.device):
                self._buffers[key] = torch.empty_like(held)
        if live:
            torch._foreach_copy_([self._buffers[key] for key in live], list(live.values()))

    @torch.no_grad()
    def updates(self, sites: Sequence[Site]) -> list[Update]:
        """The change of each site since the copy was taken, of some sites expert by expert.

        One collective, where a pair's factors are sharded.
        """
        factors = {key: parameter for site in sites if site.partner is not None for key, parameter in _factors(site)}
        pieces = [(piece, parameter) for key, parameter in factors.items() for piece in self._pieces(key, parameter)]
        gathered = iter(wholes(pieces))
        pairs = {key: (next(gathered), next(gathered)) for key in factors}
        found = (self._of_parameter(site) if site.partner is None else _products(site, pairs) for site in sites)
        return [update for of_site in found for update in of_site]

    def _pieces(self, key: _Key, parameter: nn.Parameter) -> tuple[Tensor, Tensor]:
        """What this process holds of a parameter, before and now."""
        return self._buffers[key], local(parameter)

    def _of_parameter(self, site: Site) -> list[Update]:
        parameter = site.parameter
        held = self._pieces((site.module, site.attribute), parameter)
        before, now = (matrices(each, parameter, site.axis) for each in held)
        return [ParameterUpdate(site, old, new, part) for (old, _), (new, part) in zip(before, now, strict=True)]

    def clear(self) -> None:
        """Give the memory back."""
        self._buffers.clear()


def _products(site: Site, pairs: Mapping[_Key, tuple[Tensor, Tensor]]) -> list[Update]:
    """The change of a pair's product; of each expert's."""
    factors = _factors(site)
    own, other = (pairs[key] for key, _ in factors)
    before, now = (_by_expert(site, *each) for each in zip(own, other, strict=True))
    sharded = tuple((pairs[key][1], parameter) for key, parameter in factors if is_sharded(parameter))
    return [ProductUpdate(site, old, new, sharded) for old, new in zip(before, now, strict=True)]


def _by_expert(site: Site, own: Tensor, other: Tensor) -> list[Factors]:
    """Views of the factors of each expert, which PEFT keeps side by side: `A [expert r, in]`, `B [out, r expert]`."""
    outer, inner = (own, other) if site.axis == 0 else (other, own)
    As = inner.view(site.experts, -1, inner.shape[1])
    Bs = outer.view(outer.shape[0], -1, site.experts).movedim(2, 0)
    if site.axis == 0:
        return [Factors(B, A) for B, A in zip(Bs, As, strict=True)]
    return [Factors(A.T, B.T) for B, A in zip(Bs, As, strict=True)]


def snapshot_bytes(sites: Iterable[Site]) -> int:
    """Bytes of a process's copy of what a step of these sites may change; a factor that two share counts once."""
    return sum({key: local(parameter).nbytes for site in sites for key, parameter in _factors(site)}.values())


def _factors(site: Site) -> list[tuple[_Key, nn.Parameter]]:
    places = [(site.module, site.attribute)]
    if site.partner is not None:
        places.append((site.partner, "weight"))
    return list(zip(places, site.parameters, strict=True))


@dataclass(frozen=True, eq=False)
class Steered:
    """What an edit of a step's changes did.

    Args:
        cap: the smallest factor of the norm cap; 1 where it did not bind.
        gain: that each named concept really got, once what of it is partial has been summed; NaN where it was not
            measured.
        off_concept: for pairs, `||P (dW'' - dW)|| / ||P dW||` with `P` the projection off the concepts, over all
            pairs together; NaN where it was not measured or there are none.
    """

    cap: Float[Tensor, ""]
    gain: AchievedGain
    off_concept: Float[Tensor, ""]


@torch.no_grad()
def steer_updates_(
    updates: Sequence[tuple[Update, SteeredFrame]],
    gains: Float[Tensor, "concept"],
    projector: ShardedProjector,
    *,
    norm_cap: float | None = None,
    measure: bool = False,
) -> Steered:
    """Give each realised change the gains that a rule asks for; overwrites the parameters.

    A parameter's change is edited by the operator itself: `dW' = dW + D^T (D D^T)^-1 diag(gain - 1) D dW`, exact
    to the rounding of the parameter. A pair's is edited in both factors, see `steer_product` for what is exact.
    A change that is not finite is left as it was found.

    Args:
        updates: for every site its change and the directions named there.
        gains: one a named concept.
        projector: what edits the changes of parameters.
        norm_cap: bound on `||dW' - dW|| / ||dW||` at each site.
        measure: whether to measure the achieved gains and what happened off the concepts.
    """
    asked = [update.project(steered.directions) for update, steered in updates] if measure else []
    changed: list[tuple[Tensor, Tensor]] = []
    parameters: list[Matrix] = []
    pairs: dict[tuple[object, ...], list[tuple[ProductUpdate, SteeredFrame, Tensor]]] = defaultdict(list)
    cap = torch.ones((), device=gains.device)
    for update, steered in updates:
        mixing = steered.mixing(gains)
        if isinstance(update, ParameterUpdate):
            parameters.append(update.matrix(steered.frame.basis, mixing))
        elif isinstance(update, ProductUpdate):
            if norm_cap is not None:
                factor = cap_factor(update.matrix(steered.frame.basis).value(), steered.frame.basis, mixing, norm_cap)
                mixing, cap = factor * mixing, torch.minimum(cap, factor)
            shape = (
                *update.now.outer.shape,
                *update.now.inner.shape,
                len(mixing),
                update.now.outer.dtype,
                mixing.device,
            )
            pairs[shape].append((update, steered, mixing))
    if parameters:
        cap = torch.minimum(cap, projector.steer_(parameters, norm_cap))
    for group in pairs.values():
        changed += _steer_pairs_(group, measure=measure)
    gain = AchievedGain(len(gains), gains.device)
    for (update, steered), before in zip(updates if measure else (), asked, strict=True):
        gain.add(before, update.project(steered.directions), steered.concept, update.part)
    off_concept = torch.full((), torch.nan, device=gains.device)
    if changed:
        moved, whole = (torch.stack(each).sum() for each in zip(*changed, strict=True))
        off_concept = (moved / whole).sqrt()
    return Steered(cap, gain, off_concept)


def _steer_pairs_(
    group: Sequence[tuple[ProductUpdate, SteeredFrame, Tensor]], *, measure: bool
) -> list[tuple[Tensor, Tensor]]:
    """Edit pairs of one shape together; off the concepts, the energy of the edit and that of the step."""
    before, now = _stacked([u.before for u, _, _ in group]), _stacked([u.now for u, _, _ in group])
    basis = torch.stack([steered.frame.basis for _, steered, _ in group])
    edited = steer_product(before, now, basis, torch.stack([mixing for _, _, mixing in group]))
    for number, (update, _, _) in enumerate(group):
        update.write_(Factors(edited.outer[number], edited.inner[number]))
    if not measure:
        return []
    scaling = torch.tensor([update.site.scaling for update, _, _ in group], device=basis.device)
    return [(_off_energy(now, edited, basis, scaling), _off_energy(before, now, basis, scaling))]


def _stacked(factors: Sequence[Factors]) -> Factors:
    return Factors(torch.stack([f.outer for f in factors]), torch.stack([f.inner for f in factors]))


def _off_energy(
    start: Factors, end: Factors, basis: Float[Tensor, "pair direction d_model"], scaling: Float[Tensor, "pair"]
) -> Float[Tensor, ""]:
    left, right = (each.float() for each in product_change(start, end))
    columns = thin(left - basis.mT @ (basis @ left), right)
    return (scaling * columns.flatten(1).norm(dim=-1)).square().sum()
