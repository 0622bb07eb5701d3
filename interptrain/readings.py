"""What one step is measured by: the meters at the hooks and at the sites, and what they keep between steps."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interptrain.concepts.bank import ConceptBank
from interptrain.discovery import DiscoveryTable
from interptrain.gradients import Gradient
from interptrain.meters import DemandMeter, MeanInputs, Positions, Spans, gradient_reading, write_reading
from interptrain.meters.dictionary import DictionaryMeter
from interptrain.meters.probe_meter import ProbeMeter
from interptrain.meters.probes import ProbeSets
from interptrain.meters.token_demand import TokenDemands
from interptrain.projection import Backend, Matrix, Sums
from interptrain.report import Measured, Reading
from interptrain.sites import HookPoint, Site
from interptrain.updates import Update
from interptrain.views import Views

METERS = ("demand", "gradient", "write")
KNOWN_METERS = (*METERS, "reinforced")


class Readings:
    """The meters of a steerer: gradients before the optimizer's step, changes after it, and running sums.

    Args:
        bank: the concepts.
        views: their directions at the sites.
        meters: which of `KNOWN_METERS` to measure.
        probes: fixed texts to read the model with, before training and from time to time.
        keep_tokens: keep what every token of the last measured step asked for.
        latent_labels: what the dictionary's latents are about.
        backend: what reads the matrices.
        seed: of the null groups.
    """

    def __init__(
        self,
        bank: ConceptBank,
        views: Views,
        *,
        meters: Collection[str],
        probes: ProbeSets | None,
        keep_tokens: bool,
        latent_labels: Mapping[int, str],
        backend: Backend,
        seed: int,
    ) -> None:
        self.meters = frozenset(meters)
        self.cumulative: dict[str, Tensor] = {}
        self.null_means: dict[str, Tensor] = {}
        self.probes = None if probes is None else ProbeMeter(bank, probes, seed=seed)
        self._bank, self._views, self._labels, self._backend = bank, views, latent_labels, backend
        self._dictionary = DictionaryMeter(bank, seed=seed) if bank.readouts else None
        self._demand = DemandMeter(
            bank, {hook: HookPoint.parse(hook) for hook in bank.hook_points}, seed=seed, keep_tokens=keep_tokens,
            reinforced="reinforced" in self.meters, dictionary=self._dictionary, backend=backend,
        )  # fmt: skip
        self._inputs = MeanInputs(self._demand.positions)

    @property
    def positions(self) -> Positions:
        """Which tokens count."""
        return self._demand.positions

    @property
    def tokens(self) -> TokenDemands:
        """What every token of the last measured step asked for, by hook point, where it was to be kept."""
        return self._demand.tokens

    def attach(self, model: nn.Module, sites: Iterable[Site]) -> None:
        """Register the forward hooks: one a hook point, and one a writer where its mean input is asked for."""
        self.detach()
        if self.probes is not None:
            self.probes.start(model)
        if self.meters & {"demand", "reinforced"}:
            self._demand.attach(model)
        self._inputs.attach({site.entrance: None for site in sites if site.role == "writer"})

    def detach(self) -> None:
        """Remove them."""
        self._demand.detach()
        self._inputs.detach()

    def listen(self, *, measured: bool, signs: bool, discover: bool) -> None:
        """Say what of the coming step is wanted: demand, the writers' mean inputs, the whole dictionary."""
        self._demand.active = measured
        if self._dictionary is not None:
            self._dictionary.active = discover
        self._inputs.active = signs or (measured and "write" in self.meters)

    def end_step(self) -> None:
        """Begin the mean inputs anew with the next forward pass; what was seen can still be asked for."""
        self._inputs.end()

    def of_gradients(
        self, gradients: Sequence[Gradient], *, loss_scale: Tensor | float, null: bool
    ) -> tuple[dict[str, Measured], Float[Tensor, ""]]:
        """`demand` and `gradient`, as far as they are measured; the tokens seen so far are used up.

        Returns:
            The readings, and how many of the gradients hold NaN or infinity.
        """
        found = {name: each for name, each in self._demand.read(loss_scale).items() if name in self.meters}
        if "gradient" in self.meters and gradients:
            measured, sums = self._read(gradients, null)
            found["gradient"], sizes = gradient_reading(measured, sums, null=null), sums.total
        else:
            largest = torch._foreach_norm([gradient.columns for gradient in gradients], ord=torch.inf)
            sizes = torch.stack(largest) if largest else torch.zeros(0)
        return found, (~torch.isfinite(sizes)).sum().float()

    def of_updates(self, updates: Sequence[Update], *, null: bool) -> Reading:
        """`write`: what the parameters' changes are, as they stand now."""
        measured, sums = self._read(updates, null)
        moved = self._moved(updates)
        means = {rows: self._views.means(rows, effect.device) for rows, effect in moved.items()}
        return write_reading(measured, sums, moved, means, null=null)

    def discoveries(self, step: int, *, loss_scale: Tensor | float) -> dict[str, DiscoveryTable]:
        """By hook point, which of all latents the gradients seen since the last time teach."""
        found = None if self._dictionary is None else self._dictionary.read(loss_scale)
        return {
            hook: DiscoveryTable(each, self._bank, hook, step, self._labels) for hook, each in (found or {}).items()
        }

    def toward_by_gradient(self, gradients: Sequence[Gradient]) -> dict[str, Tensor]:
        """How far each concept's direction would move up, up to the rate: `-sum_writers s m^T G x_mean`."""
        moved: dict[tuple[int, ...], Tensor] = {}
        for gradient in gradients:
            site, columns = gradient.site, gradient.columns.float()
            received = self._received(site)
            if received is not None:
                into = received if site.partner is None else site.parameters[1].float() @ received
                effect = columns @ into if columns.shape[1] > 1 else columns[:, 0]
                self._add(moved, site, torch.where(torch.isfinite(effect).all(), -site.scaling * effect, 0.0))
        return self._toward(moved)

    def toward_by_update(self, updates: Sequence[Update]) -> dict[str, Tensor]:
        """How far each concept's direction moved up: `sum_writers m^T dW x_mean`."""
        return self._toward(self._moved(updates))

    def held_bytes(self) -> int:
        """Bytes that the probe sets' start and the dictionary take."""
        return sum(meter.held_bytes() for meter in (self.probes, self._dictionary) if meter is not None)

    def accumulate(self, found: Mapping[str, Measured]) -> None:
        """Add to the running sums: signed figures where a quantity has them, else its share above its null."""
        for quantity, reading in found.items():
            if not isinstance(reading, Reading):
                continue
            null = reading.null.mean(-1)
            known = self.null_means.get(quantity, torch.full_like(null, torch.nan)).to(null.device)
            self.null_means[quantity] = torch.where(torch.isfinite(null), null, known)
            value = reading.share - self.null_means[quantity] if reading.signed is None else reading.signed
            before = self.cumulative.get(quantity, torch.zeros_like(value)).to(value.device)
            self.cumulative[quantity] = before + value.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    def _read(
        self, moves: Sequence[Gradient] | Sequence[Update], null: bool
    ) -> tuple[list[tuple[Spans, Matrix]], Sums]:
        """Every move's matrix along the rows of its site's spans, and their sums, read together."""
        measured = []
        for move in moves:
            spans = self._views.spans(move.site, move.site.parameter.device, null=null)
            measured.append((spans, move.matrix(spans.rows)))
        matrices = [matrix for _, matrix in measured]
        return measured, self._backend.on(matrices[0].columns.device).read(matrices)

    def _received(self, site: Site) -> Float[Tensor, "input"] | None:
        """The mean input of a writer; None for readers, embeddings and modules that did not run."""
        if site.role == "reader":
            return None
        if site.parameter.ndim == 1:
            return torch.ones(1, device=site.parameter.device)
        return self._inputs.mean(site.entrance)

    def _moved(self, updates: Sequence[Update]) -> dict[tuple[int, ...], Tensor]:
        moved: dict[tuple[int, ...], Tensor] = {}
        for update in updates:
            received = self._received(update.site)
            if received is not None:
                self._add(moved, update.site, update.effect(received))
        return moved

    def _add(self, moved: dict[tuple[int, ...], Tensor], site: Site, effect: Float[Tensor, "d_model"]) -> None:
        rows = self._views.rows(site)
        moved[rows] = moved[rows] + effect if rows in moved else effect

    def _toward(self, moved: Mapping[tuple[int, ...], Tensor]) -> dict[str, Tensor]:
        along = [self._views.means(rows, effect.device)[0] @ effect for rows, effect in moved.items()]
        total = torch.stack(along).sum(0) if along else torch.zeros(len(self._bank.names))
        return dict(zip(self._bank.names, total, strict=True))
