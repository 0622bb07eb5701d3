"""The Lightning callback: `Trainer(callbacks=[ConceptSteering(bank, suppress("pirate"))])`."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.strategies import DeepSpeedStrategy, FSDPStrategy
from torch.optim import Optimizer

from interptrain.concepts import ConceptBank
from interptrain.optimizers import loss_scale
from interptrain.session import Controls, Options, Rules, Session
from interptrain.warn import warn


class ConceptSteering(Controls, Callback):
    """Reads every step as concepts, logs their curves, and steers the gradients or what the optimizer made of them.

    Gradients are read (and with `where="gradient"` edited) in `on_before_optimizer_step`: after unscaling (AMP)
    and accumulation, *before* Lightning clips them, so a clipped step has its concepts steered and its norm
    bounded. What the optimizer did is read (and with `where="update"` edited) in the optimizer's own step hook,
    after clipping, momentum, scaling and decay. Automatic and manual optimisation, several optimizers,
    accumulation, bf16 and fp16 AMP, DDP and FSDP2 work; each site is steered with the optimizer that owns it, and a
    step that the GradScaler skips is neither edited nor counted. The curves go through the trainer's own loggers,
    averaged between two log steps; the steering state lies in the trainer's checkpoints.

    Args:
        bank: the concepts.
        rule: what to do to them; a sequence is chained and may hold interventions (`gate`, `hold`, ...);
            `observe()` changes nothing, to the last bit.
        progress_bar: show each concept's demand in the progress bar.
        options: those of every callback, see `interptrain.session.Options`.

    Raises:
        ValueError: at fit start, before the first step: the bank does not fit the model, a module is not
            understood, a rule names an unknown concept, a checkpoint's steering state is of another bank or sites.
        TypeError: an unknown option; at fit start: an optimizer or strategy that cannot be steered.

    Example:
        >>> import torch
        >>> from interptrain import ConceptBank, suppress
        >>> bank = ConceptBank.from_directions({"pirate": torch.ones(16)}, hook="blocks.0.hook_resid_post")
        >>> callback = ConceptSteering(bank, suppress("pirate"), every=10)
        >>> callback.rule
        Constant(concept='pirate', gain=0.0)
    """

    def __init__(
        self, bank: ConceptBank, rule: Rules | None = None, *, progress_bar: bool = False, **options: Unpack[Options]
    ) -> None:
        self._session = Session(bank, rule, **options)
        self._progress_bar = progress_bar
        self._stepped = False

    @property
    def state_key(self) -> str:
        """Where the state lies in a checkpoint; `name` keeps several callbacks apart."""
        return f"{type(self).__qualname__}{{name={self._session.name!r}}}"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the sites and attach, or say what does not fit."""
        if isinstance(trainer.strategy, (DeepSpeedStrategy, FSDPStrategy)):
            raise TypeError(
                f"{type(trainer.strategy).__name__} flattens or moves parameters, so that none is a matrix on the "
                "residual stream; use a single device, DDP, or ModelParallelStrategy (FSDP2)"
            )
        if trainer.ckpt_path is not None and not self._session.restored:
            warn(
                f"'{trainer.ckpt_path}' has no steering state of the name {self._session.name!r}; what the model is "
                "now counts as its start"
            )
        self._session.start(pl_module, *trainer.optimizers)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Tell the meters which tokens of the batch are in the loss."""
        self._session.watch(batch)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measure the gradients of this optimizer's parameters, and steer them in gradient mode."""
        plugin = trainer.precision_plugin
        scale = loss_scale(plugin.scaler if isinstance(plugin, MixedPrecision) else None, optimizer)
        kept = getattr(optimizer, "_step_supports_amp_scaling", False)  # fused ones unscale in their own step
        self._session.steerer.before_step(optimizer, loss_scale=scale, gradient_scale=scale if kept else 1.0)
        self._stepped = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the mean since the last log step, when the trainer logs."""
        # Lightning's own LearningRateMonitor asks the same question; metrics of other steps never reach a logger.
        if self._stepped and trainer._logger_connector.should_update_logs and self._drain(trainer):
            metrics = self._session.metrics
            # What log_dict comes to for single values, without a metric object for each: 100 in .8 ms, not 27.
            trainer._logger_connector.log_metrics(metrics)
            found = {name: torch.tensor(value) for name, value in metrics.items()}
            trainer._logger_connector._callback_metrics.update(found)  # what monitors look at
            if self._progress_bar:
                figures = self._session.figures
                shown = {name: figures.get(f"concept/{name}/demand", 0.0) for name in self.bank.names}
                pl_module.log_dict(shown, prog_bar=True, logger=False, on_step=True, on_epoch=False)
        self._stepped = False

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the summary and leave nothing behind."""
        try:
            self._drain(trainer)
            self._session.summarise()
        finally:
            self._session.end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave nothing behind."""
        self._session.end()

    def state_dict(self) -> dict[str, Any]:
        """The steering state, for the trainer's checkpoint."""
        return self._session.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a checkpoint's steering state until training starts."""
        self._session.load_state_dict(state_dict)

    def _drain(self, trainer: Trainer) -> bool:
        """Bring what was measured since the last time to the host, and new tables to W&B."""
        before = dict(self._session.tables)
        if not self._session.drain():
            return False
        new = {hook: table for hook, table in self._session.tables.items() if table is not before.get(hook)}
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                for hook, table in new.items():
                    data = [list(row.values()) for row in table.rows()]
                    logger.log_table(f"interptrain/discovery/{hook}", list(table.columns), data, step=table.step)
        return True
