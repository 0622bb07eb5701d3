"""What the meters of fixed texts read, as a report takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from interptrain.meters.realised import Shift
from interptrain.meters.unexplained import Unexplained
from interptrain.report import Measured, Plain


@dataclass(frozen=True, eq=False)
class ProbeReading:
    """What the probe sets are now, against before training.

    Args:
        realised: by set, how far it moved along each concept.
        fraction: that, as a share of the way to the concept's own texts; NaN where it has none.
        latents: change of the mean activation of each concept's latents; NaN where it is no group of latents.
        unexplained: by set, how much of its move lies outside all concepts.
        probe: each concept's linear probe: 0 the neutral set, 1 the concept's own set, both before training.
        explained: of each SAE the share of the activations' variance that it reconstructs, now and before training.
        watch: by `PROBE/SET` what fitted probes of texts see, on the same scale; NaN where none watches a concept.
    """

    realised: Mapping[str, Shift]
    fraction: Float[Tensor, "set concept"]
    latents: Float[Tensor, "set concept"]
    unexplained: Mapping[str, Unexplained]
    probe: Float[Tensor, "set concept"]
    explained: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)
    watch: Mapping[str, Float[Tensor, "concept"]] = field(default_factory=dict)

    def readings(self) -> dict[str, Measured]:
        """What belongs to a concept, as a report takes it: `realised/SET`, `realised/SET/fraction`, ..."""
        found: dict[str, Measured] = {}
        for number, (name, shift) in enumerate(self.realised.items()):
            found[f"realised/{name}"] = shift
            found[f"realised/{name}/fraction"] = Plain(self.fraction[number])
            found[f"realised/{name}/latents"] = Plain(self.latents[number])
            found[f"probe/{name}"] = Plain(self.probe[number])
            found[f"unexplained/{name}/strength"] = Plain(self.unexplained[name].strength)
        return found | {f"watch/{name}": Plain(value) for name, value in self.watch.items()}

    def overall(self) -> dict[str, Float[Tensor, ""]]:
        """What belongs to no concept: `unexplained/SET` with its null and z, and `sae/HOOK/explained`."""
        moved = {
            f"unexplained/{name}{suffix}": value
            for name, found in self.unexplained.items()
            for suffix, value in found.metrics().items()
        }
        return {**moved, **self.explained}

    def fractions(self, on: str, concepts: Sequence[str]) -> dict[str, dict[str, float]]:
        """By concept, its `fraction`, `probe` and `unexplained` strength on one set, in one transfer.

        Raises:
            ValueError: there is no such set.
        """
        if on not in self.realised:
            raise ValueError(f"there is no probe set '{on}'; there are {', '.join(self.realised)}")
        number = list(self.realised).index(on)
        table = torch.stack([self.fraction[number], self.probe[number], self.unexplained[on].strength]).T.tolist()
        keys = ("fraction", "probe", "unexplained")
        return {name: dict(zip(keys, row, strict=True)) for name, row in zip(concepts, table, strict=True)}
