"""What checks the annotations of the package while its tests run."""

from collections.abc import Callable
from typing import Any, Self, TypeVar, get_args

from beartype import beartype

Function = TypeVar("Function", bound=Callable[..., Any])


def checked(function: Function) -> Function:
    """Check a function's arguments and result with beartype, all but `Self`, which mypy proves.

    jaxtyping decorates each method by itself, and beartype knows `Self` only where it decorates the class.
    """
    function.__annotations__ = {
        name: Any if _mentions_self(hint) else hint for name, hint in function.__annotations__.items()
    }
    return beartype(function)


def _mentions_self(hint: object) -> bool:
    return hint is Self or any(_mentions_self(part) for part in get_args(hint))
