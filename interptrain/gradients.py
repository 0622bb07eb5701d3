"""The gradients of a step, site by site, and their edit before the optimizer's own arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from interptrain.projection import WHOLE, Matrix, Part, ShardedProjector
from interptrain.sites import Site
from interptrain.sites.sharding import local, matrices
from interptrain.views import SteeredFrame


@dataclass(frozen=True, eq=False)
class Gradient:
    """The gradient of one site, or of one expert there.

    Args:
        site: where.
        columns: a view of it, residual axis first, as far as this process has it.
        part: what that is of the whole.
    """

    site: Site
    columns: Float[Tensor, "d_model other"]
    part: Part = WHOLE

    def matrix(self, rows: Float[Tensor, "row d_model"], mixing: Tensor | None = None) -> Matrix:
        """It and the directions to read and steer it along."""
        return Matrix(self.columns, self.part.along_rows(rows), mixing, part=self.part)


def gradients_of(sites: Iterable[Site]) -> list[Gradient]:
    """The gradients of those sites that have one; of a weight of experts, as `sharding.matrices` divides it.

    Raises:
        ValueError: one is sparse.
    """
    found = []
    for site in sites:
        gradient = site.parameter.grad
        if gradient is None:
            continue
        if gradient.is_sparse:
            raise ValueError(f"'{site.name}' has a sparse gradient; build its embedding with sparse=False")
        found += [Gradient(site, *matrix) for matrix in matrices(local(gradient), gradient, site.axis)]
    return found


def steer_gradients_(
    gradients: Sequence[tuple[Gradient, SteeredFrame]],
    gains: Float[Tensor, "concept"],
    projector: ShardedProjector,
    *,
    norm_cap: float | None = None,
) -> Float[Tensor, ""]:
    """`G' = G + D^T (D D^T)^-1 diag(gain - 1) D G` at every site; overwrites the gradients.

    Returns:
        The smallest factor of the norm cap; 1 where it did not bind.
    """
    matrices = [each.matrix(steered.frame.basis, steered.mixing(gains)) for each, steered in gradients]
    return projector.steer_(matrices, norm_cap)
