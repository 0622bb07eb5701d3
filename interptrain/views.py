"""A bank's directions in each site's own coordinates, recomputed when the norm in front has trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interptrain.concepts.bank import ConceptBank
from interptrain.meters import NULL_GROUPS, Spans, sign_flipped_means
from interptrain.meters.spans import span_basis
from interptrain.projection import Frame
from interptrain.sites import Norm, Site
from interptrain.sites.sharding import is_sharded, local, wholes


@dataclass(frozen=True, eq=False)
class SteeredFrame:
    """The directions a rule names, at one site.

    Args:
        frame: factorised in the site's coordinates.
        concept: for each direction, the number of its concept among those named.
    """

    frame: Frame
    concept: Int[Tensor, "direction"]
    _asked: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def mixing(self, gains: Float[Tensor, "concept"]) -> Float[Tensor, "direction direction"]:
        """The operator's matrix for one gain a named concept; the same tensor while `gains` is."""
        if not self._asked or self._asked[0][0] is not gains:
            self._asked[:] = [(gains, self.frame.mixing(gains[self.concept]))]
        return self._asked[0][1]

    @property
    def directions(self) -> Float[Tensor, "direction d_model"]:
        """`D = L Q`, the unit directions themselves."""
        return self.frame.factor @ self.frame.basis


class Views:
    """Caches what depends only on a site's rows of the bank and on the norm in front of it.

    All writers that reach the same rows share one view. A reader's view is thrown away when its norm's weight
    may have changed: by its version counter, and for a weight that trains after every optimizer step, since fused
    optimizers do not move the counter. Neither needs a synchronisation, but for what is tied. The weights of all norms
    that are sharded and may have changed are gathered together.
    """

    def __init__(self, bank: ConceptBank, *, ridge: float = 0.0, seed: int = 0) -> None:
        self._bank, self._ridge, self._seed = bank, ridge, seed
        self._rows: dict[Site, tuple[int, ...]] = {}
        self._base: dict[tuple[tuple[int, ...], torch.device], Spans] = {}
        self._spans: dict[tuple[object, ...], tuple[tuple[int, int], Spans]] = {}
        self._means: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}
        self._frames: dict[tuple[object, ...], tuple[tuple[int, int], SteeredFrame | None]] = {}
        self._gathered: dict[nn.Module, tuple[tuple[int, int], Norm, Norm]] = {}
        self._steps = 0

    def stepped(self) -> None:
        """An optimizer has stepped: look at the norms that train anew."""
        self._steps += 1

    def rows(self, site: Site) -> tuple[int, ...]:
        """Bank rows that a site touches."""
        if site not in self._rows:
            self._rows[site] = site.rows(self._bank)
        return self._rows[site]

    def spans(self, site: Site, device: torch.device, *, null: bool) -> Spans:
        """Concept spans at a site, and null groups too if asked for, which are too large to keep for every norm."""
        rows = self.rows(site)
        if (rows, device) not in self._base:
            self._base[rows, device] = Spans.of(self._bank, rows, groups=NULL_GROUPS, seed=self._seed).to(device)
        base = self._base[rows, device]
        if site.norm is None or null:
            return base.seen_from(self.settled(site), null=null)
        key, version = (rows, device, site.role, site.norm.module), self._version(site.norm)
        if key not in self._spans or self._spans[key][0] != version:
            self._spans[key] = (version, base.seen_from(self.settled(site), null=False))
        return self._spans[key][1]

    def frame(self, site: Site, names: Sequence[str], device: torch.device) -> SteeredFrame | None:
        """The named concepts' directions at a site; None where it touches none of them.

        Raises:
            ValueError: they are nearly parallel and no ridge was asked for.
        """
        rows = self.rows(site)
        key = (rows, tuple(names), device, site.role, None if site.norm is None else site.norm.module)
        version = self._version(site.norm)
        if key not in self._frames or self._frames[key][0] != version:
            self._frames[key] = (version, self._factorise(site, rows, names, device, ask=key not in self._frames))
        return self._frames[key][1]

    def means(self, rows: tuple[int, ...], device: torch.device) -> Float[Tensor, "one_and_flips concept d_model"]:
        """Each concept's unit mean direction over some rows, then the same with random signs for its null."""
        if (rows, device) not in self._means:
            self._means[rows, device] = sign_flipped_means(self._bank, rows, seed=self._seed).to(device)
        return self._means[rows, device]

    def held_bytes(self, sites: Iterable[Site]) -> int:
        """Bytes of directions and null groups that measuring these sites keeps on their devices."""
        held: dict[int, int] = {}
        for side in (side for site in sites for side in site.sides):
            spans = self.spans(side, side.parameter.device, null=False)
            held |= {id(part): part.nbytes for part in (spans.bases, spans.null)}
        return sum(held.values())

    def _factorise(
        self, site: Site, rows: Sequence[int], names: Sequence[str], device: torch.device, *, ask: bool
    ) -> SteeredFrame | None:
        named = [(row, names.index(self._bank.concepts[row])) for row in rows if self._bank.concepts[row] in names]
        if not named:
            return None
        directions = self._bank.directions[[row for row, _ in named]].to(device)
        try:
            seen, concept = self.settled(site).directions(directions), [number for _, number in named]
            if site.role == "tied":
                seen, concept = _by_concept(seen, concept * 2)
            frame = Frame.of(seen, ridge=self._ridge, ask=ask)
        except ValueError as error:
            raise ValueError(f"concepts {', '.join(names)} at '{site.name}': {error}") from None
        return SteeredFrame(frame, torch.tensor(concept, device=device))

    def settled(self, site: Site) -> Site:
        """The site, with the present whole weight in its norm where that is sharded."""
        norm = site.norm
        if norm is None or norm.weight is None or not is_sharded(norm.weight):
            return site
        kept = self._gathered.get(norm.module)
        if kept is None or kept[0] != self._version(norm):
            self._gather(norm)
        return replace(site, norm=self._gathered[norm.module][2])

    def _gather(self, asked: Norm) -> None:
        """Gather the weight of a norm, and of all those known that may have changed, by one collective."""
        known = [norm for version, norm, _ in self._gathered.values() if version != self._version(norm)]
        stale = {norm.module: (norm, norm.weight) for norm in (*known, asked)}
        weights = wholes([(local(weight), weight) for _, weight in stale.values() if weight is not None])
        for (norm, _), weight in zip(stale.values(), weights, strict=True):
            still = replace(norm, module=nn.Module())
            still.module.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
            self._gathered[norm.module] = (self._version(norm), norm, still)

    def _version(self, norm: Norm | None) -> tuple[int, int]:
        """Changes when a norm's weight may have."""
        weight = None if norm is None else norm.weight
        if weight is None:
            return (0, 0)
        return (weight._version, self._steps if weight.requires_grad else 0)


def _by_concept(
    rows: Float[Tensor, "row d_model"], concept: Sequence[int]
) -> tuple[Float[Tensor, "direction d_model"], list[int]]:
    """Orthonormal rows with the same span, concept by concept, where some may be parallel or nearly so.

    One gain a concept means the same of any rows with its span: `Q dW' = gain Q dW` where `D dW' = gain D dW`.
    """
    numbers = sorted(set(concept))
    bases = [span_basis(rows[[row for row, of in enumerate(concept) if of == number]]) for number in numbers]
    return torch.cat(bases), [number for number, basis in zip(numbers, bases, strict=True) for _ in basis]
