"""Explained: how much of the activations at its hook point an SAE still reconstructs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interptrain.concepts.activation import TOKENS, encodes_tokens
from interptrain.concepts.bank import ConceptBank, Readout
from interptrain.meters.tokens import ordinary_tokens

ENOUGH = 2048  # tokens of a set: the figure's spread over texts is smaller than what it is read for by then


@dataclass
class ExplainedVariance:
    """The share of some activations' variance that is in their reconstruction, of parts that come one after another.

        explained = 1 - sum_t ||y_t - y'_t||^2 / sum_t ||y_t - mean(y)||^2

    1 is all of it, 0 no better than the mean, below 0 worse. Squares are taken about the mean of the first part, so
    that a large mean costs no precision.

    Example:
        >>> found = ExplainedVariance()
        >>> y = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> found.add(y, y * torch.tensor([1.0, 0.0]))
        >>> found.tokens, found.value()
        (4, tensor(0.5000))
    """

    tokens: int = 0
    _lost: list[Tensor] = field(default_factory=list)
    _about: list[Tensor] = field(default_factory=list)
    _sums: list[Tensor] = field(default_factory=list)
    _origin: Tensor | None = None

    def add(self, target: Float[Tensor, "token width"], rebuilt: Float[Tensor, "token width"]) -> None:
        """Take some tokens' activations and what was made of them."""
        if len(target) == 0:
            return
        target = target.float()
        if self._origin is None:
            self._origin = target.mean(0)
        moved = target - self._origin
        self._lost.append((target - rebuilt.float()).square().sum())
        self._about.append(moved.square().sum())
        self._sums.append(moved.sum(0))
        self.tokens += len(target)

    def value(self) -> Float[Tensor, ""]:
        """The share; NaN where there is nothing to explain."""
        if self.tokens < 2:
            return torch.tensor(torch.nan)
        variance = torch.stack(self._about).sum() - torch.stack(self._sums).sum(0).square().sum() / self.tokens
        return torch.where(variance > 0, 1 - torch.stack(self._lost).sum() / variance, torch.nan)


@dataclass(frozen=True)
class Reconstruction:
    """What a read-out reconstructs of what: an SAE what it reads, a transcoder what is put out where its rows lie.

    Args:
        hook: the read-out's, in the bank.
        reads: the hook point that it is given.
        target: the hook point that it reconstructs.
    """

    hook: str
    reads: str
    target: str

    @classmethod
    def of(cls, hook: str, readout: Readout) -> Reconstruction:
        """Of the read-out at a hook."""
        reads = readout.reads or hook
        return cls(hook, reads, hook if "transcoder" in readout.config["architecture"] else reads)


def reconstructions(bank: ConceptBank) -> tuple[Reconstruction, ...]:
    """Those of a bank's read-outs that reconstruct token by token; a temporal SAE does not.

    Example:
        >>> reconstructions(ConceptBank.from_directions({"pirate": torch.ones(4)}, hook="blocks.0.hook_resid_post"))
        ()
    """
    readouts = ((hook, bank.readouts[hook]) for hook in bank.hook_points if hook in bank.readouts)
    whole = ((hook, each) for hook, each in readouts if encodes_tokens(each) and "architecture" in each.config)
    return tuple(Reconstruction.of(hook, readout) for hook, readout in whole)


@torch.no_grad()
def add_reconstruction(
    found: ExplainedVariance,
    sae: nn.Module,
    given: Float[Tensor, "token d_in"],
    target: Float[Tensor, "token d_out"],
) -> None:
    """Add what an SAE makes of some tokens, in its own precision, a part at a time."""
    there, precision = sae.to(given.device), next(sae.parameters()).dtype
    with torch.autocast(given.device.type, enabled=False):
        for x, y in zip(given.split(TOKENS), target.split(TOKENS), strict=True):
            found.add(y, there(x.to(precision)))


class ExplainedMeter:
    """Explained variance of each of a bank's SAEs on probe texts, now and before training.

    It looks at the passes that `ProbeSets.means` makes, at every attended token but for BOS and tokens of outlying
    norm, up to about 2048 of them. While it stays at its start value, the SAE's latents mean what they meant; where it
    falls, the model has left what the SAE was trained on, and what its latents say is worth as much less.

    Args:
        bank: whose read-outs are SAEs; others are passed over.
        sets: the probe sets to look at.
    """

    def __init__(self, bank: ConceptBank, sets: Sequence[str]) -> None:
        self._readouts, self._sets = bank.readouts, frozenset(sets)
        self._of = reconstructions(bank)
        self._found: dict[str, ExplainedVariance] = {}
        self.start: dict[str, Tensor] = {}

    @property
    def places(self) -> tuple[str, ...]:
        """The hook points that it wants."""
        return tuple(dict.fromkeys(place for each in self._of for place in (each.reads, each.target)))

    def take(self, name: str, counted: Bool[Tensor, "batch token"], caught: Mapping[str, Tensor]) -> None:
        """Take one pass of a probe set; what is enough already, or of other sets, is let go by."""
        from interptrain.concepts.saelens import shared_sae

        if name not in self._sets:
            return
        for each in self._of:
            found = self._found.setdefault(each.hook, ExplainedVariance())
            if found.tokens >= ENOUGH:
                continue
            target = caught[each.target].detach()
            chosen = counted.to(target.device) & ordinary_tokens(target)
            given = caught[each.reads].detach()[chosen]
            add_reconstruction(found, shared_sae(self._readouts[each.hook]), given, target[chosen])

    def read(self) -> dict[str, Float[Tensor, ""]]:
        """The explained variance by hook point since the last reading; the first reading is kept as `start`."""
        found, self._found = self._found, {}
        values = {hook: each.value() for hook, each in found.items()}
        self.start = self.start or values
        return values

    def metrics(self, values: Mapping[str, Float[Tensor, ""]]) -> dict[str, Float[Tensor, ""]]:
        """A reading beside the start, by metric name: `sae/HOOK/explained`, `sae/HOOK/explained/start`."""
        now = {f"sae/{hook}/explained": value for hook, value in values.items()}
        before = {f"sae/{hook}/explained/start": self.start[hook].to(value) for hook, value in values.items()}
        return now | before
