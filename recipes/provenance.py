"""What a report says of its origin: versions, settings, where each concept came from."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from interptrain import ConceptBank
from interptrain.recorders.document import Concept, DataFile

PACKAGES = ("interptrain", "torch", "pytorch-lightning", "transformers", "peft", "sae-lens", "wandb")


def versions() -> dict[str, str]:
    """What this ran with, of what is installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # an extra that was not asked for
            continue
    return found


def as_json(value: Any) -> Any:
    """A configuration as JSON: paths as text, dataclasses and mappings as objects, tuples as lists.

    Example:
        >>> as_json({"out": Path("runs"), "gate": ("pirate",)})
        {'out': 'runs', 'gate': ['pirate']}
    """
    match value:
        case Path():
            return str(value)
        case dict():
            return {name: as_json(each) for name, each in value.items()}
        case tuple() | list():
            return [as_json(each) for each in value]
        case _ if hasattr(type(value), "__dataclass_fields__"):
            return as_json(vars(value))
        case _:
            return value


def concept_cards(bank: ConceptBank) -> list[Concept]:
    """Where each concept of a bank came from."""
    return [
        Concept(
            name=name,
            says=_origin(bank, name),
            hook=bank.hooks[bank.rows(name)[0]],
            directions=len(bank.rows(name)),
            latents=[int(bank.sources[row]["latent"]) for row in bank.rows(name) if "latent" in bank.sources[row]],
            auc=None,
            shuffled_auc=None,
        )
        for name in bank.names
    ]


def data_file(path: Path, says: str, examples: int) -> DataFile:
    """A file of texts, or a folder of a data set, by its name and hash; of a folder, that of all its files.

    Args:
        path: of the file or folder.
        says: what it was for.
        examples: how many it held.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "sums.jsonl")
        ...     _ = file.write_text("{}")
        ...     data_file(file, "trained on", 1)["sha256"][:8]
        '44136fa3'
    """
    if path.is_dir():
        found = hashlib.sha256()
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            found.update(f"{file.relative_to(path).as_posix()} {_sha256(file)}\n".encode())
        digest = found.hexdigest()
    else:
        digest = _sha256(path)
    return DataFile(name=path.name, says=says, sha256=digest, examples=examples)


def make_folder(folder: Path) -> None:
    """Make an output folder, so that a run that cannot be kept fails before it trains.

    Raises:
        ValueError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"cannot write to '{folder}': {error}") from error


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _origin(bank: ConceptBank, name: str) -> str:
    source = bank.sources[bank.rows(name)[0]]
    known = [str(source[key]) for key in ("release", "sae_id", "neuronpedia_id") if source.get(key)]
    return " ".join([str(source.get("kind", "directions")), *known])
