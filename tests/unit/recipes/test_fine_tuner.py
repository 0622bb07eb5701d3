from __future__ import annotations

from itertools import islice

import pytest
from pytorch_lightning import Callback, Trainer

from interptrain.recipes.fine_tuner import FineTuner, wandb_mode
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


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "key"}, "online"),
        ({"WANDB_API_KEY": "key", "WANDB_MODE": "offline"}, None),  # W&B reads the variable itself
    ],
)
def test_runs_are_sent_only_for_who_is_logged_in_and_wants_it(tmp_path, environment, mode):
    assert wandb_mode({"NETRC": str(tmp_path / "none"), **environment}) == mode


def test_a_login_kept_in_a_netrc_file_counts(tmp_path):
    path = tmp_path / "netrc"
    path.write_text("machine api.wandb.ai login user password key\n")
    path.chmod(0o600)
    assert wandb_mode({"NETRC": str(path)}) == "online"
    assert wandb_mode({"NETRC": str(path), "WANDB_BASE_URL": "https://wandb.elsewhere.org"}) == "offline"


def test_a_netrc_file_that_cannot_be_read_is_no_login(tmp_path):
    path = tmp_path / "netrc"
    path.write_text("mach!ne ???")
    assert wandb_mode({"NETRC": str(path)}) == "offline"
