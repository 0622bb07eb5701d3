"""A norm between the stream and a reader, or behind a writer: what it makes of a direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from interptrain.sites.layer import saved_copy
from interptrain.sites.sharding import whole


@dataclass(frozen=True, eq=False)
class Norm:
    """`norm(h) = gain * (h - mean(h)) / spread(h)`, the mean only where centred.

    To first order in `d`, and while `h` is not itself along `d`,

        norm(h + d) - norm(h)  ~  gain * (d - mean(d))

    Args:
        module: the norm; its weight may train.
        centred: whether the mean is taken out (LayerNorm) or not (RMSNorm).
        offset: `gain = offset + weight`; 1 in Gemma, 0 elsewhere.
    """

    module: nn.Module
    centred: bool
    offset: float = 0.0

    @classmethod
    def of(cls, name: str, module: nn.Module, *, width: int) -> Self:
        """Recognise a norm by what it does to a test vector `x`: `(norm(x) - norm(-x)) / 2` has no bias.

        Raises:
            ValueError: it is none of the norms that the formula covers.
        """
        module = saved_copy(name, module)
        weight = _weight(module)
        x = torch.randn(width, generator=torch.Generator().manual_seed(0)) + 1.0
        if weight is not None:
            x = x.to(weight.device, weight.dtype)
        with torch.no_grad():
            own = {f"norm.{key}": whole(parameter) for key, parameter in module.named_parameters()}
            up, down = (functional_call(WithoutHooks(module), own, (each[None],)) for each in (x, -x))
            found = (up - down)[0].float() / 2
        tolerance = max(1e-3, 4 * torch.finfo(x.dtype).eps)  # eps inside the root, and the weight's precision
        for centred in (False, True):
            for offset in (0.0, 1.0):
                norm = cls(module, centred, offset)
                expected = norm.in_front(x.float()[None])[0]
                if (found - expected / norm.spread(x.float())).norm() <= tolerance * found.norm():
                    return norm
        raise ValueError(
            f"'{name}' ({type(module).__name__}) is neither an RMSNorm nor a LayerNorm over {width} features with a "
            "gain of `weight` or `1 + weight`: what its readers see is not understood"
        )

    @property
    def weight(self) -> Tensor | None:
        """The parameter that the gain comes from, as it stands now; None where the norm has none."""
        return _weight(self.module)

    def in_front(self, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """`gain * (d - mean(d))`, the mean only where centred; not normalised."""
        if self.centred:
            rows = rows - rows.mean(-1, keepdim=True)
        weight = self.weight
        return rows if weight is None else rows * (self.offset + whole(weight).to(rows))

    def spread(self, values: Float[Tensor, "*token d_model"]) -> Float[Tensor, "*token"]:
        """`spread(h)`: the root mean square of `h`, less its mean where centred."""
        if self.centred:
            values = values - values.mean(-1, keepdim=True)
        return values.square().mean(-1).sqrt()

    def behind(self, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """The directions in front of the norm that move what is behind it along `d`: `gain * d`, less its mean.

        The norm's Jacobian transposed, `gain * d - (gain * d . y) y / n` with `y = (h - mean(h)) / spread(h)`, without
        the second term, which depends on the data; up to `1 / spread(h)`, and less the mean only where centred.
        """
        weight = self.weight
        rows = rows if weight is None else rows * (self.offset + whole(weight).to(rows))
        return rows - rows.mean(-1, keepdim=True) if self.centred else rows


class WithoutHooks(nn.Module):
    """Calls a norm past its hooks, which wait for the rest of a forward pass."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Float[Tensor, "*token d_model"]) -> Float[Tensor, "*token d_model"]:
        """`norm(x)`."""
        return self.norm.forward(x)


def _weight(module: nn.Module) -> Tensor | None:
    return dict(module.named_parameters(recurse=False)).get("weight")
