"""A steering state as one file: tensors as safetensors, the rest as JSON in its header."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

STATE_SCHEMA = 1
_TENSOR = "tensor:"


def save_state(state: Mapping[str, Any], path: str | Path) -> Path:
    """Write a steering state; the file is there whole or not at all.

    Args:
        state: nested mappings and lists of tensors and JSON values.
        path: of the file.

    Raises:
        OSError: it cannot be written.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_state({"steps": [3], "probes": {"start": torch.ones(2)}}, f"{folder}/s.safetensors")
        ...     load_state(path)
        {'steps': [3], 'probes': {'start': tensor([1., 1.])}}
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_taken_apart(state, tensors))
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    try:
        save_file(tensors, part, {"schema": str(STATE_SCHEMA), "state": text})
    except SafetensorError as error:
        part.unlink(missing_ok=True)
        raise OSError(f"cannot write '{path}': {error}") from error
    os.replace(part, path)
    return path


def load_state(path: str | Path) -> dict[str, Any]:
    """Read a steering state that `save_state` wrote.

    Raises:
        ValueError: there is no such file, it is damaged or none of ours, or it has another schema.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
        if header.get("schema") != str(STATE_SCHEMA):
            raise ValueError(f"expected a steering state of schema {STATE_SCHEMA}, found {header.get('schema')}")
        return _put_together(json.loads(header["state"]), tensors)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"cannot read the steering state in '{path}': {error}") from error


def _taken_apart(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[str(len(tensors))] = value.detach().cpu().contiguous().clone()  # no two may share memory
        return f"{_TENSOR}{len(tensors) - 1}"
    if isinstance(value, Mapping):
        return {key: _taken_apart(each, tensors) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_taken_apart(each, tensors) for each in value]
    return f"{_TENSOR}{value}" if isinstance(value, str) and value.startswith(_TENSOR) else value


def _put_together(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        return {key: _put_together(each, tensors) for key, each in value.items()}
    if isinstance(value, list):
        return [_put_together(each, tensors) for each in value]
    if isinstance(value, str) and value.startswith(_TENSOR):
        name = value.removeprefix(_TENSOR)
        return name if name.startswith(_TENSOR) else tensors[name]
    return value
