"""A plain LightningModule around a causal language model, and what watches it train."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import wandb
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from interptrain.recorders.document import Checkpoint, Scores
from interptrain.recorders.wandb_login import wandb_mode


def quiet_libraries() -> None:
    """Leave the screen to the display; what the libraries say of themselves at every start is known.

    Warnings of other modules, interptrain's among them, still show.
    """
    os.environ["WANDB_SILENT"] = "true"
    for library in ("pytorch_lightning", "bitsandbytes"):  # PEFT imports the second where it is installed
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_(fabric|utilities)|transformers|wandb")


class FineTuner(LightningModule):
    """Trains what asks for a gradient with AdamW.

    Args:
        model: returns an output with `loss` for a batch with labels.
        learning_rate: at the start.
        cooldown: share of the run's steps, its last, over which the rate falls to 0 in a straight line.
        loss: from the model and a batch to what is minimised; by default the model's own.
    """

    def __init__(
        self,
        model: nn.Module,
        learning_rate: float,
        *,
        cooldown: float = 0.0,
        loss: Callable[[nn.Module, Any], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.learning_rate, self.cooldown = model, learning_rate, cooldown
        self._loss = _own_loss if loss is None else loss
        self.strict_loading = False  # a checkpoint holds what trains

    def training_step(self, batch: Mapping[str, Tensor], _: int) -> Tensor:
        """The loss of a batch, logged."""
        loss = self._loss(self.model, batch)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW without decay of the weights."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.learning_rate, weight_decay=0.0)
        last, rest = self.trainer.max_steps, self.cooldown * self.trainer.max_steps
        schedule = LambdaLR(optimizer, lambda step: min(1.0, (last - step) / rest) if rest else 1.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what trains, and where the random numbers stand: dropout goes on as it would have."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in trained}
        checkpoint["random"] = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the random numbers that were next."""
        here, *devices = checkpoint["random"]
        torch.set_rng_state(here.cpu())
        torch.cuda.set_rng_state_all([state.cpu() for state in devices])


def _own_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The mean over the tokens that count."""
    loss: Tensor = model(**batch).loss
    return loss


class Watch(Callback):
    """Scores the behaviour before the first step, every few steps and after the last, and tells the display.

    The trainer's loggers get the scores of those steps at which the trainer logs.

    Args:
        score: from the model to its scores; leaves the model in the mode it was in.
        every: optimizer steps between scores; before the first of these, at 1, 2, 4, 8, ...
        tell: takes the step and a word about it.
    """

    def __init__(self, score: Callable[[nn.Module], Scores], every: int, tell: Callable[[int, str], None]) -> None:
        self.checkpoints: list[Checkpoint] = []
        self._score, self._every, self._tell = score, every, tell

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The start of the curve, unless it goes on."""
        if not self.checkpoints:
            self._take(0, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A point of the curve, when it is time for one."""
        step = trainer.global_step
        if is_due(step, self._every) or step == trainer.max_steps:
            pl_module.log_dict({f"behaviour/{key}": value for key, value in self._take(step, pl_module).items()})
        self._tell(step, f"loss {float(outputs['loss']):.2f}")

    def state_dict(self) -> dict[str, Any]:
        """The curve so far, for a checkpoint."""
        return {"checkpoints": self.checkpoints}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with a curve."""
        self.checkpoints = state_dict["checkpoints"]

    def _take(self, step: int, pl_module: LightningModule) -> Scores:
        scores = self._score(pl_module.model)
        self.checkpoints.append({"step": step, "scores": scores})
        return scores


def is_due(step: int, every: int) -> bool:
    """Whether to score after a step: early ones closer together, since a voice is learnt in a few.

    Example:
        >>> [step for step in range(1, 41) if is_due(step, 20)]
        [1, 2, 4, 8, 16, 20, 40]
    """
    return step % every == 0 or (step < every and step.bit_count() == 1)


def wandb_logger(folder: Path, *, name: str, group: str, config: Mapping[str, Any]) -> WandbLogger:
    """A W&B logger of one run, kept in `folder/wandb`; never asks for a login."""
    run = wandb.init(
        project="interptrain", name=name, group=group, dir=folder, mode=wandb_mode(os.environ), config=dict(config),
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
    )  # fmt: skip
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(experiment=run)
