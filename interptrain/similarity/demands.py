"""What each example asks of concepts: the energy of its activation gradients along every direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from interptrain.similarity.signs import Folding
from interptrain.sites.hooks import HookPoint

Measure = Literal["energy", "positive", "signed"]
CHUNK = 4096  # directions taken at a time


def along(
    g: Float[Tensor, "batch token d_model"], directions: Float[Tensor, "direction d_model"], measure: Measure
) -> Float[Tensor, "batch direction"]:
    """One figure a direction of an example's activation gradients, from the demands `a_tk = -d_k . g_t`.

        energy    sum_t a_tk^2         how much of it there is, more or less of the concept alike
        positive  sum_t max(0, a_tk)   how much more of the concept is asked for
        signed    sum_t a_tk           the sum, in which tokens that ask for more and for less cancel

    Example:
        >>> g = torch.tensor([[[1.0, 0.0], [-2.0, 0.0]]])
        >>> [along(g, torch.eye(2), measure)[0, 0].item() for measure in ("energy", "positive", "signed")]
        [5.0, 2.0, 1.0]
    """
    demands = -(g @ directions.T)
    match measure:
        case "energy":
            return demands.square().sum(1)
        case "positive":
            return demands.relu().sum(1)
        case "signed":
            return demands.sum(1)


class ConceptDemands:
    """Reads what each example asks of the directions of a bank, or of a whole dictionary.

        phi_nk = sum_t (d_k . g_nt)^2        g_nt = dL_n/dh_nt, over the tokens that predict a label in the loss

    Hooks stand side by side. More than `most` directions are folded into so many places with random signs, which keeps
    inner products on average.

    Args:
        directions: unit rows, by hook point.
        measure: see `along`.
        most: length of what is read.
        seed: of the signs.
    """

    def __init__(
        self, directions: Mapping[str, Tensor], *, measure: Measure = "energy", most: int = 4096, seed: int = 0
    ) -> None:
        self._directions = {name: rows.float() for name, rows in directions.items()}
        self._measure: Measure = measure
        width = sum(map(len, self._directions.values()))
        self._folding = Folding(most, width, "concepts", seed=seed) if width > most else None
        self._found: dict[str, Tensor] = {}

    def attach(self, model: nn.Module, counted: Bool[Tensor, "batch token"]) -> Sequence[RemovableHandle]:
        """Listen to the next pass."""
        self._found = {}
        return [
            HookPoint.parse(name).listen(model, partial(self._receive, name, counted.detach()))
            for name in self._directions
        ]

    def read(self) -> Float[Tensor, "batch feature"]:
        """The figures of each example."""
        found = torch.cat([self._found[name] for name in self._directions], dim=-1)
        return found if self._folding is None else self._folding.times(found)

    def _receive(self, name: str, counted: Tensor, h: Tensor) -> None:
        h.register_hook(partial(self._take, name, counted))

    def _take(self, name: str, counted: Tensor, g: Tensor) -> None:
        g = g.detach().float() * counted[..., None].to(g.device)
        self._directions[name] = self._directions[name].to(g.device)  # there from the first pass on
        chunks = self._directions[name].split(CHUNK)
        self._found[name] = torch.cat([along(g, rows, self._measure) for rows in chunks], dim=-1).cpu()
