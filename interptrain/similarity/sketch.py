"""The gradient of every linear layer, an example, in a few thousand numbers; it is never formed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from interptrain.similarity.layers import listen, sizes
from interptrain.similarity.moments import Scales
from interptrain.similarity.signs import KEPT, Signs


def project(
    g: Float[Tensor, "batch token out"], x: Float[Tensor, "batch token in"], left: Signs, right: Signs
) -> Float[Tensor, "batch k k"]:
    """`P G_n Q^T = sum_t (P g_nt) (Q x_nt)^T` of each example's gradient `G_n = sum_t g_nt x_nt^T`.

    Example:
        >>> import torch
        >>> g, x, p, q = torch.randn(2, 3, 5), torch.randn(2, 3, 7), Signs(4, 5, "out"), Signs(4, 7, "in")
        >>> whole = torch.einsum("bto,bti->boi", g, x)
        >>> torch.allclose(project(g, x, p, q), p.times(q.times(whole).mT).mT, atol=1e-5)
        True
    """
    return left.times(g).mT @ right.times(x)


class Sketch:
    """Reads each example's gradient of some linear layers, randomly projected to `k^2` numbers in all.

        phi_n = vec sum_l P_l (sum_t g_nlt x_nlt^T) Q_l^T        P_l [k, out], Q_l [k, in]: independent random signs
        E[phi_n . phi_m] = sum_l <G_nl, G_ml>

    The factored projection is LoGra's (Choe et al. 2024, arXiv:2405.13954); TRAK (Park et al. 2023,
    arXiv:2303.14186) projects what it has formed. The layers' projections are added up rather than put side by side,
    so the length does not grow with the model and each layer has the whole `k` on either side. Biases, norms and
    embeddings are left out.

    Args:
        layers: by name, from `linear_layers`.
        k: a side of the sketch.
        seed: of the signs.
        scales: of each layer's rows and columns, from `SecondMoments`; None leaves them as they are.
    """

    def __init__(
        self, layers: Mapping[str, nn.Module], k: int, *, seed: int = 0, scales: Mapping[str, Scales] | None = None
    ) -> None:
        self._layers, self._scales = layers, scales or {}
        widths = {name: width for name, module in layers.items() if (width := sizes(module)) is not None}
        keep = k * sum(map(sum, widths.values())) <= KEPT
        self._signs = {
            name: (
                Signs(k, out, f"{name} out", seed=seed, keep=keep),
                Signs(k, inner, f"{name} in", seed=seed, keep=keep),
            )
            for name, (inner, out) in widths.items()
        }
        self._sum: Tensor | None = None

    def attach(self, model: nn.Module, counted: Tensor) -> Sequence[RemovableHandle]:
        """Listen to the next pass."""
        self._sum = None
        return listen(self._layers, counted, self._add)

    def read(self) -> Float[Tensor, "batch feature"]:
        """The sketch of each example."""
        assert self._sum is not None
        return self._sum.flatten(1).cpu()

    def _add(self, name: str, g: Tensor, x: Tensor) -> None:
        if name in self._scales:
            scales = self._scales[name]
            g, x = g.float() * scales.out.to(g.device), x.float() * scales.inner.to(x.device)
        found = project(g, x, *self._signs[name])
        self._sum = found if self._sum is None else self._sum + found.to(self._sum.device)
