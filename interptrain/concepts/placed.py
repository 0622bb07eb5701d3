"""A probe of texts and where it reads, kept as a folder of safetensors and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from interptrain.concepts.attention_probe import AttentionProbe
from interptrain.concepts.latent_probe import LatentProbe
from interptrain.concepts.text_probe import PooledProbe, TextProbe
from interptrain.sites.reading import reading_point

PROBE_SCHEMA = 1
_JSON, _TENSORS = "probe.json", "probe.safetensors"


@dataclass(frozen=True, eq=False)
class PlacedProbe:
    """A probe of texts, the hook point whose activations it takes, and its name.

    Args:
        probe: fitted.
        hook: e.g. `blocks.2.hook_resid_post`; of a probe of latents, where their rows lie.
        name: that its curves are logged under.
        source: how it was fitted, as JSON.
        model: that it was fitted on, if known.

    Raises:
        ValueError: the hook point is none, or the name is empty or has a slash.

    Example:
        >>> import tempfile
        >>> probe = PooledProbe(torch.tensor([1.0, 2.0]), torch.tensor(0.5), "mean")
        >>> placed = PlacedProbe(probe, "blocks.1.hook_resid_post", "mean")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     PlacedProbe.load(placed.save(Path(folder, "mean"))).probe
        PooledProbe(weight=tensor([1., 2.]), bias=tensor(0.5000), pool='mean')
    """

    probe: TextProbe
    hook: str
    name: str
    source: Mapping[str, Any] | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        reading_point(self.hook)
        if not self.name or "/" in self.name:
            raise ValueError(f"a probe's name is a part of its curves' names: expected a word, found {self.name!r}")

    @property
    def of_latents(self) -> LatentProbe | None:
        """The probe where it takes latents, whose dictionary must encode first."""
        return self.probe if isinstance(self.probe, LatentProbe) else None

    def tensors(self) -> dict[str, Tensor]:
        """Everything that was fitted, by name."""
        return _apart(self.probe)[1]

    def same_as(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether these are this probe's own tensors."""
        own = self.tensors()
        return own.keys() == tensors.keys() and all(torch.equal(own[k].cpu(), tensors[k].cpu()) for k in own)

    def save(self, folder: str | Path) -> Path:
        """Write the probe to a folder: `probe.json` and `probe.safetensors`.

        Raises:
            ValueError: the folder cannot be written.
        """
        folder = Path(folder)
        form, tensors = _apart(self.probe)
        document = {
            "schema": PROBE_SCHEMA, "name": self.name, "hook": self.hook, "model": self.model,
            "source": dict(self.source or {}), **form,
        }  # fmt: skip
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / _JSON).write_text(json.dumps(document, indent=1) + "\n")
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / _TENSORS)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"cannot write a probe to '{folder}': {error}") from error
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> PlacedProbe:
        """Read a probe that `save` wrote.

        Raises:
            ValueError: a file is missing, damaged, of another schema, or of a kind that is not known.
        """
        folder = Path(folder)
        try:
            document, tensors = json.loads((folder / _JSON).read_text()), load_file(folder / _TENSORS)
            if document["schema"] != PROBE_SCHEMA:
                raise ValueError(f"it has schema {document['schema']!r}, this version reads {PROBE_SCHEMA}")
            probe = _together(document, tensors)
            return cls(probe, document["hook"], document["name"], document["source"], document["model"])
        except KeyError as error:
            raise ValueError(f"cannot read a probe from '{folder}': it lacks {error}; was it edited?") from None
        except (OSError, SafetensorError, ValueError, TypeError) as error:
            raise ValueError(f"cannot read a probe from '{folder}': {error}") from error


def _apart(probe: TextProbe) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A probe as JSON and tensors.

    Raises:
        TypeError: it is of a kind that has no file.
    """
    match probe:
        case PooledProbe(weight, bias, pool):
            return {"kind": "pooled", "pool": pool}, {"weight": weight, "bias": bias}
        case AttentionProbe(query, value, bias):
            return {"kind": "attention"}, {"query": query, "value": value, "bias": bias}
        case LatentProbe():
            inner, tensors = _apart(probe.inner)
            own = {"latents": probe.latents, "decoder": probe.decoder, "difference": probe.difference}
            form = {"kind": "latents", "dictionary": probe.dictionary, "inner": inner}
            return form, own | {f"inner.{name}": tensor for name, tensor in tensors.items()}
    raise TypeError(f"a {type(probe).__name__} has no file; expected one that fit_probe made")


def _together(form: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TextProbe:
    match form["kind"]:
        case "pooled":
            if form["pool"] not in ("mean", "max"):
                raise ValueError(f"a text is pooled by mean or max, found {form['pool']!r}")
            return PooledProbe(_vector(tensors, "weight"), tensors["bias"], form["pool"])
        case "attention":
            query, value = tensors["query"], tensors["value"]
            if query.ndim != 2 or query.shape != value.shape:
                raise ValueError(f"queries of shape {list(query.shape)} do not go with values {list(value.shape)}")
            return AttentionProbe(query, value, tensors["bias"])
        case "latents":
            prefix = "inner."
            own = {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
            inner = _together(form["inner"], own)
            latents, decoder = tensors["latents"], tensors["decoder"]
            if not isinstance(inner, PooledProbe | AttentionProbe) or not len(latents) == len(decoder) == inner.width:
                raise ValueError(f"{len(latents)} latents, {len(decoder)} decoder rows and a probe do not fit together")
            return LatentProbe(latents, decoder, tensors["difference"], inner, int(form["dictionary"]))
    raise ValueError(f"it is of the kind {form['kind']!r}, which this version does not know")


def _vector(tensors: Mapping[str, Tensor], name: str) -> Float[Tensor, "width"]:
    if tensors[name].ndim != 1:
        raise ValueError(f"'{name}' has shape {list(tensors[name].shape)}, expected one axis")
    return tensors[name]
