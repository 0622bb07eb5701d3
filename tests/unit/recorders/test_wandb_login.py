"""Who counts as logged in at W&B."""

import pytest

from interptrain.recorders.wandb_login import wandb_mode


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
