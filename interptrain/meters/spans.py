"""The spans of concepts, and of the null groups that every share is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from interptrain.concepts.bank import ConceptBank, Readout
from interptrain.projection import energies

if TYPE_CHECKING:
    from interptrain.sites import Site

NULL_GROUPS = 64
CHUNK = 4096  # latents that are looked at together
SAME = 0.9999  # cosine from which on a latent is a concept's own
RANK_TOLERANCE = 1e-3  # a singular value below this share of the largest adds no direction of its own


@dataclass(frozen=True, eq=False)
class Spans:
    """Orthonormal bases of each concept's span and of null groups of as many directions.

    Concepts differ in rank, so bases are padded with zero rows; the first `k` rows of a null basis span the
    group's first `k` directions, so one set of groups serves concepts of every rank.

    Args:
        bases: one basis a concept.
        filled: which rows of `bases` are not padding.
        null: one basis a null group.
        from_dictionary: whether null groups are other alive latents of the concept's own dictionary (else
            random directions).
    """

    bases: Float[Tensor, "concept direction d_model"]
    filled: Bool[Tensor, "concept direction"]
    null: Float[Tensor, "group direction d_model"]
    from_dictionary: bool

    @classmethod
    def of(cls, bank: ConceptBank, rows: Sequence[int], *, groups: int = NULL_GROUPS, seed: int = 0) -> Spans:
        """Spans of a bank's concepts as far as these rows go; a concept with none of them has rank 0."""
        chosen = set(rows)
        bases = [span_basis(bank.directions[[r for r in bank.rows(name) if r in chosen]]) for name in bank.names]
        longest = max(len(basis) for basis in bases)
        padded = torch.zeros(len(bases), longest, bank.d_model)
        filled = torch.zeros(len(bases), longest, dtype=torch.bool)
        for number, basis in enumerate(bases):
            padded[number, : len(basis)] = basis
            filled[number, : len(basis)] = True
        null, from_dictionary = null_groups(bank, rows, longest, groups, torch.Generator().manual_seed(seed))
        return cls(padded, filled, _orthonormal(null), from_dictionary)

    @cached_property
    def ranks(self) -> Int[Tensor, "concept"]:
        """Dimension of each concept's span."""
        return self.filled.sum(-1)

    @cached_property
    def rows(self) -> Float[Tensor, "row d_model"]:
        """The bases, one below another."""
        return self.bases.flatten(0, 1)

    @cached_property
    def reached(self) -> Bool[Tensor, "concept"]:
        """Which concepts have a direction here."""
        return self.ranks > 0

    def to(self, device: torch.device) -> Spans:
        """The same spans on a device."""
        return replace(self, bases=self.bases.to(device), filled=self.filled.to(device), null=self.null.to(device))

    def seen_from(self, site: Site, *, null: bool) -> Spans:
        """The spans in a reader's own coordinates, behind its norm; null groups only if asked for."""
        if site.norm is None:
            return self
        rows = torch.zeros_like(self.bases)
        rows[self.filled] = site.directions(self.bases[self.filled])
        bases = torch.where(self.filled[..., None], _orthonormal(rows), 0.0)
        if not null:
            return replace(self, bases=bases)
        turned = site.directions(self.null.flatten(0, 1)).view_as(self.null)
        return replace(self, bases=bases, null=_orthonormal(turned))

    def energy(self, columns: Float[Tensor, "d_model other"]) -> Float[Tensor, "concept"]:
        """`||Q_c G||^2` of every concept."""
        return energies(columns, self.bases).sum(-1)

    def null_energy(self, columns: Float[Tensor, "d_model other"]) -> Float[Tensor, "concept group"]:
        """The same of every null group, at each concept's own rank."""
        return self.at_ranks(energies(columns, self.null))

    def at_ranks(self, energy: Float[Tensor, "group direction"]) -> Float[Tensor, "concept group"]:
        """Energies of the null groups' directions, summed over as many of them as each concept's rank."""
        growing = energy.cumsum(-1)
        at_rank = growing[:, (self.ranks - 1).clamp_min(0)].T
        return torch.where(self.reached[:, None], at_rank, 0.0)


def mean_directions(
    bank: ConceptBank, rows: Sequence[int], signs: Float[Tensor, "group row"] | None = None
) -> Float[Tensor, "group concept d_model"]:
    """Unit mean of each concept's directions among these rows, for each choice of signs; zero for none.

    Args:
        bank: the concepts.
        rows: which rows of it count.
        signs: +1 or -1 a row; without them there is one group, all +1.
    """
    chosen = torch.ones(1, len(rows)) if signs is None else signs
    member = torch.tensor([[bank.concepts[row] == name for row in rows] for name in bank.names]).float()
    summed = torch.einsum("gr,cr,rd->gcd", chosen, member, bank.directions[list(rows)])
    return summed / summed.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def sign_flipped_means(
    bank: ConceptBank, rows: Sequence[int], *, groups: int = NULL_GROUPS, seed: int = 0
) -> Float[Tensor, "one_and_groups concept d_model"]:
    """Each concept's unit mean direction, then the same with random signs of its own directions: a signed null."""
    random = torch.Generator().manual_seed(seed)
    flips = torch.randint(0, 2, (groups, len(rows)), generator=random).float() * 2 - 1
    return mean_directions(bank, rows, torch.cat([torch.ones(1, len(rows)), flips]))


def null_mean_directions(
    bank: ConceptBank, rows: Sequence[int], *, groups: int = NULL_GROUPS, seed: int = 0
) -> Float[Tensor, "concept group d_model"]:
    """Unit mean directions of groups of as many other alive latents as each concept has directions: a signed null.

    Random directions where the dictionary has too few latents; see `null_groups`.
    """
    sizes = [sum(bank.concepts[row] == name for row in rows) for name in bank.names]
    drawn, _ = null_groups(bank, rows, max(sizes), groups, torch.Generator().manual_seed(seed))
    growing = drawn.cumsum(1)
    return torch.stack([normalize(growing[:, max(size, 1) - 1], dim=-1) for size in sizes])


def null_groups(
    bank: ConceptBank, rows: Sequence[int], size: int, groups: int, random: torch.Generator
) -> tuple[Float[Tensor, "group {size} d_model"], bool]:
    """Groups of as many directions: other alive latents of the dictionary, or random ones where it has too few.

    Returns:
        The rows, and whether they are latents; random ones are not of unit length.
    """
    others = other_latents(bank, rows)
    total = sum(len(latents) for _, latents in others)
    if total < 2 * size:
        return torch.randn(groups, size, bank.d_model, generator=random), False
    picks = torch.stack([torch.randperm(total, generator=random)[:size] for _ in range(groups)]).flatten()
    drawn = torch.zeros(len(picks), bank.d_model)
    first = 0
    for readout, latents in others:
        here = (picks >= first) & (picks < first + len(latents))
        drawn[here] = readout.rows(latents[picks[here] - first])
        first += len(latents)
    return drawn.view(groups, size, -1), True


def span_basis(rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "direction d_model"]:
    """Orthonormal rows with the span of some that may be parallel."""
    if len(rows) == 0:
        return rows
    _, values, right = torch.linalg.svd(rows.double(), full_matrices=False)
    return right[values > RANK_TOLERANCE * values[0]].float()


def _orthonormal(
    rows: Float[Tensor, "group direction d_model"],
) -> Float[Tensor, "group direction d_model"]:
    return torch.linalg.qr(rows.mT)[0].mT.contiguous()


def other_latents(bank: ConceptBank, rows: Sequence[int]) -> list[tuple[Readout, Int[Tensor, "latent"]]]:
    """The alive latents at the hooks of these rows that no concept of the bank uses, by read-out.

    A dictionary is looked at in pieces: a copy of a wide one is larger than all else that is held.
    """
    found = []
    for hook in dict.fromkeys(bank.hooks[row] for row in rows):
        if hook in bank.readouts:
            readout, used = bank.readouts[hook], bank.at_hook(hook).directions
            alive = readout.alive.nonzero()[:, 0].cpu()
            other = [(readout.rows(some) @ used.T).amax(-1) < SAME for some in alive.split(CHUNK)]
            found.append((readout, alive[torch.cat(other)] if other else alive))
    return found
