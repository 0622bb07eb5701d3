"""Unexplained: how much of what moved lies outside all of a bank's concepts; rerouting shows here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from interptrain.concepts.bank import ConceptBank
from interptrain.meters.spans import NULL_GROUPS, Spans


@dataclass(frozen=True, eq=False)
class Unexplained:
    """The share of a set's shift that no concept explains, with its null.

    Args:
        value: 0 to 1; NaN where nothing moved.
        null: what as many other latents leave unexplained.
        strength: length of the unexplained part over the length of each concept's contrast before training;
            NaN for a concept without a set of its own.
    """

    value: Float[Tensor, ""]
    null: Float[Tensor, "group"]
    strength: Float[Tensor, "concept"]

    def metrics(self) -> dict[str, Float[Tensor, ""]]:
        """The figures to log: value, null mean and `z = (value - mean(null)) / std(null)`.

        A negative z: the concepts explain more than other latents do.
        """
        mean, spread = self.null.mean(-1), self.null.std(-1)
        return {"": self.value, "/null": mean, "/z": (self.value - mean) / spread}


def bank_spans(bank: ConceptBank, *, groups: int = NULL_GROUPS, seed: int = 0) -> tuple[Spans, ...]:
    """At each hook, the span of all the bank's directions taken together, and null groups of the same rank."""
    whole = replace(bank, concepts=("bank",) * len(bank.concepts))
    at = [[row for row, hook in enumerate(bank.hooks) if hook == point] for point in bank.hook_points]
    return tuple(Spans.of(whole, rows, groups=groups, seed=seed) for rows in at)


def unexplained_reading(
    spans: Sequence[Spans],
    shift: Float[Tensor, "hook d_model"],
    contrast: Float[Tensor, "concept hook d_model"],
) -> Unexplained:
    """How much of a set's shift lies outside the span of all the bank's directions, its hooks taken together.

        unexplained = sum_hooks ||v - Q^T Q v||^2 / sum_hooks ||v||^2

    The share alone says nothing of how much moved: a reading of rerouting asks `strength` too.

    Args:
        spans: at each hook, from `bank_spans`.
        shift: of the set's mean residual activation since before training.
        contrast: of each concept's own set against the neutral one, before training.

    Example:
        >>> bank = ConceptBank.from_directions({"pirate": torch.eye(4)[0]}, hook="blocks.1.hook_resid_post")
        >>> shift, contrast = torch.tensor([[1.0, 0.0, 1.0, 0.0]]), torch.tensor([[[4.0, 0.0, 0.0, 0.0]]])
        >>> found = unexplained_reading(bank_spans(bank), shift, contrast)
        >>> found.value, found.strength
        (tensor(0.5000), tensor([0.2500]))
    """
    outside = torch.stack([v - (span.bases[0] @ v) @ span.bases[0] for span, v in zip(spans, shift, strict=True)])
    whole = shift.square().sum()
    by_others = torch.stack([span.null_energy(v[:, None])[0] for span, v in zip(spans, shift, strict=True)]).sum(0)
    lengths = contrast.square().sum((1, 2)).sqrt()
    return Unexplained(
        value=outside.square().sum() / whole,
        null=1 - by_others / whole,
        strength=outside.norm() / lengths,
    )
