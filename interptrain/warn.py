"""Warnings that point at the line of the user's or of the trainer's that led here, not at ours."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

from interptrain.processes import rank


def warn(message: str) -> None:
    """Warn with the nearest line outside this package and torch, whose decorators and hooks lie between.

    Of several processes, which all come to know the same, the first alone speaks.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn("the alarm rang")
        >>> str(caught[0].message)
        'the alarm rang'
    """
    if rank() > 0:
        return
    inside, level = (__name__.partition(".")[0], "torch"), 1
    frame: FrameType | None = sys._getframe()
    while frame is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] in inside:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
