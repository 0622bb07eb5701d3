"""Adam's normaliser in the factored form that a factored projection can take: rows and columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from interptrain.similarity.layers import listen, sizes

FLOOR = 1e-6  # of the mean row and column: what hardly ever has a gradient is not blown up


@dataclass(frozen=True, eq=False)
class Scales:
    """What multiplies a gradient's rows and columns: `G_ij out_i inner_j`."""

    out: Float[Tensor, "out"]
    inner: Float[Tensor, "in"]

    @classmethod
    def of(cls, rows: Float[Tensor, "out"], columns: Float[Tensor, "in"]) -> Scales:
        r"""`1 / sqrt(v)` for Adafactor's rank-one estimate of the second moment `v`.

            v_ij ~ r_i c_j / sum_i r_i,        r_i = sum_j v_ij,   c_j = sum_i v_ij

        Adam divides each element by `sqrt(v_ij)`, which no longer can be done once a gradient is projected; rows and
        columns can be scaled before. Exact where `v` has rank one (Shazeer and Stern 2018, arXiv:1804.04235).

        Example:
            >>> v = torch.tensor([1.0, 4.0])[:, None] * torch.tensor([9.0, 16.0, 25.0])
            >>> scales = Scales.of(v.sum(1), v.sum(0))
            >>> torch.allclose(scales.out[:, None] * scales.inner, 1 / v.sqrt(), rtol=1e-4)
            True
        """
        total = rows.sum()
        rows, columns = (each + FLOOR * each.mean() for each in (rows, columns))
        if not total > 0:
            return cls(torch.ones_like(rows), torch.ones_like(columns))
        return cls(rows.rsqrt(), (total / columns).sqrt())


class SecondMoments:
    """Reads `r` and `c` of every layer: row and column sums of the examples' squared gradients.

        r_i = sum_n sum_j (sum_t g_nti x_ntj)^2 = sum_n sum_t g_nti (X_n X_n^T g_n)_ti

    and `c` with `g` and `x` exchanged: exact, with a matrix of tokens by tokens an example in place of its gradient.
    An optimizer's own `v` is of batches' gradients and weighs late ones more; this is of single examples', all alike.

    Args:
        layers: by name.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = layers
        self._sums = {
            name: (torch.zeros(width[1]), torch.zeros(width[0]))
            for name, module in layers.items()
            if (width := sizes(module)) is not None
        }

    def attach(self, model: nn.Module, counted: Tensor) -> Sequence[RemovableHandle]:
        """Listen to the next pass."""
        return listen(self._layers, counted, self._add)

    def read(self) -> dict[str, Scales]:
        """The scales after all passes so far."""
        return {name: Scales.of(*sums) for name, sums in self._sums.items()}

    def _add(self, name: str, g: Tensor, x: Tensor) -> None:
        g, x = g.float(), x.float()
        rows, columns = self._sums[name]
        rows += (g * (x @ x.mT @ g)).sum((0, 1)).clamp_min(0).cpu()
        columns += (x * (g @ g.mT @ x)).sum((0, 1)).clamp_min(0).cpu()
