"""A curve in one line of a terminal."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

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
        width: characters at most.
        marked: places among the values whose stretch is shown as a warning.

    Example:
        >>> Console().print(Sparkline([0.0, 1.0, None, 2.0, 7.0]))
        ▁▂▃█
    """

    def __init__(
        self, values: Sequence[float | None], *, width: int = WIDTH, marked: Collection[int] = frozenset()
    ) -> None:
        places = [place for place, value in enumerate(values) if value is not None]
        kept = np.array([value for value in values if value is not None], dtype=float)
        count = min(width, max(1, len(kept)))
        means = [float(stretch.mean()) for stretch in np.array_split(kept, count) if len(stretch)]
        low, high = min((0.0, *means)), max((0.0, *means))
        self._heights = [round(7 * (mean - low) / (high - low or 1.0)) for mean in means]
        ends = [stretch[-1] for stretch in np.array_split(np.array(places, dtype=int), count) if len(stretch)]
        self._marked = {min(int(np.searchsorted(ends, place)), len(ends) - 1) for place in marked} if ends else set()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        signs = PLAIN if options.ascii_only else BLOCKS
        line = Text("".join(signs[height] for height in self._heights), no_wrap=True)
        for place in self._marked:
            line.stylize("bold red", place, place + 1)
        yield line

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(len(self._heights), len(self._heights))
