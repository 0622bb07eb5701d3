"""Whether Weights & Biases would take a run from here: a key in the environment or in a netrc file."""

from __future__ import annotations

import netrc
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse


def wandb_mode(environment: Mapping[str, str]) -> Literal["online", "offline"] | None:
    """Online for who is logged in, else offline; None where `WANDB_MODE` already says.

    Example:
        >>> wandb_mode({"WANDB_API_KEY": "key"}), wandb_mode({"WANDB_API_KEY": "key", "WANDB_MODE": "disabled"})
        ('online', None)
    """
    if "WANDB_MODE" in environment:
        return None
    if environment.get("WANDB_API_KEY"):
        return "online"
    path = Path(environment.get("NETRC", Path.home() / ".netrc"))
    try:
        known = netrc.netrc(path).authenticators(wandb_host(environment))
    except (OSError, netrc.NetrcParseError):
        return "offline"
    return "offline" if known is None else "online"


def wandb_host(environment: Mapping[str, str]) -> str:
    """The server that runs go to.

    Example:
        >>> wandb_host({}), wandb_host({"WANDB_BASE_URL": "https://wandb.example.org:8080"})
        ('api.wandb.ai', 'wandb.example.org')
    """
    return urlparse(environment.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
