"""`attribution.html`: examples ranked by what they ask of a concept, each word shaded; no larger for more data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interptrain.recorders.pages import write_page
from interptrain.recorders.tokens import Values, largest

LOW, HIGH, BINS = -6.0, 12.0, 72
WIDTH, HEIGHT = 400, 110


@dataclass(eq=False)
class Histogram:
    """Counts of values in equal bins; what lies beyond the last bin on either side counts in it.

    Example:
        >>> found = Histogram()
        >>> found.add(torch.tensor([0.1, 0.1, 99.0, torch.nan]))
        >>> int(found.counts.sum()), int(found.counts[-1])
        (3, 1)
    """

    counts: Float[Tensor, "bin"] = field(default_factory=lambda: torch.zeros(BINS))

    def add(self, values: Float[Tensor, "*value"]) -> None:
        """Count some values; NaN is none."""
        kept = values[values.isfinite()].flatten().float().clamp(LOW, HIGH)
        self.counts += torch.histc(kept, BINS, LOW, HIGH)

    def heights(self) -> Float[Tensor, "bin"]:
        """Square roots of the shares of all values, so that a few of many are seen."""
        return (self.counts / self.counts.sum().clamp_min(1)).sqrt()


class Shown(NamedTuple):
    """One example on the page.

    Args:
        line: its line in the data.
        figures: `signed`, `z`, `share` and `share_null`.
        tokens: as they stand in the text.
        values: the figure that shades each; None for the prompt's.
    """

    line: int
    figures: Mapping[str, float]
    tokens: Sequence[str]
    values: Values


class Ranking(NamedTuple):
    """One concept's part of the page.

    Args:
        concept: its name.
        hook: where it was read.
        above: share of the examples above the bar.
        z: of the examples.
        null: of the null groups.
        groups: what is shown, by what it is.
    """

    concept: str
    hook: str
    above: float
    z: Histogram
    null: Histogram
    groups: Mapping[str, Sequence[Shown]]


def write_attribution(path: Path, rankings: Sequence[Ranking], *, bar: float, **words: Any) -> Path:
    """Write the page.

    Args:
        path: the file.
        rankings: a part for each concept.
        bar: `z` above which an example stands out.
        words: `title`, `summary`, `shade` (`demand` or `said`: what the words are shaded by), `rule` (what was done
            with the data) and `more` (what is not shown).
    """
    parts = [
        {
            "ranking": each, "drawing": _drawing(each, bar),
            "most": largest(shown.values for group in each.groups.values() for shown in group),
        }
        for each in rankings
    ]  # fmt: skip
    return write_page(path, "attribution.html", parts=parts, bar=bar, width=WIDTH, height=HEIGHT, **words)


def _drawing(ranking: Ranking, bar: float) -> dict[str, Any]:
    """Outlines of both histograms as paths, and the axis."""
    z, null = ranking.z.heights(), ranking.null.heights()
    top = float(torch.cat([z, null]).max().clamp_min(1e-6))
    ticks = [(value, _x(float(value))) for value in range(int(LOW) + 2, int(HIGH), 2)]
    return {"z": _outline(z / top), "null": _outline(null / top), "ticks": ticks, "bar": _x(bar)}


def _x(value: float) -> float:
    return round((value - LOW) / (HIGH - LOW) * WIDTH, 1)


def _outline(heights: Float[Tensor, "bin"]) -> str:
    step = WIDTH / BINS
    points = [f"V{HEIGHT * (1 - float(height)):.1f}H{(n + 1) * step:.1f}" for n, height in enumerate(heights)]
    return f"M0 {HEIGHT}{''.join(points)}V{HEIGHT}Z"
