"""Products in full float32, whatever the training loop allows its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

FULL = ("none", "ieee")


@contextmanager
def full_precision() -> Iterator[None]:
    """Let matrix products inside keep float32's own precision; a context manager and a decorator.

    `torch.set_float32_matmul_precision("high")`, which trainers recommend, rounds the factors of every float32 product
    to 11 bits or fewer: a gain of 0 would leave a thousandth of the component. What the loop has set is set again
    afterwards; where it allows nothing less, nothing is touched.

    Example:
        >>> import torch
        >>> torch.set_float32_matmul_precision("high")
        >>> with full_precision():
        ...     torch.get_float32_matmul_precision()
        'highest'
        >>> torch.get_float32_matmul_precision()
        'high'
        >>> torch.set_float32_matmul_precision("highest")
    """
    backends = _backends()
    kept, precisions = _legacy(), [backend.fp32_precision for backend in backends]
    if kept == "highest" and all(precision in FULL for precision in precisions):
        yield
        return
    if kept is None:
        _set(backends, ["ieee"] * len(backends))
    else:
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if kept is not None:
            torch.set_float32_matmul_precision(kept)
        _set(backends, precisions)


def _legacy() -> str | None:
    """What the older setting says; None where the newer ones, a backend each, contradict it."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _backends() -> list[Any]:
    """The settings that a product on a CPU or CUDA device looks at; none before torch 2.9."""
    found = (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None))
    return [backend for backend in found if hasattr(backend, "fp32_precision")]


def _set(backends: list[Any], precisions: list[str]) -> None:
    for backend, precision in zip(backends, precisions, strict=True):
        backend.fp32_precision = precision
