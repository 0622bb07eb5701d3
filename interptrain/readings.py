"""What one step is measured by: the meters at the hooks and at the sites, and what they keep between steps."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interptrain.concepts.bank import ConceptBank
from interptrain.discovery import DiscoveryTable
from interptrain.effects import Moved, SplitEffect
from interptrain.gradients import Gradient
from interptrain.meters import DemandMeter, MeanInputs, Positions, Spans, gradient_reading, write_reading
from interptrain.meters.dictionary import DictionaryMeter
from interptrain.meters.probe_meter import ProbeMeter
from interptrain.meters.probes import ProbeSets
from interptrain.meters.token_demand import TokenDemands
from interptrain.meters.watch import Watchers
from interptrain.processes import sum_over_processes_
from interptrain.projection import Backend, Matrix, PartialSums
from interptrain.report import Measured, Reading
from interptrain.sites import HookPoint, Site
from interptrain.sites.sharding import is_sharded
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
        watchers: fitted probes of texts that look at them too.
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
        watchers: Watchers | None,
        keep_tokens: bool,
        latent_labels: Mapping[int, str],
        backend: Backend,
        seed: int,
    ) -> None:
        self.meters = frozenset(meters)
        self.cumulative: dict[str, Tensor] = {}
        self.null_means: dict[str, Tensor] = {}
        self.probes = None if probes is None else ProbeMeter(bank, probes, seed=seed, watchers=watchers)
        self._bank, self._views, self._labels, self._backend = bank, views, latent_labels, backend
        self._dictionary = DictionaryMeter(bank, seed=seed) if bank.readouts else None
        self._demand = DemandMeter(
            bank, {hook: HookPoint.parse(hook) for hook in bank.hook_points}, seed=seed, keep_tokens=keep_tokens,
            reinforced="reinforced" in self.meters, dictionary=self._dictionary, backend=backend,
        )  # fmt: skip
        self._inputs = MeanInputs(self._demand.positions)
        self._device = torch.device("cpu")

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
        self._device = next(model.parameters()).device
        writers = [site for site in sites if site.role == "writer"]
        self._inputs.attach(
            {site.entrance: site.width_in for site in writers if site.width_in}, self._device,
            behind={site.entrance: site.norm for site in writers if site.norm is not None},
        )  # fmt: skip

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

        One collective for all of it, and more where null groups are asked of what is sharded.

        Returns:
            The readings, and how many of the gradients hold NaN or infinity.
        """
        measured, reading = self._read(gradients if "gradient" in self.meters else (), null)
        sizes = torch.zeros(0) if measured else _largest(gradients)
        split = any(gradient.part.split for gradient in gradients)
        sum_over_processes_(
            [*self._demand.partial(), *self._inputs.partial(), *reading.partial, *([sizes] if split else [])]
        )
        found = {name: each for name, each in self._demand.read(loss_scale).items() if name in self.meters}
        if measured:
            sums = reading.sums()
            found["gradient"], sizes = gradient_reading(measured, sums, null=null), sums.total
        return found, (~torch.isfinite(sizes)).sum().float()

    def of_inputs(self) -> None:
        """The writers' mean inputs over all processes, for a step that is not measured."""
        sum_over_processes_(self._inputs.partial())

    def of_updates(self, updates: Sequence[Update], *, null: bool, more: Sequence[Tensor] = ()) -> Reading:
        """`write`: what the parameters' changes are, as they stand now.

        One collective for all of it, and more where null groups are asked of what is sharded.

        Args:
            updates: of the sites.
            null: whether to measure the null groups too.
            more: what else is to be summed over the processes on this occasion.
        """
        measured, reading = self._read(updates, null)
        moved = self._moved(updates)
        sum_over_processes_([*more, *reading.partial, *moved.partial])
        whole = moved.whole()
        means = {rows: self._views.means(rows, effect.device) for rows, effect in whole.items()}
        return write_reading(measured, reading.sums(), whole, means, null=null)

    def discoveries(self, step: int, *, loss_scale: Tensor | float) -> dict[str, DiscoveryTable]:
        """By hook point, which of all latents the gradients seen since the last time teach."""
        if self._dictionary is None or not self._demand.attached:
            return {}
        found = self._dictionary.read(loss_scale, device=self._device)
        return {
            hook: DiscoveryTable(each, self._bank, hook, step, self._labels) for hook, each in (found or {}).items()
        }

    def toward_by_gradient(self, gradients: Sequence[Gradient]) -> dict[str, Tensor]:
        """How far each concept's direction would move up, up to the rate: `-sum_writers s m^T G x_mean`."""
        moved, split = Moved(), list[SplitEffect]()
        for gradient in gradients:
            site = gradient.site
            received = self._received(site)
            if received is None:
                continue
            rows = self._views.rows(site)
            if any(is_sharded(parameter) for parameter in site.parameters):
                means = self._views.means(rows, gradient.columns.device)[0]
                norm = self._views.settled(site).norm
                means = means if norm is None else norm.behind(means)
                split.append(SplitEffect(gradient, -site.scaling * means, received))
            else:
                into = received if site.partner is None else site.parameters[1].float() @ received
                effect = self._in_stream(site, gradient.columns.float() @ into)
                moved.add(rows, torch.where(torch.isfinite(effect).all(), -site.scaling * effect, 0.0), gradient.part)
        sum_over_processes_([tensor for effect in split for tensor in effect.partial])
        return self._toward(moved.whole(), [effect.value() for effect in split])

    def toward_by_update(self, updates: Sequence[Update]) -> dict[str, Tensor]:
        """How far each concept's direction moved up: `sum_writers m^T dW x_mean`."""
        moved = self._moved(updates)
        sum_over_processes_(moved.partial)
        return self._toward(moved.whole())

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
    ) -> tuple[list[tuple[Spans, Matrix]], PartialSums]:
        """Every move's matrix along the rows of its site's spans, and their sums, read together.

        That of a tied weight is read twice: as a writer's and as a reader's.
        """
        measured = []
        for move in moves:
            for side in move.site.sides:
                spans = self._views.spans(side, side.parameter.device, null=null)
                measured.append((spans, move.matrix(spans.rows)))
        matrices = [matrix for _, matrix in measured]
        device = matrices[0].columns.device if matrices else self._device
        return measured, self._backend.over_processes(device).read(matrices)

    def _received(self, site: Site) -> Float[Tensor, "input"] | None:
        """The mean input of a writer; None for readers, embeddings, experts and modules that did not run.

        Where a norm stands behind the writer, that of `x / spread(y)`; a bias has none there.
        """
        if site.role != "writer" or (site.approximate and site.parameter.ndim == 1):
            return None
        if site.parameter.ndim == 1:
            return torch.ones(1, device=site.parameter.device)
        return self._inputs.mean(site.entrance)

    def _moved(self, updates: Sequence[Update]) -> Moved:
        moved = Moved()
        for update in updates:
            received = self._received(update.site)
            if received is not None:
                effect = self._in_stream(update.site, update.effect(received))
                moved.add(self._views.rows(update.site), effect, update.part)
        return moved

    def _in_stream(self, site: Site, effect: Float[Tensor, "d_model"]) -> Float[Tensor, "d_model"]:
        """What the stream gets of what a writer puts out: `gain * (e - mean(e))` where a norm stands between."""
        norm = self._views.settled(site).norm
        return effect if norm is None else norm.in_front(effect[None])[0]

    def _toward(
        self, moved: Mapping[tuple[int, ...], Tensor], more: Iterable[Float[Tensor, "concept"]] = ()
    ) -> dict[str, Tensor]:
        along = [self._views.means(rows, effect.device)[0] @ effect for rows, effect in moved.items()]
        along += more
        total = torch.stack(along).sum(0) if along else torch.zeros(len(self._bank.names))
        return dict(zip(self._bank.names, total, strict=True))


def _largest(gradients: Sequence[Gradient]) -> Float[Tensor, "gradient"]:
    """The largest absolute value of each; not finite where an element is not."""
    held = [g.columns if g.columns.numel() else g.columns.new_zeros(1, 1) for g in gradients]  # none, of a part
    return torch.stack(torch._foreach_norm(held, ord=torch.inf)) if held else torch.zeros(0)
