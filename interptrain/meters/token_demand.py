"""Demand token by token and example by example: who teaches what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interptrain.meters.spans import Spans


@dataclass(frozen=True, eq=False)
class TokenDemand:
    r"""What each token of one forward pass asked for at one hook point.

        energy_ct = ||Q_c g_t||^2        signed_ct = -m_c . g_t        total_t = ||g_t||^2

    `g_t` carries the losses of later tokens too, through the attention above the hook.

    Args:
        energy: in each concept's span.
        signed: along each concept's mean direction, positive where the token asks for more.
        total: of the whole activation gradient; 0 where the token does not count.
        counted: tokens that are in the loss and no attention sinks.
        input_ids: what the model was given, where that is known.
        attended: which of it is no padding, where that is known.
    """

    energy: Float[Tensor, "batch token concept"]
    signed: Float[Tensor, "batch token concept"]
    total: Float[Tensor, "batch token"]
    counted: Bool[Tensor, "batch token"]
    input_ids: Int[Tensor, "batch token"] | None = None
    attended: Bool[Tensor, "batch token"] | None = None

    @classmethod
    def of(
        cls,
        spans: Spans,
        means: Float[Tensor, "concept d_model"],
        gradient: Float[Tensor, "batch token d_model"],
        counted: Bool[Tensor, "batch token"],
    ) -> TokenDemand:
        """Read a gradient; tokens that do not count are zero."""
        kept = gradient.float() * counted[..., None]
        coefficients = torch.einsum("btd,ckd->btck", kept, spans.bases)
        return cls(coefficients.square().sum(-1), -(kept @ means.T), kept.square().sum(-1), counted)

    def share(self) -> Float[Tensor, "batch token concept"]:
        """Energy share of each token's gradient in each concept; NaN where there is no gradient."""
        return self.energy / self.total[..., None]

    def per_example(self) -> dict[str, Float[Tensor, "batch concept"]]:
        """`share` and `signed` of whole examples: energies and signed figures summed over their tokens."""
        return {
            "share": self.energy.sum(1) / self.total.sum(1)[:, None],
            "signed": self.signed.sum(1),
        }

    def scaled(self, loss_scale: Float[Tensor, ""] | float) -> TokenDemand:
        """With a loss scaling undone; shares do not change."""
        return replace(
            self,
            energy=self.energy / loss_scale**2,
            signed=self.signed / loss_scale,
            total=self.total / loss_scale**2,
        )


def of_predicted(values: Float[Tensor, "batch token concept"]) -> Float[Tensor, "batch token concept"]:
    """Figures of positions as those of the tokens that they predict; the first token is predicted by none.

    Example:
        >>> of_predicted(torch.tensor([[[0.5], [0.2]]])).flatten()
        tensor([   nan, 0.5000])
    """
    return torch.cat([torch.full_like(values[:, :1], torch.nan), values[:, :-1]], dim=1)


TokenDemands = Mapping[str, list[TokenDemand]]  # by hook point, one entry a forward pass of the step
