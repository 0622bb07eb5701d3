"""Says once when the gains that steps achieve part from those that a rule asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

TOLERANCE = 0.1


@dataclass
class GainCheck:
    """Compares requested and achieved gains as they are logged, and speaks once a concept.

    A gain that is asked for only now and then (a one-sided rule, averaged over steps) is compared with the mean of
    what was asked for.

    Args:
        tolerance: difference of two gains that is worth a word.
    """

    tolerance: float = TOLERANCE
    _said: set[str] = field(default_factory=set)

    def parted(self, metrics: Mapping[str, float], concepts: Sequence[str]) -> str | None:
        """What to warn of, if anything new.

        Example:
            >>> check = GainCheck()
            >>> metrics = {"concept/pirate/gain": 0.0, "concept/pirate/achieved": 0.31}
            >>> check.parted(metrics, ["pirate"])
            'the achieved gain is not the requested one: pirate 0.31 in place of 0.00'
            >>> check.parted(metrics, ["pirate"]) is None
            True
        """
        found = []
        for name in concepts:
            asked, got = (metrics.get(f"concept/{name}/{key}") for key in ("gain", "achieved"))
            if asked is None or got is None or name in self._said or abs(got - asked) <= self.tolerance:
                continue
            self._said.add(name)
            found.append(f"{name} {got:.2f} in place of {asked:.2f}")
        return f"the achieved gain is not the requested one: {', '.join(found)}" if found else None
