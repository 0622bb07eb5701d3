"""Realised: how far a fixed set of texts has moved along each concept since before training."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from interptrain.concepts.bank import ConceptBank
from interptrain.meters.spans import NULL_GROUPS, mean_directions, null_groups


@dataclass(frozen=True, eq=False)
class Shift:
    """How far something moved along each concept, with its null.

    Args:
        value: in activation units, positive toward the concept.
        null: the same along the mean directions of other groups of latents, each with a random sign.
    """

    value: Float[Tensor, "concept"]
    null: Float[Tensor, "concept group"]

    def metrics(self) -> dict[str, Float[Tensor, "concept"]]:
        """The figures to log: value and `z = value / std(null)`."""
        return {"": self.value, "/z": self.value / self.null.std(-1)}


@dataclass(frozen=True, eq=False)
class MeanDirections:
    """Each concept's unit mean direction at each hook, and those of its null groups.

    A null group is as many other alive latents of the hook's dictionary as the concept has rows there, or as many
    random directions where there is none; its mean is made unit and given a random sign.

    Args:
        own: zero where a concept has no rows at a hook.
        null: the same.
    """

    own: Float[Tensor, "concept hook d_model"]
    null: Float[Tensor, "concept group hook d_model"]

    @classmethod
    def of(cls, bank: ConceptBank, *, groups: int = NULL_GROUPS, seed: int = 0) -> MeanDirections:
        """The directions of a bank, hooks in its own order."""
        at = [[row for row, hook in enumerate(bank.hooks) if hook == point] for point in bank.hook_points]
        random = torch.Generator().manual_seed(seed)
        own = torch.stack([mean_directions(bank, rows)[0] for rows in at], dim=1)
        null = torch.stack([_null_means(bank, rows, groups, random) for rows in at], dim=2)
        return cls(own, null)

    def to(self, device: torch.device) -> MeanDirections:
        """The same on a device."""
        return replace(self, own=self.own.to(device), null=self.null.to(device))

    @property
    def nbytes(self) -> int:
        """Bytes they take."""
        return self.own.nbytes + self.null.nbytes


def realised_reading(directions: MeanDirections, shift: Float[Tensor, "hook d_model"]) -> Shift:
    """How far a set's mean activation moved along each concept, summed over the concept's hooks.

        realised_c = sum_hooks m_c . v        v = mean_now - mean_start

    A set of texts that moved as a whole moves along every direction a little: the null says how much.

    Args:
        directions: the concepts' mean directions.
        shift: of the set's mean residual activation.

    Example:
        >>> bank = ConceptBank.from_directions({"pirate": torch.eye(4)[0]}, hook="blocks.1.hook_resid_post")
        >>> realised_reading(MeanDirections.of(bank), torch.tensor([[2.0, 0.0, 0.0, 5.0]])).value
        tensor([2.])
    """
    value = torch.einsum("chd,hd->c", directions.own, shift)
    return Shift(value, torch.einsum("cghd,hd->cg", directions.null, shift))


def realised_fraction(
    directions: MeanDirections,
    shift: Float[Tensor, "hook d_model"],
    contrast: Float[Tensor, "concept hook d_model"],
) -> Float[Tensor, "concept"]:
    """The same, as a share of the way to what texts that show the concept looked like before training.

        fraction_c = sum_hooks m_c . v / sum_hooks m_c . (mean_c - mean_neutral)

    1 where the set has moved as far along the concept as the concept's own texts stood from the neutral ones.
    A figure to be read only where the concept's direction separates its texts, that is where the divisor is large.

    Args:
        directions: the concepts' mean directions.
        shift: of the set's mean residual activation.
        contrast: of each concept's own set against the neutral one, before training; NaN where there is no such set.
    """
    reach = torch.einsum("chd,chd->c", directions.own, contrast)
    return torch.einsum("chd,hd->c", directions.own, shift) / reach


def _null_means(
    bank: ConceptBank, rows: list[int], groups: int, random: torch.Generator
) -> Float[Tensor, "concept group d_model"]:
    """Unit means, with random signs, of the first `k` directions of each group, `k` each concept's rows; 0 for none."""
    counts = torch.tensor([sum(bank.concepts[row] == name for row in rows) for name in bank.names])
    longest = int(counts.max())
    drawn, from_dictionary = null_groups(bank, rows, longest, groups, random)
    if not from_dictionary:
        drawn = drawn / drawn.norm(dim=-1, keepdim=True)
    signs = torch.randint(0, 2, (groups, 1, 1), generator=random).float() * 2 - 1
    sums = (signs * drawn).cumsum(1)
    means = (sums / sums.norm(dim=-1, keepdim=True))[:, (counts - 1).clamp_min(0)].transpose(0, 1)
    return torch.where(counts[:, None, None] > 0, means, 0.0)
