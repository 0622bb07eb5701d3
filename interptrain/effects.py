"""How the writers' gradients and changes move the stream, of which a process may have a part only."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interptrain.gradients import Gradient
from interptrain.projection import Part
from interptrain.sites.sharding import local, part_of

Rows = tuple[int, ...]  # of the bank, that a site reaches


class Moved:
    """`sum_sites dW x_mean`, by the rows of the bank that the sites reach.

    Complete once `partial` has been summed over the processes.

    Example:
        >>> moved = Moved()
        >>> moved.add((0,), torch.tensor([1.0, 2.0]), Part())
        >>> moved.add((0,), torch.tensor([1.0, 0.0]), Part("rows", 0, 1))
        >>> moved.partial, moved.whole()
        ([tensor([1., 0.])], {(0,): tensor([2., 2.])})
    """

    def __init__(self) -> None:
        self._whole: dict[Rows, Tensor] = {}
        self._split: dict[Rows, Tensor] = {}

    def add(self, rows: Rows, effect: Float[Tensor, "d_model"], part: Part) -> None:
        """Take the effect of a site's change, or what a part of the change adds to it."""
        moved = self._split if part.split else self._whole
        moved[rows] = moved[rows] + effect if rows in moved else effect

    @property
    def partial(self) -> list[Tensor]:
        """What has to be summed over the processes."""
        return list(self._split.values())

    def whole(self) -> dict[Rows, Float[Tensor, "d_model"]]:
        """The effects of all sites."""
        both = {rows: self._whole[rows] + self._split[rows] for rows in self._whole if rows in self._split}
        return self._whole | self._split | both


class SplitEffect:
    """`m^T G x` for a gradient of which every process has a part, `m^T dB (A x)` for that of a LoRA writer.

    Complete once `partial` has been summed over the processes.

    Args:
        gradient: of a writer.
        means: each concept's mean direction `m`.
        received: the mean input `x`.
    """

    def __init__(
        self, gradient: Gradient, means: Float[Tensor, "concept d_model"], received: Float[Tensor, "input"]
    ) -> None:
        site, part = gradient.site, gradient.part
        along = part.along_rows(means) @ gradient.columns.float()
        if site.partner is None:
            self._factors = [along @ part.along_columns(received)]
            self.partial = self._factors
            return
        inner = site.parameters[1]
        held = part_of(inner, 0)
        into = held.among_rows(local(inner).float() @ held.along_columns(received), inner.shape[0])
        self._factors = [part.among_columns(along, inner.shape[0]), into]
        self.partial = [factor for factor, of in zip(self._factors, (part, held), strict=True) if of.split]

    def value(self) -> Float[Tensor, "concept"]:
        """The effect along each concept; zero where it is not finite."""
        along = self._factors[0] if len(self._factors) == 1 else self._factors[0] @ self._factors[1]
        return torch.where(torch.isfinite(along).all(), along, 0.0)
