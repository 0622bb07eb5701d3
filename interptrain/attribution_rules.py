"""What follows for a data set from how much each example asks of a concept: which to drop, or what each weighs."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def drop_top(signed: Float[Tensor, "example"], share: float) -> Bool[Tensor, "example"]:
    """Which examples are the given share of all that ask most for a concept; ties in the order of the data.

    Args:
        signed: of each example; NaN where it has no figures, which is never dropped.
        share: of all examples, from 0 to 1; rounded to whole examples.

    Raises:
        ValueError: the share is outside of 0 to 1.

    Example:
        >>> drop_top(torch.tensor([0.1, 0.9, torch.nan, 0.5]), 0.25)
        tensor([False,  True, False, False])
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share to drop is from 0 to 1, found {share}")
    order = signed.nan_to_num(nan=-torch.inf).argsort(descending=True, stable=True)
    dropped = torch.zeros(len(signed), dtype=torch.bool)
    dropped[order[: round(share * len(signed))]] = True
    return dropped & ~signed.isnan()


def drop_above(z: Float[Tensor, "example"], threshold: float) -> Bool[Tensor, "example"]:
    """Which examples ask for a concept by more than so many standard deviations of the null: `z > threshold`.

    Unlike `drop_top` it need not know how many there are. Of examples that ask for nothing of it, some lie above any
    threshold: of a normal null 2.3 % above 2, .1 % above 3.

    Args:
        z: of each example; NaN where it has no figures, which is never dropped.
        threshold: in standard deviations.

    Example:
        >>> drop_above(torch.tensor([1.9, 2.1, torch.nan]), 2.0)
        tensor([False,  True, False])
    """
    return z > threshold


def weights(z: Float[Tensor, "example"]) -> Float[Tensor, "example"]:
    """What each example may weigh so that it asks for a concept no more than other latents get by chance.

        w = min(1, 1 / z) where z > 0, else 1,     so that w z <= 1

    Weights delay what is taught, they need not keep it out: docs/attribution.md.

    Args:
        z: of each example; 1 where it has no figures.

    Example:
        >>> weights(torch.tensor([-3.0, 0.5, 4.0, torch.nan]))
        tensor([1.0000, 1.0000, 0.2500, 1.0000])
    """
    return 1 / z.nan_to_num(nan=1.0).clamp_min(1.0)
