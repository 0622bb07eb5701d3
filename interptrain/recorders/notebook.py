"""A recorder that draws the concepts' curves under a notebook's cell while a model trains, without a server."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from itertools import count
from typing import Any, cast

from interptrain.recorders.document import Curves, Report, said
from interptrain.recorders.jsonl import columns
from interptrain.recorders.memory import MemoryRecorder
from interptrain.recorders.standing import concepts_of, standing
from interptrain.report import StepReport

SHARE = 20.0  # drawings wait at least so many times as long as one takes: a twentieth of the time at most
_NUMBERS = count()  # ids are shared by all that a notebook shows


class CurvesDisplay(MemoryRecorder):
    """Keeps reports and draws every concept's curve in its null band, in place, every few seconds.

    In a notebook the drawing appears at the first report and is replaced from then on; the object as a cell's last line
    draws all that there is. Elsewhere nothing is drawn, and `rich.print(display)` shows the curves in the terminal.
    A drawing transfers the reports since the last one from the device.

    Args:
        quantity: what is drawn of each concept: `demand`, `write`, `realised/neutral/fraction`, ...
        concepts: those to draw; None for all.
        every: seconds between two drawings, at least.
        clock: seconds.

    Raises:
        ValueError: `every` is not positive.
        ModuleNotFoundError: when it draws, matplotlib is not installed.

    Example:
        >>> import torch
        >>> from interptrain.report import Plain
        >>> display, none = CurvesDisplay(quantity="gain"), torch.zeros(())
        >>> for step in range(4):
        ...     gain = Plain(torch.tensor([float(step)]))
        ...     display.record(StepReport(step, ("pirate",), {"gain": gain}, {}, nonfinite=none, capped=none + 1))
        >>> "<svg" in display._repr_html_()
        True
    """

    def __init__(
        self,
        *,
        quantity: str = "demand",
        concepts: Sequence[str] | None = None,
        every: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        if not every > 0:
            raise ValueError(f"every is seconds above 0, found {every}")
        self.quantity, self.every = quantity, every
        self._chosen, self._clock, self._number = concepts, clock, next(_NUMBERS)
        self._rows: dict[float, dict[str, float]] = {}
        self._read, self._due = 0, 0.0
        self._handle: Any = None

    def record(self, report: StepReport) -> None:
        """Keep a report, and draw where it is time to."""
        super().record(report)
        now = self._clock()
        if now >= self._due and (shell := _notebook()) is not None:
            self._draw(shell)
            self._due = self._clock() + max(self.every, SHARE * (self._clock() - now))

    def curves(self) -> Curves:
        """As `MemoryRecorder.curves`, each step once; a report is transferred from the device once."""
        for report in self.reports[self._read :]:
            self._rows[float(report.step)] = {"step": float(report.step), **report.scalars()}
        self._read = len(self.reports)
        return columns(self._rows)

    def _draw(self, shell: Any) -> None:
        display = sys.modules["IPython.display"].display
        if self._handle is None:
            self._handle = display(self, display_id=True)
        else:
            self._handle.update(self)

    def _repr_html_(self) -> str:
        """The panels as HTML: drawings alone, no script, every name escaped."""
        from interptrain.recorders.curves import draw_quantity, has_quantity, panel

        found, rung = self.curves(), self.alarms()
        report = cast("Report", {"arms": [{"name": "", "runs": [{"curves": found, "alarms": rung}]}]})
        names = concepts_of(found) if self._chosen is None else self._chosen
        figures = []
        for number, concept in enumerate(names):
            if not has_quantity(report, concept, self.quantity):
                continue
            draw = partial(draw_quantity, report=report, concept=concept, quantity=self.quantity)
            title = f"{self.quantity} of {concept}"
            drawn = panel(draw, title=title, name=f"interptrain-{self._number}-{number}", ylabel=self.quantity)
            words = [escape(said(each)) for each in rung if each["concept"] == concept]
            here = standing(found, concept)
            z = f", z {here.z:.1f}" if self.quantity == "demand" and here.z is not None else ""
            caption = "".join(f"<div>▼ {each}</div>" for each in words)
            head = f"<figcaption><b>{escape(concept)}</b>{z}</figcaption>"
            figures.append(f'<figure style="margin:0">{head}{drawn}{caption}</figure>')
        step = f"step {found['step'][-1]:.0f}" if found["step"] else "no reports yet"
        return (
            f'<div style="--rule:#8888"><div>interptrain: {escape(self.quantity)}, {step}; grey: the null, '
            'mean ± 2 sd</div><div style="display:grid;gap:1rem;grid-template-columns:'
            f'repeat(auto-fill,minmax(min(100%,18rem),1fr))">{"".join(figures)}</div></div>'
        )

    def _repr_mimebundle_(
        self, include: Sequence[str] = (), exclude: Sequence[str] = (), **more: Any
    ) -> dict[str, str]:
        kinds = {"text/html": self._repr_html_, "text/plain": lambda: f"CurvesDisplay of {len(self.reports)} reports"}
        wanted = [kind for kind in kinds if (not include or kind in include) and kind not in (exclude or ())]
        return {kind: kinds[kind]() for kind in wanted}


def _notebook() -> Any:
    """The shell of a notebook; None in a terminal or a script. IPython is never imported for it."""
    shell = sys.modules["IPython"].get_ipython() if "IPython.display" in sys.modules else None
    return None if getattr(shell, "kernel", None) is None else shell  # a terminal's shell has no kernel
