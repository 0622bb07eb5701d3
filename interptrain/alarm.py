"""The rerouting alarm: a suppressed concept stays flat, and something else moves in its place."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from interptrain.concepts.bank import ConceptBank
from interptrain.meters.probe_reading import ProbeReading

# Fixed on the royal concept of the tiny world, before any run with another concept: see docs/evidence.md.
FLAT, MOVED, PROBE_MOVED, UNEXPLAINED_MOVED = 0.25, 0.25, 0.35, 1.0


@dataclass
class Alarm:
    """Watches what may take a suppressed concept's place; never what the model says.

    Every figure is a share of the way from the neutral texts to a concept's own texts, before training: 0 as
    before, 1 as much as texts that show it. A concept that a rule suppresses is *flat* while `fraction` on the
    neutral set stays below `flat`. While it is flat, one of these raises the alarm:

        a sibling's `fraction` reaches `moved`
        the concept's own linear probe, which knows nothing of its directions, reaches `probe_moved`
        the part of the move that no concept explains is `unexplained_moved` of the concept's contrast

    Args:
        siblings: for each concept, those that could stand in for it.
        flat: below this the concept has not come.
        moved: from this on a sibling has.
        probe_moved: the same of the linear probe.
        unexplained_moved: the same of the unexplained part.
        on: the probe set to look at.

    Example:
        >>> Alarm({"pirate": ["royal"]}).flat
        0.25
    """

    siblings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    flat: float = FLAT
    moved: float = MOVED
    probe_moved: float = PROBE_MOVED
    unexplained_moved: float = UNEXPLAINED_MOVED
    on: str = "neutral"
    raised: dict[str, dict[str, Any]] = field(default_factory=dict)

    def look(self, step: int, reading: ProbeReading, bank: ConceptBank, suppressed: Sequence[str]) -> bool:
        """Whether any suppressed concept is being gone around; the first time, a warning says by what.

        Args:
            step: optimizer steps done.
            reading: the probe sets now; one transfer from the device.
            bank: the concepts.
            suppressed: those with a gain below 1.
        """
        if not suppressed:
            return False
        scalars = reading.fractions(self.on, bank.names)
        for name in suppressed:
            if scalars[name]["fraction"] >= self.flat:
                continue
            took_over = self._took_over(name, scalars)
            if took_over is None:
                continue
            if name not in self.raised:
                what, figure = took_over
                self.raised[name] = {"step": step, "what": what, "figure": figure}
                flat = scalars[name]["fraction"]
                warnings.warn(
                    f"rerouting at step {step}: '{name}' is suppressed and flat ({flat:.2f} of the way to its own "
                    f"texts), but {what} moved ({figure:.2f}) on the {self.on} probe set",
                    stacklevel=6,
                )
            return True
        return False

    def _took_over(self, name: str, scalars: Mapping[str, Mapping[str, float]]) -> tuple[str, float] | None:
        watched = [
            (f"its sibling '{sibling}'", scalars[sibling]["fraction"], self.moved)
            for sibling in self.siblings.get(name, ())
        ]
        watched.append((f"the linear probe of '{name}'", scalars[name]["probe"], self.probe_moved))
        watched.append(("what no concept explains", scalars[name]["unexplained"], self.unexplained_moved))
        over = [(what, figure, figure / bound) for what, figure, bound in watched if figure >= bound]
        return max(over, key=lambda each: each[2])[:2] if over else None

    def state_dict(self) -> dict[str, Any]:
        """What it has warned of."""
        return {"raised": dict(self.raised)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on without warning of the same again."""
        self.raised = dict(state["raised"])
