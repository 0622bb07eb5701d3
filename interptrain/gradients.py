"""The gradients of a step, site by site, and their edit before the optimizer's own arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from interptrain.projection import Matrix, Projector, as_columns, capped
from interptrain.sites import Site
from interptrain.views import SteeredFrame


@dataclass(frozen=True, eq=False)
class Gradient:
    """The gradient of one site.

    Args:
        site: where.
        columns: a view of it, residual axis first.
    """

    site: Site
    columns: Float[Tensor, "d_model other"]

    def matrix(self, rows: Float[Tensor, "row d_model"]) -> Matrix:
        """It and the directions to read it along."""
        return Matrix(self.columns, rows)


def gradients_of(sites: Iterable[Site]) -> list[Gradient]:
    """The gradients of those sites that have one.

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
        found.append(Gradient(site, as_columns(gradient, site.axis)))
    return found


def steer_gradients_(
    gradients: Sequence[tuple[Gradient, SteeredFrame]],
    gains: Float[Tensor, "concept"],
    projector: Projector,
    *,
    norm_cap: float | None = None,
) -> Float[Tensor, ""]:
    """`G' = G + D^T (D D^T)^-1 diag(gain - 1) D G` at every site; overwrites the gradients.

    Returns:
        The smallest factor of the norm cap; 1 where it did not bind.
    """
    matrices = [Matrix(each.columns, steered.frame.basis, steered.mixing(gains)) for each, steered in gradients]
    limited, factor = capped(matrices, norm_cap)
    projector.steer_(limited)
    return factor
