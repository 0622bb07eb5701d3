"""The rerouting alarm: a suppressed concept stays flat, and something else moves in its place."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from interptrain.concepts.bank import ConceptBank
from interptrain.meters.probe_reading import ProbeReading
from interptrain.warn import warn

# From the royal voice of the tiny world, by the rule in `benchmarks/rerouting.py`; tested there on pirate.
FLAT, MOVED, PROBE_MOVED, UNEXPLAINED_MOVED = 0.31, 0.41, 0.57, 1.08


@dataclass
class Alarm:
    """Watches what may take a suppressed concept's place; never what the model says.

    Every figure is a share of the way from the neutral texts to a concept's own texts, before training: 0 as
    before, 1 as much as texts that show it. A concept that a rule suppresses is *flat* while its `fraction` on the
    neutral set is below `flat`. While it is flat, one of these raises the alarm:

        fraction of a sibling              >= moved
        linear probe of a sibling          >= probe_moved         which knows nothing of its directions
        its own linear probe               >= probe_moved
        ||v - Q^T Q v|| / ||its contrast|| >= unexplained_moved   the part of the move that no concept explains

    The last one is weak: a run that only words plain texts anew moves the unexplained part as far as an unknown
    concept does, so it rings only for what no innocent run came near. The alarm sees the bank's hook points and the
    texts of the sets: what takes a detour in the layers above, or on other texts alone, it misses. A concept that
    comes in spite of the rule is no rerouting: its own `fraction` says that. Give several sets where a behaviour could
    show on some texts and not on others, above all beside `retain`, which holds the texts it is given where they were:
    each set is looked at by itself.

    Args:
        siblings: for each concept, those that could stand in for it.
        flat: below this the concept has not come.
        moved: from this on a sibling has.
        probe_moved: the same of a linear probe.
        unexplained_moved: the same of the unexplained part; `inf` leaves it out.
        on: the probe set to look at, or several.
        raised: of each concept that it has warned of: `step`, `what` took over, its `figure`, and `on` which set.

    After a look, `ringing` holds the same of each suppressed concept that could be read, None where nothing rings.

    Raises:
        ValueError: a threshold is not positive, no set to look at, or a concept is its own sibling.

    Example:
        >>> Alarm({"pirate": ["royal"]}).raised
        {}
    """

    siblings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    flat: float = FLAT
    moved: float = MOVED
    probe_moved: float = PROBE_MOVED
    unexplained_moved: float = UNEXPLAINED_MOVED
    on: str | Sequence[str] = "neutral"
    raised: dict[str, dict[str, Any]] = field(default_factory=dict)
    ringing: dict[str, dict[str, Any] | None] = field(default_factory=dict, init=False, repr=False)
    _unread: set[str] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("flat", "moved", "probe_moved", "unexplained_moved"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, found {getattr(self, name)}")
        if not self.sets:
            raise ValueError("the alarm needs at least one probe set to look at, found none in `on`")
        for name, siblings in self.siblings.items():
            if isinstance(siblings, str):
                raise ValueError(f"siblings of '{name}' must be a list of concepts, found the text {siblings!r}")
            if name in siblings:
                raise ValueError(f"'{name}' cannot be its own sibling")

    @property
    def sets(self) -> tuple[str, ...]:
        """The probe sets that are looked at."""
        return (self.on,) if isinstance(self.on, str) else tuple(self.on)

    def check(self, bank: ConceptBank, sets: Collection[str]) -> None:
        """Whether there is what it is to look at; to be asked once, before training.

        Args:
            bank: the concepts.
            sets: names of the probe sets.

        Raises:
            ValueError: the set to look at is missing, or a concept or sibling is not in the bank or has no probe
                set of its own.

        Example:
            >>> import torch
            >>> bank = ConceptBank.from_directions({"pirate": torch.ones(4)}, hook="blocks.0.hook_resid_post")
            >>> Alarm({"pirate": ["royal"]}).check(bank, ["neutral", "pirate"])
            Traceback (most recent call last):
            ...
            ValueError: the alarm watches royal, not in the bank; it has pirate
        """
        watched = dict.fromkeys([*self.siblings, *(name for names in self.siblings.values() for name in names)])
        unknown = [name for name in watched if name not in bank.names]
        if unknown:
            raise ValueError(f"the alarm watches {', '.join(unknown)}, not in the bank; it has {', '.join(bank.names)}")
        missing = [name for name in dict.fromkeys([*self.sets, "neutral", *watched]) if name not in sets]
        if missing:
            found = f"there are {', '.join(sets)}" if sets else "there are none"
            raise ValueError(f"the alarm needs probe sets {', '.join(missing)}; {found}")

    def look(self, step: int, reading: ProbeReading, bank: ConceptBank, suppressed: Sequence[str]) -> bool:
        """Whether any suppressed concept is being gone around; the first time, a warning says by what.

        Args:
            step: optimizer steps done.
            reading: the probe sets now; one transfer from the device for each that is looked at.
            bank: the concepts.
            suppressed: those with a gain below 1.

        Raises:
            ValueError: as `check` does.
        """
        self.ringing = {}
        if not suppressed:
            return False
        self.check(bank, reading.realised)
        # A list: every set is looked at, whichever rang before it.
        rang = [self._look_on(name, step, reading, bank, suppressed) for name in self.sets]
        return any(rang)

    def _look_on(self, on: str, step: int, reading: ProbeReading, bank: ConceptBank, suppressed: Sequence[str]) -> bool:
        """The same on one probe set."""
        figures = reading.fractions(on, bank.names)
        unread = [name for name in suppressed if math.isnan(figures[name]["fraction"])]
        self._warn_of_unread(unread, on)
        for name in suppressed:
            if name not in unread:
                self.ringing.setdefault(name, None)
        around = {name: found for name in suppressed if (found := self._took_over(name, figures)) is not None}
        for name, (what, figure) in around.items():
            event = {"step": step, "what": what, "figure": figure, "on": on}
            self.ringing[name] = self.ringing[name] or event
            if name in self.raised:
                continue
            self.raised[name] = event
            warn(
                f"rerouting at step {step}: '{name}' is suppressed and flat ({figures[name]['fraction']:.2f} of the "
                f"way to its own texts), but {what} moved ({figure:.2f}) on the {on} probe set",
            )
        return bool(around)

    def _took_over(self, name: str, figures: Mapping[str, Mapping[str, float]]) -> tuple[str, float] | None:
        """What moved most above its threshold while the concept is flat, and how far; None where nothing did."""
        own = figures[name]
        if not own["fraction"] < self.flat:
            return None
        siblings = self.siblings.get(name, ())
        watched = [(f"its sibling '{each}'", figures[each]["fraction"], self.moved) for each in siblings]
        watched += [(f"the linear probe of '{each}'", figures[each]["probe"], self.probe_moved) for each in siblings]
        watched.append((f"the linear probe of '{name}'", own["probe"], self.probe_moved))
        watched.append(("what no concept explains", own["unexplained"], self.unexplained_moved))
        over = [(what, figure, figure / bound) for what, figure, bound in watched if figure >= bound]
        return max(over, key=lambda each: each[2])[:2] if over else None

    def _warn_of_unread(self, names: Sequence[str], on: str) -> None:
        new = [name for name in names if name not in self._unread]
        if new:
            self._unread.update(new)
            warn(
                f"the rerouting alarm cannot watch {', '.join(new)}: no fraction on the {on} probe set; "
                "give each suppressed concept a probe set of its own name",
            )

    def state_dict(self) -> dict[str, Any]:
        """What it has warned of."""
        return {"raised": {name: dict(found) for name, found in self.raised.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on without warning of the same again."""
        self.raised = {name: dict(found) for name, found in state["raised"].items()}
