"""The Lightning callback: `Trainer(callbacks=[ConceptSteering(bank, suppress("pirate"))])`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from rich.console import Console
from torch import Tensor, nn
from torch.optim import Optimizer

from interptrain.alarm import Alarm
from interptrain.concepts import ConceptBank
from interptrain.discovery import DiscoveryTable
from interptrain.gain_check import GainCheck
from interptrain.interventions import Intervention
from interptrain.interventions.intervention import split
from interptrain.meters.probes import ProbeSets
from interptrain.meters.tokens import IGNORED_LABEL
from interptrain.plan import Plan, summary_table
from interptrain.readings import METERS
from interptrain.report import Recorder, Window
from interptrain.sites import Site, find_sites
from interptrain.steerer import Steerer
from interptrain.steering import Rule, observe

Labels = Callable[[Any], Tensor | None]


class ConceptSteering(Callback):
    """Reads every step as concepts, logs their curves, and steers the gradients or what the optimizer made of them.

    Gradients are read (and with `where="gradient"` edited) in `on_before_optimizer_step`: after unscaling (AMP)
    and accumulation, *before* Lightning clips them, so a clipped step has its concepts steered and its norm
    bounded. What the optimizer did is read (and with `where="update"` edited) in the optimizer's own step hook,
    after clipping, momentum, scaling and decay. Automatic and manual optimisation, several optimizers,
    accumulation, bf16 and fp16 AMP work; each site is steered with the optimizer that owns it, and a step that
    the GradScaler skips is neither edited nor counted. The curves go through the trainer's own loggers, averaged
    between two log steps.

    Args:
        bank: the concepts.
        rule: what to do to them; a sequence is chained and may hold interventions (`gate`, `hold`, ...);
            `observe()` changes nothing, to the last bit.
        sites: where they meet the parameters; by default trainable writers that run before the hook point and
            trainable readers after it.
        where: `"gradient"`, or `"update"`: exact on what the optimizer did, LoRA readers included.
        every: measure on every n-th optimizer step; steering acts on all of them.
        recorders: take the report of each measured step, beside the trainer's loggers.
        skip: name patterns of trainable parameters to leave alone where they are not understood.
        labels: from your batch to its labels `[batch, token]` (-100: not in the loss); by default
            `batch["labels"]`, else what `batch["attention_mask"]` keeps, else every token.
        progress_bar: show each concept's demand in the progress bar.
        summary: print what is held when training starts, and a table when it ends.
        ridge: allow nearly parallel directions, at the price of inexact gains.
        norm_cap: bound on the relative size of the edit at each site.
        meters: which of `demand`, `gradient` and `write` to measure, and `reinforced` on request; `write` keeps a
            copy of the sites.
        probes: fixed texts by set, `{"neutral": batches, "pirate": batches}`: what training makes of them is
            measured against the model before training.
        probe_every: run them after every n-th optimizer step.
        discover_every: on every n-th step ask which of all the dictionary's latents it teaches; None never.
        latent_labels: what those latents are about.
        alarm: warns when something else moves in place of a suppressed concept; needs probes.
        backend: `"torch"`, `"cuda"` (this package's kernels, or an error at fit start) or `"auto"`, whichever can run;
            the start line says which and why.

    Raises:
        ValueError: at fit start, before the first step: the bank does not fit the model, a module is not
            understood, a rule names an unknown concept.
        TypeError: at fit start: an optimizer or strategy that cannot be steered.

    Example:
        >>> import torch
        >>> from interptrain import ConceptBank, suppress
        >>> bank = ConceptBank.from_directions({"pirate": torch.ones(16)}, hook="blocks.0.hook_resid_post")
        >>> callback = ConceptSteering(bank, suppress("pirate"), every=10)
        >>> callback.rule
        Constant(concept='pirate', gain=0.0)
    """

    def __init__(
        self,
        bank: ConceptBank,
        rule: Rule | Intervention | Iterable[Rule | Intervention] | None = None,
        *,
        sites: Iterable[Site] | None = None,
        where: str = "gradient",
        every: int = 1,
        recorders: Sequence[Recorder] = (),
        skip: Sequence[str] = (),
        labels: Labels | None = None,
        progress_bar: bool = False,
        summary: bool = True,
        ridge: float = 0.0,
        norm_cap: float | None = None,
        meters: Collection[str] = METERS,
        probes: ProbeSets | Mapping[str, Iterable[Mapping[str, Tensor]]] | None = None,
        probe_every: int = 50,
        discover_every: int | None = 50,
        latent_labels: Mapping[int, str] | None = None,
        alarm: Alarm | None = None,
        backend: str = "auto",
    ) -> None:
        self.bank = bank
        self._rule = observe() if rule is None else rule
        self._sites = None if sites is None else tuple(sites)
        self._skip = tuple(skip)
        self._labels = _labels_of if labels is None else labels
        self._progress_bar, self._summary = progress_bar, summary
        self._window = Window()
        self._options: dict[str, Any] = {
            "where": where, "every": every, "recorders": (*recorders, self._window),
            "ridge": ridge, "norm_cap": norm_cap, "meters": meters, "probes": probes, "probe_every": probe_every,
            "discover_every": discover_every, "latent_labels": latent_labels, "alarm": alarm,
            "backend": backend,
        }  # fmt: skip
        self._steerer: Steerer | None = None
        self._restored: dict[str, Any] | None = None
        self._latest: dict[str, float] = {}
        self._discovered: dict[str, DiscoveryTable] = {}
        self._gains = GainCheck()
        self._stepped = False

    @property
    def rule(self) -> Rule | Intervention | Iterable[Rule | Intervention]:
        """What is done to the concepts; assign to it in mid-run to change it from the next step on.

        Interventions are those of the start until a fit ends: assigned rules act beside them.
        """
        return self._rule

    @rule.setter
    def rule(self, rule: Rule | Intervention | Iterable[Rule | Intervention]) -> None:
        if self._steerer is not None and self._steerer.attached:
            self._steerer.set_rule(rule)
            rule = [*split(rule)[0], *split(self._rule)[1]]
        self._rule = rule

    def dry_run(self, model: nn.Module, *, show: bool = True) -> Plan:
        """List the sites, the memory they cost, and what was left out and why; nothing is attached."""
        plan = Plan.of(self._steerer_for(model), model, skip=self._skip)
        if show:
            Console().print(plan)
        return plan

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the sites and attach, or say what does not fit."""
        _refuse(trainer)
        self._detach()
        self._latest, self._discovered, self._gains = {}, {}, GainCheck()
        self._steerer = self._steerer_for(pl_module)
        self._steerer.attach(pl_module, *trainer.optimizers)
        if self._restored is not None:
            self._steerer.load_state_dict(self._restored)
            self._restored = None
        if self._summary and trainer.is_global_zero:
            held = f"{self._steerer.held_bytes() / 2**20:.1f} MiB beside the model"
            sites = f"{len(self._steerer.sites)} sites (dry_run(model) lists them)"
            Console().print(f"interptrain: {sites}, {held}, projected by {self._steerer.projected_by}")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Tell the meters which tokens of the batch are in the loss."""
        self._attached.watch(self._labels(batch))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measure the gradients of this optimizer's parameters, and steer them in gradient mode."""
        scale = _loss_scale(trainer, pl_module)
        kept = getattr(optimizer, "_step_supports_amp_scaling", False)  # fused ones unscale in their own step
        self._attached.before_step(optimizer, loss_scale=scale, gradient_scale=scale if kept else 1.0)
        self._stepped = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the mean since the last log step, when the trainer logs."""
        # Lightning's own LearningRateMonitor asks the same question; metrics of other steps never reach a logger.
        if self._stepped and trainer._logger_connector.should_update_logs and self._drain(trainer):
            # What log_dict comes to for single values, without a metric object for each: 100 in .8 ms, not 27.
            trainer._logger_connector.log_metrics(self._latest)
            found = {name: torch.tensor(value) for name, value in self._latest.items()}
            trainer._logger_connector._callback_metrics.update(found)  # what monitors look at
            if self._progress_bar:
                shown = {f"{name}": self._latest.get(f"concept/{name}/demand", 0.0) for name in self.bank.names}
                pl_module.log_dict(shown, prog_bar=True, logger=False, on_step=True, on_epoch=False)
        self._stepped = False

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the summary and leave nothing behind."""
        self._drain(trainer)
        if self._summary and trainer.is_global_zero and self._latest:
            Console().print(summary_table(self.bank.names, self._latest), *self._discovered.values())
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave nothing behind."""
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        """The steering state, for the trainer's checkpoint."""
        return {} if self._steerer is None else self._steerer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a checkpoint's steering state until training starts."""
        self._restored = state_dict or None

    @property
    def _attached(self) -> Steerer:
        assert self._steerer is not None, "on_fit_start has not run"
        return self._steerer

    def _steerer_for(self, model: nn.Module) -> Steerer:
        where = self._options["where"]
        sites = find_sites(model, self.bank, skip=self._skip, where=where) if self._sites is None else self._sites
        return Steerer(self.bank, sites, self._rule, **self._options)

    def _drain(self, trainer: Trainer) -> bool:
        """Bring what was measured since the last time to the host, in one transfer."""
        report = self._window.drain()
        if report is None:
            return False
        self._latest = report.scalars()
        for hook, table in report.discoveries.items():
            self._discovered[hook] = table
            data = [list(row.values()) for row in table.rows()]
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_table(f"interptrain/discovery/{hook}", list(table.columns), data, step=report.step)
        if (parted := self._gains.parted(self._latest, self.bank.names)) is not None:
            warnings.warn(f"{parted}, by step {report.step + 1}", stacklevel=2)
        bad = int(self._latest.get("interptrain/nonfinite_sites", 0))
        if bad:
            warnings.warn(
                f"{bad} site gradients held NaN or infinity before step {report.step + 1}; where they did they were "
                "left as they were found, and none of them is in the curves",
                stacklevel=2,
            )
        return True

    def _detach(self) -> None:
        if self._steerer is not None:
            self._steerer.detach()
        self._window.drain()


def _labels_of(batch: Any) -> Tensor | None:
    """A batch's labels; without them, every token that the attention mask keeps."""
    if not isinstance(batch, Mapping):
        return None
    if batch.get("labels") is None and batch.get("attention_mask") is not None:
        return batch["attention_mask"].masked_fill(batch["attention_mask"] == 0, IGNORED_LABEL)
    return batch.get("labels")


def _loss_scale(trainer: Trainer, pl_module: LightningModule) -> Tensor | float:
    plugin = trainer.precision_plugin
    if isinstance(plugin, MixedPrecision) and plugin.scaler is not None:
        return plugin.scaler.scale(torch.ones((), device=pl_module.device))  # on the device: no synchronisation
    return 1.0


def _refuse(trainer: Trainer) -> None:
    if isinstance(trainer.strategy, (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)):
        raise TypeError(
            f"{type(trainer.strategy).__name__} shards parameters, which are not read yet; use a single device or DDP"
        )
