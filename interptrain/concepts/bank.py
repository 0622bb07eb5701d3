"""Concepts: a name, unit directions in the residual stream, and where each came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from rich.jupyter import JupyterMixin
from rich.markup import escape
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

BANK_SCHEMA = 1
_JSON, _TENSORS, _READOUTS = "bank.json", "bank.safetensors", "readouts.safetensors"


@dataclass(frozen=True, eq=False)
class Readout:
    """What measures a concept's activation later: the whole dictionary the concept was taken from.

    Where latents compete (top-k), an activation depends on every encoder row, so the SAE is kept whole.

    Args:
        config: the SAE's own configuration, as JSON.
        weights: its tensors by name; `W_dec` has shape `[latent, d_model]`.
        alive: latents that fire at all; null distributions are drawn from these.
        reads: the hook point where it encodes, if that is not where its rows lie: a transcoder's input, or the heads'
            outputs.
        into_stream: what takes decoder rows into the residual stream, if they do not lie there: `W_O^T`.
    """

    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    alive: Bool[Tensor, "latent"]
    reads: str | None = None
    into_stream: Float[Tensor, "d_dec d_model"] | None = None

    @property
    def decoder(self) -> Float[Tensor, "latent d_model"]:
        """What each latent writes to the stream: `W_dec`, or `W_dec W_O^T`."""
        rows = self.weights["W_dec"].float()
        return rows if self.into_stream is None else rows @ self.into_stream

    @property
    def directions(self) -> Float[Tensor, "latent d_model"]:
        """Unit decoder rows of every latent, in the stream."""
        return unit_rows(self.decoder)

    def rows(self, latents: Int[Tensor, "some"]) -> Float[Tensor, "some d_model"]:
        """Unit decoder rows of some latents, on the CPU, without a copy of the others."""
        decoder = self.weights["W_dec"]
        chosen = decoder[latents.to(decoder.device)].float().cpu()
        return unit_rows(chosen if self.into_stream is None else chosen @ self.into_stream.cpu())


@dataclass(frozen=True, eq=False)
class ConceptBank(JupyterMixin):
    """Named concepts and their unit directions; frozen, and the same on every machine.

    A concept is one or more rows. Rows need not be orthogonal: everything that uses a bank goes through
    the Gram matrix `D D^T`, so a direction that two latents share is never counted twice.

    Args:
        directions: unit rows `D`, one a direction.
        concepts: the concept of each row.
        hooks: the hook point of each row, as SAELens or Hugging Face names it.
        sources: where each row came from, as JSON.
        model: the model the directions belong to, if known; a different one is refused later.
        readouts: for a hook, what measures activations there.

    Example:
        >>> import torch
        >>> bank = ConceptBank.from_directions({"pirate": torch.eye(4)[:2], "sums": torch.ones(4)},
        ...                                    hook="blocks.1.hook_resid_post")
        >>> bank.names, bank.d_model, bank.rows("pirate")
        (('pirate', 'sums'), 4, (0, 1))
        >>> bank.select("sums").directions
        tensor([[0.5000, 0.5000, 0.5000, 0.5000]])
    """

    directions: Float[Tensor, "direction d_model"]
    concepts: tuple[str, ...]
    hooks: tuple[str, ...]
    sources: tuple[Mapping[str, Any], ...]
    model: str | None = None
    readouts: Mapping[str, Readout] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = len(self.directions)
        for what, values in (("concepts", self.concepts), ("hooks", self.hooks), ("sources", self.sources)):
            if len(values) != rows:
                raise ValueError(f"a bank of {rows} directions needs {rows} {what}, found {len(values)}")
        norms = self.directions.norm(dim=-1)
        if not torch.allclose(norms, torch.ones_like(norms), atol=1e-4):
            raise ValueError("directions must be unit rows; ConceptBank.from_directions normalises them")

    @classmethod
    def from_directions(
        cls,
        directions: Mapping[str, Tensor],
        *,
        hook: str,
        source: Mapping[str, Any] | None = None,
        model: str | None = None,
    ) -> ConceptBank:
        """Make a bank of `{"name": [d_model] or [direction, d_model]}`; rows are scaled to unit length.

        Raises:
            ValueError: no concepts, an empty, zero or non-finite direction, or widths that differ.
        """
        if not directions:
            raise ValueError("a bank needs at least one concept, found none")
        stacked: list[Tensor] = []
        names: list[str] = []
        for name, tensor in directions.items():
            rows = torch.atleast_2d(tensor.detach()).float().cpu()
            if rows.ndim != 2 or rows.numel() == 0:
                raise ValueError(
                    f"concept '{name}' needs a tensor [d_model] or [direction, d_model], found {list(tensor.shape)}"
                )
            if stacked and rows.shape[1] != stacked[0].shape[1]:
                raise ValueError(
                    f"concept '{name}' has width {rows.shape[1]} but '{names[0]}' has {stacked[0].shape[1]}; "
                    "one bank holds the directions of one model"
                )
            try:
                stacked.append(unit_rows(rows))
            except ValueError as error:
                raise ValueError(f"concept '{name}': {error}") from None
            names += [name] * len(rows)
        given = dict(source or {"kind": "directions"})
        return cls(
            directions=torch.cat(stacked),
            concepts=tuple(names),
            hooks=(hook,) * len(names),
            sources=(given,) * len(names),
            model=model,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Concepts in the order of their first row."""
        return tuple(dict.fromkeys(self.concepts))

    @property
    def d_model(self) -> int:
        """Width of the residual stream the directions live in."""
        return self.directions.shape[1]

    @property
    def hook_points(self) -> tuple[str, ...]:
        """Hook points in the order of their first row."""
        return tuple(dict.fromkeys(self.hooks))

    def digest(self) -> str:
        """Tells this bank's directions from any others: a hash of names, hooks and directions."""
        found = hashlib.sha256(json.dumps([self.concepts, self.hooks]).encode())
        found.update(self.directions.cpu().contiguous().numpy().tobytes())
        return found.hexdigest()

    def rows(self, name: str, hook: str | None = None) -> tuple[int, ...]:
        """Row numbers of a concept, at one hook if given.

        Raises:
            ValueError: the bank has no such concept.
        """
        if name not in self.concepts:
            raise ValueError(f"unknown concept '{name}'; this bank has {', '.join(self.names)}")
        return tuple(
            row
            for row, (concept, at) in enumerate(zip(self.concepts, self.hooks, strict=True))
            if concept == name and hook in (None, at)
        )

    def select(self, *names: str) -> ConceptBank:
        """The bank of these concepts alone, in this order; read-outs stay."""
        return self.take([row for name in names for row in self.rows(name)])

    def at_hook(self, hook: str) -> ConceptBank:
        """The bank of the rows at one hook point."""
        return self.take([row for row, at in enumerate(self.hooks) if at == hook])

    def concept_at(self, name: str, hook: str) -> ConceptBank:
        """The bank of one concept's rows at one hook point.

        Raises:
            ValueError: the bank has no such concept, or none of its directions there.
        """
        own = self.select(name)
        if hook not in own.hooks:
            found = ", ".join(own.hook_points)
            raise ValueError(f"concept '{name}' has no directions at '{hook}'; it has some at {found}")
        return own.at_hook(hook)

    def take(self, rows: Sequence[int]) -> ConceptBank:
        """The bank of these rows, in this order; read-outs stay."""
        return replace(
            self,
            directions=self.directions[list(rows)],
            concepts=tuple(self.concepts[row] for row in rows),
            hooks=tuple(self.hooks[row] for row in rows),
            sources=tuple(self.sources[row] for row in rows),
        )

    def merge(self, other: ConceptBank) -> ConceptBank:
        """Both banks' rows in one; same width and model, e.g. the same concepts at a second hook.

        Raises:
            ValueError: widths or models differ, or both hold another read-out for one hook.
        """
        if other.d_model != self.d_model:
            raise ValueError(f"cannot merge a bank of width {other.d_model} into one of width {self.d_model}")
        if self.model and other.model and self.model != other.model:
            raise ValueError(f"cannot merge a bank of model '{other.model}' into one of model '{self.model}'")
        for hook in self.readouts.keys() & other.readouts.keys():
            if self.readouts[hook] is not other.readouts[hook]:
                raise ValueError(f"both banks bring a read-out for '{hook}'; keep one of them")
        return replace(
            self,
            directions=torch.cat([self.directions, other.directions]),
            concepts=self.concepts + other.concepts,
            hooks=self.hooks + other.hooks,
            sources=self.sources + other.sources,
            model=self.model or other.model,
            readouts={**self.readouts, **other.readouts},
        )

    def __rich__(self) -> Table:
        """A row a concept and hook: how many directions, and where the first of them came from."""
        table = Table(title=f"{len(self.names)} concepts, {len(self.directions)} directions of width {self.d_model}")
        for column in ("concept", "hook", "directions", "latents", "source"):
            table.add_column(column, justify="right" if column == "directions" else "left", overflow="fold")
        for name, hook in dict.fromkeys(zip(self.concepts, self.hooks, strict=True)):
            rows = self.rows(name, hook)
            latents = ", ".join(str(self.sources[row]["latent"]) for row in rows if "latent" in self.sources[row])
            source = self.sources[rows[0]]
            said = " ".join(str(source[key]) for key in ("kind", "release", "sae_id") if source.get(key))
            table.add_row(*map(escape, (name, hook, str(len(rows)), latents, said)))
        return table

    def save(self, folder: str | Path) -> Path:
        """Write the bank to a folder: `bank.json`, `bank.safetensors` and, with them, the read-outs.

        Raises:
            ValueError: the folder cannot be written.
        """
        folder = Path(folder)
        readouts = {hook: {"config": dict(r.config), "reads": r.reads} for hook, r in self.readouts.items()}
        document = {
            "schema": BANK_SCHEMA, "model": self.model, "concepts": self.concepts, "hooks": self.hooks,
            "sources": [dict(source) for source in self.sources], "readouts": readouts,
        }  # fmt: skip
        tensors = {
            f"{number}.{name}": tensor.contiguous()
            for number, readout in enumerate(self.readouts.values())
            for name, tensor in _tensors_of(readout).items()
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / _JSON).write_text(json.dumps(document, indent=1))
            save_file({"directions": self.directions.contiguous()}, folder / _TENSORS)
            save_file(tensors, folder / _READOUTS)
        except OSError as error:
            raise ValueError(f"cannot write a bank to '{folder}': {error}") from error
        except SafetensorError as error:  # safetensors wraps the operating system's errors
            raise ValueError(f"cannot write a bank to '{folder}': {error}") from error
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> ConceptBank:
        """Read a bank that `save` wrote.

        Raises:
            ValueError: a file is missing, truncated, not safetensors or JSON, or of another schema.
        """
        folder = Path(folder)
        document = _read_json(folder / _JSON)
        if document.get("schema") != BANK_SCHEMA:
            raise ValueError(
                f"'{folder / _JSON}' has schema {document.get('schema')!r}, this version reads {BANK_SCHEMA}"
            )
        lost = [key for key in ("model", "concepts", "hooks", "sources", "readouts") if key not in document]
        if lost:
            raise ValueError(f"'{folder / _JSON}' lacks {', '.join(lost)}; was it edited?")
        tensors = _read_tensors(folder / _READOUTS)
        readouts = {}
        for number, (hook, entry) in enumerate(document["readouts"].items()):
            prefix = f"{number}."
            weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            alive, into_stream = weights.pop("alive"), weights.pop("into_stream", None)
            readouts[hook] = Readout(entry["config"], weights, alive, entry.get("reads"), into_stream)
        stored = _read_tensors(folder / _TENSORS)
        if "directions" not in stored:
            raise ValueError(f"'{folder / _TENSORS}' holds no tensor 'directions'; is it a bank?")
        return cls(
            directions=stored["directions"],
            concepts=tuple(document["concepts"]),
            hooks=tuple(document["hooks"]),
            sources=tuple(document["sources"]),
            model=document["model"],
            readouts=readouts,
        )


def unit_rows(rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    """Scale each row to length 1.

    Raises:
        ValueError: a row is zero or not finite, so that it points nowhere.
    """
    norms = rows.norm(dim=-1, keepdim=True)
    bad = ~(torch.isfinite(norms) & (norms > 0)).flatten()
    if bad.any():
        raise ValueError(f"row {int(bad.nonzero()[0])} is zero or not finite and has no direction")
    return rows / norms


def _tensors_of(readout: Readout) -> dict[str, Tensor]:
    found = {**readout.weights, "alive": readout.alive}
    return found if readout.into_stream is None else {**found, "into_stream": readout.into_stream}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"'{path}' does not exist; ConceptBank.save writes it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"'{path}' is not JSON ({error}); was it truncated?") from error
    if not isinstance(document, dict):
        raise ValueError(f"'{path}' holds a {type(document).__name__}, expected an object")
    return document


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(f"'{path}' does not exist; ConceptBank.save writes it") from None
    except SafetensorError as error:
        raise ValueError(f"'{path}' is not a whole safetensors file ({error}); was it truncated?") from error
