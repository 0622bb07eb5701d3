"""What checks the annotations of the package while its tests run."""

from collections.abc import Callable
from typing import Any, Self, TypeVar, get_args

from beartype import beartype

Function = TypeVar("Function", bound=Callable[..., Any])


def checked(function: Function) -> Function:
    """Check a function's arguments and result with beartype, all but what only mypy can prove.

    That is `Self`, which beartype knows only where it decorates the class while jaxtyping decorates each
    method, and protocols that are not `runtime_checkable`.
    """
    function.__annotations__ = {
        name: Any if _only_mypy_knows(hint) else hint for name, hint in function.__annotations__.items()
    }
    return beartype(function)


def _only_mypy_knows(hint: object) -> bool:
    static_protocol = getattr(hint, "_is_protocol", False) and not getattr(hint, "_is_runtime_protocol", False)
    return hint is Self or static_protocol or any(_only_mypy_knows(part) for part in get_args(hint))
