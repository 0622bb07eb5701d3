"""A recorder that logs to a Weights & Biases run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from interptrain.discovery import DiscoveryTable
from interptrain.report import StepReport

if TYPE_CHECKING:
    from wandb import Run


class WandbRecorder:
    """Every figure under its metric name over `interptrain/step`, tables of latents as W&B tables.

    The figures go into the row that the run is at, and begin one only where nobody else has since an earlier step's
    report. So what a loop logs stays as it is, without steps or with steps of its own that count no slower than the
    optimizer's. Offline (`mode="offline"`) there is no need for an account, and `wandb leet` shows the run. A lost
    connection is W&B's to mend and stops nothing.

    A run that was made here is finished by `close()` or at the end of a `with` block; one that was there before, given
    or active, is left open. The last report is in the log when the run is finished.

    Args:
        run: the run to log to; None takes the active one, or makes one.
        init: what `wandb.init` takes.

    Raises:
        ModuleNotFoundError: wandb is not installed.
        ValueError: both a run and arguments to make one.

    Example:
        >>> import torch
        >>> from interptrain.report import Plain
        >>> none, gain = torch.zeros(()), Plain(torch.tensor([0.5]))
        >>> with WandbRecorder(project="pirates", mode="disabled") as recorder:
        ...     recorder.record(StepReport(0, ("pirate",), {"gain": gain}, {}, nonfinite=none, capped=none + 1))
    """

    def __init__(self, run: Run | None = None, **init: Any) -> None:
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"WandbRecorder needs wandb ({error}): pip install 'interptrain[wandb]'"
            ) from error
        if run is not None and init:
            raise ValueError(f"expected a run or what wandb.init takes, found a run and {', '.join(init)}; give one")
        before = wandb.run if run is None else run
        self.run = wandb.init(**init) if run is None else run
        self._made_here = self.run is not before
        self._row = self._step = -1
        self._closed = False
        self.run.define_metric("interptrain/step", hidden=True)
        for figures in ("concept/*", "interptrain/*"):
            self.run.define_metric(figures, step_metric="interptrain/step")

    def record(self, report: StepReport) -> None:
        """Log a report.

        Raises:
            RuntimeError: the recorder is closed.
        """
        if self._closed:
            raise RuntimeError("the recorder is closed; detach the steerer first, or close it later")
        self.run.log({}, commit=False)  # raises at once where the run is finished; `step` waits half a minute to say so
        row = self.run.step
        if row == self._row and report.step != self._step:
            self.run.log({}, commit=True)
            row += 1
        tables = {f"interptrain/discovery/{hook}": _table(found) for hook, found in report.discoveries.items()}
        # Not committed: W&B drops what a loop logs later under a `step=` of its own that is behind the run's.
        self.run.log({"interptrain/step": report.step, **report.scalars(), **tables}, commit=False)
        self._row, self._step = row, report.step

    def close(self) -> None:
        """Finish the run, if it was made here."""
        self._finish(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self._finish(0 if kind is None else 1)

    def _finish(self, exit_code: int) -> None:
        if self._made_here and not self._closed:
            self.run.finish(exit_code=exit_code)
        self._closed = True


def errors() -> tuple[type[Exception], ...]:
    """What W&B raises where its server cannot be reached, or refuses."""
    import wandb

    return (wandb.errors.Error,)


def _table(found: DiscoveryTable) -> Any:
    import wandb

    return wandb.Table(columns=list(found.columns), data=[[row[key] for key in found.columns] for row in found.rows()])
