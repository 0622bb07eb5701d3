"""A curve in one line of a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.text import Text

WIDTH = 20  # characters; each is the mean over its stretch of values
BLOCKS = "▁▂▃▄▅▆▇█"
PLAIN = "_.-=+*%#"  # where the terminal's encoding has no blocks


class Sparkline:
    """`height = 7 (value - low) / (high - low)` in eighths of a line, with `low <= 0 <= high`.

    Args:
        values: finite; None is left out.

    Example:
        >>> Console().print(Sparkline([0.0, 1.0, None, 2.0, 7.0]))
        ▁▂▃█
    """

    def __init__(self, values: Sequence[float | None]) -> None:
        kept = np.array([value for value in values if value is not None], dtype=float)
        means = [
            float(stretch.mean()) for stretch in np.array_split(kept, min(WIDTH, max(1, len(kept)))) if len(stretch)
        ]
        low, high = min((0.0, *means)), max((0.0, *means))
        self._heights = [round(7 * (mean - low) / (high - low or 1.0)) for mean in means]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        signs = PLAIN if options.ascii_only else BLOCKS
        yield Text("".join(signs[height] for height in self._heights), no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(len(self._heights), len(self._heights))
