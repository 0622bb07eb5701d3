"""What the optimizer really did: each site's realised change, read and edited after the step.

dW = W_after - W_before                       a parameter
dW = s (B' A' - B A)                          the product of a LoRA pair
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interptrain.meters.achieved import achieved_gain
from interptrain.projection import (
    Factors,
    Matrix,
    Projector,
    as_columns,
    cap_factor,
    capped,
    product_change,
    steer_product,
    thin,
)
from interptrain.sites import Site
from interptrain.views import SteeredFrame


@runtime_checkable
class Update(Protocol):
    """The realised change `dW` of one site, residual axis first."""

    @property
    def site(self) -> Site:
        """Where."""
        ...

    def matrix(self, rows: Float[Tensor, "row d_model"]) -> Matrix:
        """`dW`, or a narrower matrix with the same energy along every residual direction, to be read along `rows`."""
        ...

    def project(self, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row _"]:
        """`rows dW`."""
        ...

    def effect(self, received: Float[Tensor, "input"]) -> Float[Tensor, "d_model"]:
        """`dW x`: how the change moves what is written to the stream at an input `x`."""
        ...


@dataclass(frozen=True, eq=False)
class ParameterUpdate:
    """The change of a parameter.

    Args:
        site: where.
        before: the parameter before the step, residual axis first.
        now: a view of it as it stands; writing to it writes to the parameter.
    """

    site: Site
    before: Float[Tensor, "d_model other"]
    now: Float[Tensor, "d_model other"]

    def matrix(self, rows: Float[Tensor, "row d_model"], mixing: Tensor | None = None) -> Matrix:
        """`W_now - W_before`, to be read and steered along `rows`."""
        return Matrix(self.now, rows, mixing, self.before)

    def project(self, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row other"]:
        """`rows dW`."""
        return rows @ self.matrix(rows).value()

    def effect(self, received: Float[Tensor, "input"]) -> Float[Tensor, "d_model"]:
        """`s dW x`, with `s` of an adapter's bias."""
        change = (self.now - self.before).float()
        return self.site.scaling * (change @ received if change.shape[1] > 1 else change[:, 0])


@dataclass(frozen=True, eq=False)
class ProductUpdate:
    """The change of a LoRA pair's product, `s (B' A' - B A)`; transposed for a reader.

    Args:
        site: of the factor with the residual axis.
        before: both factors before the step.
        now: views of both as they stand.
    """

    site: Site
    before: Factors
    now: Factors

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
    """One copy of the sites' parameters, taken before the optimizer steps, in buffers that are kept."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[nn.Module, str], Tensor] = {}

    @torch.no_grad()
    def take(self, sites: Iterable[Site]) -> None:
        """Copy what a step of these sites may change."""
        live = {key: parameter for site in sites for key, parameter in _factors(site)}
        for key, parameter in live.items():
            kept = self._buffers.get(key)
            if kept is None or (kept.shape, kept.dtype, kept.device) != (
                parameter.shape, parameter.dtype, parameter.device,
            ):  # fmt: skip
                self._buffers[key] = torch.empty_like(parameter)
        if live:
            torch._foreach_copy_([self._buffers[key] for key in live], [value.detach() for value in live.values()])

    def update(self, site: Site) -> Update:
        """The change of a site since the copy was taken."""
        pairs = [(self._buffers[key], parameter.detach()) for key, parameter in _factors(site)]
        before, now = (as_columns(each, site.axis) for each in pairs[0])
        if len(pairs) == 1:
            return ParameterUpdate(site, before, now)
        inner_before, inner_now = (each if site.axis == 0 else each.T for each in pairs[1])
        return ProductUpdate(site, Factors(before, inner_before), Factors(now, inner_now))

    def clear(self) -> None:
        """Give the memory back."""
        self._buffers.clear()


def snapshot_bytes(sites: Iterable[Site]) -> int:
    """Bytes of one copy of what a step of these sites may change; a factor that two sites share counts once."""
    return sum({key: parameter.nbytes for site in sites for key, parameter in _factors(site)}.values())


def _factors(site: Site) -> list[tuple[tuple[nn.Module, str], nn.Parameter]]:
    places = [(site.module, site.attribute)]
    if site.partner is not None:
        places.append((site.partner, "weight"))
    return list(zip(places, site.parameters, strict=True))


class Steered(NamedTuple):
    """What an edit of a step's changes did.

    Args:
        cap: the smallest factor of the norm cap; 1 where it did not bind.
        achieved: the gain that each named concept really got; NaN where it was not measured.
        off_concept: for pairs, `||P (dW'' - dW)|| / ||P dW||` with `P` the projection off the concepts, over all
            pairs together; NaN where it was not measured or there are none.
    """

    cap: Float[Tensor, ""]
    achieved: Float[Tensor, "concept"]
    off_concept: Float[Tensor, ""]


@torch.no_grad()
def steer_updates_(
    updates: Sequence[tuple[Update, SteeredFrame]],
    gains: Float[Tensor, "concept"],
    projector: Projector,
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
        matrices, factor = capped(parameters, norm_cap)
        projector.steer_(matrices)
        cap = torch.minimum(cap, factor)
    for group in pairs.values():
        changed += _steer_pairs_(group, measure=measure)
    achieved, off_concept = (torch.full(size, torch.nan, device=gains.device) for size in (gains.shape, ()))
    if measure and updates:
        got = [update.project(steered.directions) for update, steered in updates]
        achieved = achieved_gain(asked, got, [steered.concept for _, steered in updates], len(gains))
    if changed:
        moved, whole = (torch.stack(each).sum() for each in zip(*changed, strict=True))
        off_concept = (moved / whole).sqrt()
    return Steered(cap, achieved, off_concept)


def _steer_pairs_(
    group: Sequence[tuple[ProductUpdate, SteeredFrame, Tensor]], *, measure: bool
) -> list[tuple[Tensor, Tensor]]:
    """Edit pairs of one shape together; off the concepts, the energy of the edit and that of the step."""
    before, now = _stacked([u.before for u, _, _ in group]), _stacked([u.now for u, _, _ in group])
    basis = torch.stack([steered.frame.basis for _, steered, _ in group])
    edited = steer_product(before, now, basis, torch.stack([mixing for _, _, mixing in group]))
    for number, (update, _, _) in enumerate(group):
        update.now.outer.copy_(edited.outer[number])
        update.now.inner.copy_(edited.inner[number])
    if not measure:
        return []
    scaling = torch.tensor([update.site.scaling for update, _, _ in group], device=basis.device)
    return [(_off_energy(now, edited, basis, scaling), _off_energy(before, now, basis, scaling))]


def _stacked(factors: Sequence[Factors]) -> Factors:
    return Factors(torch.stack([f.outer for f in factors]), torch.stack([f.inner for f in factors]))


def _off_energy(
    start: Factors, end: Factors, basis: Float[Tensor, "pair direction d_model"], scaling: Float[Tensor, "pair"]
) -> Float[Tensor, ""]:
    left, right = product_change(start, end)
    columns = thin(left - basis.mT @ (basis @ left), right)
    return (scaling * columns.flatten(1).norm(dim=-1)).square().sum()
