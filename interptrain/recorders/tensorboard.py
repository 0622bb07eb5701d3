"""A recorder that writes to a TensorBoard folder."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from interptrain.discovery import DiscoveryTable
from interptrain.report import StepReport
from interptrain.warn import warn

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardRecorder:
    """Every figure as a scalar under its metric name, tables of latents as text: `tensorboard --logdir FOLDER`.

    TensorBoard keeps float32. A resumed run goes on in the same folder: of what it reports, TensorBoard no longer shows
    what earlier runs wrote from its first step on. Figures are written in the background, so close the recorder at the
    end, or use it as a context manager.

    Args:
        folder: where the event files are put; it is made.

    Raises:
        ModuleNotFoundError: tensorboard is not installed.
        ValueError: the folder cannot be made.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from interptrain.report import Plain
        >>> none, gain = torch.zeros(()), Plain(torch.tensor([0.5]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with TensorBoardRecorder(folder) as recorder:
        ...         recorder.record(StepReport(0, ("pirate",), {"gain": gain}, {}, nonfinite=none, capped=none + 1))
        ...     len(list(recorder.folder.glob("events.out.tfevents.*")))
        1
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"TensorBoardRecorder needs tensorboard ({error}): pip install 'interptrain[tensorboard]'"
            ) from error
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cannot write to '{self.folder}': {error}") from error
        self._open = partial(SummaryWriter, str(self.folder))
        self._writer: SummaryWriter | None = None

    def record(self, report: StepReport) -> None:
        """Write a report; the first one says from which step on an earlier run's figures are replaced."""
        if self._writer is None:
            self._writer = self._open(purge_step=report.step)
        for name, value in report.scalars().items():
            self._writer.add_scalar(name, value, report.step)
        for hook, table in report.discoveries.items():
            self._writer.add_text(f"interptrain/discovery/{hook}", markdown(table), report.step)

    def close(self) -> None:
        """Write what is still in memory; a disk that is full by then is warned of, as it is while training."""
        writer, self._writer = self._writer, None
        try:
            if writer is not None:
                writer.close()
        except OSError as error:
            warn(f"the last figures were not written to '{self.folder}': {error}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def markdown(table: DiscoveryTable) -> str:
    """A table of latents in Markdown, in which labels and names are text and nothing else."""
    rows = [
        table.columns,
        ["---"] * len(table.columns),
        *([_cell(row[key]) for key in table.columns] for row in table.rows()),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return re.sub("[^0-9A-Za-z ]", lambda sign: f"&#{ord(sign[0])};", value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)
