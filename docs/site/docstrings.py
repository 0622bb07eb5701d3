"""What the package's docstrings need to be rendered: griffe's names for two of their sections."""

from __future__ import annotations

import re
from typing import Any

from griffe import Class, Extension, Object

_EXAMPLE, _ARGS = (re.compile(rf"^{section}:$", re.MULTILINE) for section in ("Example", "Args"))
_FIELDS = ("NamedTuple", "TypedDict")  # whose arguments are fields


class Docstrings(Extension):
    """Read by mkdocstrings while it collects the package."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Let one object's doctests be doctests, and the arguments of a class of fields its attributes."""
        if obj.docstring is None:
            return
        obj.docstring.value = _EXAMPLE.sub("Examples:", obj.docstring.value)
        if isinstance(obj, Class) and any(str(base) in _FIELDS for base in obj.bases):
            obj.docstring.value = _ARGS.sub("Attributes:", obj.docstring.value)
