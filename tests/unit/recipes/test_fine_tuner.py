from __future__ import annotations

from itertools import islice

import pytest
from pytorch_lightning import Callback, Trainer

from interptrain.recipes.fine_tuner import FineTuner
from interptrain.tiny_world import finetuning_set, load_base


class Rates(Callback):
    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append(optimizer.param_groups[0]["lr"])


def fit(tuner, steps):
    rates = Rates()
    trainer = Trainer(
        max_steps=steps, accelerator="cpu", callbacks=[rates], logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(tuner, islice(finetuning_set("mixed", batch=2), steps))
    return rates.seen


def test_the_rate_falls_to_nothing_over_the_last_steps_in_a_straight_line():
    rates = fit(FineTuner(load_base(), 1e-3, cooldown=0.5), 8)
    assert rates == pytest.approx([1e-3] * 5 + [0.75e-3, 0.5e-3, 0.25e-3])
    assert fit(FineTuner(load_base(), 1e-3), 3) == [1e-3] * 3


def test_the_loss_can_be_another_than_the_models_own():
    losses = []

    def doubled(model, batch):
        losses.append(model(**batch).loss.detach())
        return 2 * model(**batch).loss

    tuner = FineTuner(load_base(), 1e-3, loss=doubled)
    fit(tuner, 1)
    assert tuner.trainer.callback_metrics["train/loss"] == pytest.approx(2 * losses[0])
