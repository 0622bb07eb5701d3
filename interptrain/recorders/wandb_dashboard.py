"""A board as a W&B workspace: its specification without a network, and saved with one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from interptrain.recorders.dashboard import Plot, Section
from interptrain.recorders.wandb import errors


def workspace(entity: str, project: str, name: str, sections: Sequence[Section], *, x: str) -> Any:
    """A `wandb_workspaces.workspaces.Workspace`; nothing is sent.

    Args:
        entity: the user or team.
        project: the project that the runs are in.
        name: of the view.
        sections: what it shows.
        x: what panels have as their horizontal axis.

    Raises:
        ModuleNotFoundError: wandb-workspaces is not installed.
        ValueError: W&B refuses a name.
    """
    try:
        import wandb_workspaces.workspaces as workspaces
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"a W&B dashboard needs wandb-workspaces ({error}): pip install 'interptrain[dashboard]'"
        ) from error
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            workspaces.Section(
                name=section.name, panels=[_panel(plot, x) for plot in section.plots], is_open=section.opened
            )
            for section in sections
        ],
    )


def specification(made: Any) -> dict[str, Any]:
    """What W&B would be sent of a workspace, as JSON."""
    # The package has no public way to it; its bound in pyproject.toml says so.
    spec: dict[str, Any] = json.loads(made._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
    return spec


def save(made: Any) -> str:
    """Send a workspace to W&B; its address.

    Raises:
        ConnectionError: W&B cannot be reached or refuses it.
    """
    caught: tuple[type[Exception], ...] = (*errors(), ValueError, OSError)  # requests' errors are OSErrors
    try:
        return str(made.save().url)
    except caught as error:
        raise ConnectionError(f"W&B did not take the dashboard: {error}") from error


def _panel(plot: Plot, x: str) -> Any:
    import wandb_workspaces.reports.v2 as reports

    if plot.pattern:
        return reports.LinePlot(title=plot.title, metric_regex=plot.pattern)
    return reports.LinePlot(
        title=plot.title, x=x, y=list(plot.metrics), line_marks=dict.fromkeys(plot.dashed, "dashed") or None
    )
