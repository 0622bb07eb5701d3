"""Watchers: fitted probes of texts that look at the probe sets while the model trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interptrain.concepts.activation import encodes_tokens, latents_of
from interptrain.concepts.bank import ConceptBank, Readout
from interptrain.concepts.contrast import TextActivations
from interptrain.concepts.placed import PlacedProbe
from interptrain.meters.probes import ProbeSets

Watchers = Mapping[str, PlacedProbe | Sequence[PlacedProbe]]
_SAME_ROW = 0.999  # cosine between a probe's decoder row and the read-out's: another SAE's is far below


@dataclass(frozen=True, eq=False)
class _Watcher:
    """A probe that watches a concept, and the dictionary that encodes for it, if it takes latents.

    Args:
        concept: that it watches.
        placed: the probe.
        readout: of the bank, where the probe takes latents.
    """

    concept: str
    placed: PlacedProbe
    readout: Readout | None

    @property
    def key(self) -> str:
        """Tells it from others."""
        return f"{self.concept}/{self.placed.name}"

    @property
    def place(self) -> str:
        """Where it reads."""
        reads = None if self.readout is None else self.readout.reads
        return reads or self.placed.hook

    def score(self, texts: TextActivations) -> Float[Tensor, "text"]:
        """Of activations at its place.

        Raises:
            ValueError: they have another width than those it was fitted on.
        """
        width = self.placed.probe.width if self.readout is None else int(self.readout.config["d_in"])
        if texts.values.shape[1] != width:
            raise ValueError(
                f"watcher '{self.placed.name}' of '{self.concept}' reads activations of width {width}, but the model "
                f"has {texts.values.shape[1]} at '{self.place}'; was the probe fitted on another model?"
            )
        return self.placed.probe.score(texts if self.readout is None else _encoded(self.readout, texts))


class WatchMeter:
    """Scores of fitted probes on the probe sets, scaled by where those stood before training.

        watch = (s - s_neutral) / (s_own - s_neutral)      s: a set's mean score; the others are those before training

    0 is the neutral set, 1 the concept's own set, both before training. A watcher looks at the tokens that the probe
    sets count, text by text, and at nothing else of the bank: it notices what comes by other directions than those of
    the bank. It looks at the passes that `ProbeSets.means` makes.

    Args:
        watchers: by concept, one probe or several with names of their own.
        bank: the concepts; of probes that take latents, it must hold the dictionary.
        probes: the texts; `neutral` and each watched concept's own set must be there.

    Raises:
        ValueError: a concept is not in the bank or has no set, two watchers of a concept have one name, or a probe's
            latents are not those of the bank's dictionary at its hook point.
        TypeError: a watcher is no `PlacedProbe`.
    """

    def __init__(self, watchers: Watchers, bank: ConceptBank, probes: ProbeSets) -> None:
        self._names, self._probes = bank.names, probes
        self._of = _checked(watchers, bank, probes.names)
        self._found: dict[str, dict[str, list[Tensor]]] = {}
        self._seen: dict[str, int] = {}
        self.start: dict[str, dict[str, Tensor]] = {}

    @property
    def places(self) -> tuple[str, ...]:
        """The hook points that it wants."""
        return tuple(dict.fromkeys(each.place for each in self._of))

    def take(self, name: str, counted: Bool[Tensor, "batch token"], caught: Mapping[str, Tensor]) -> None:
        """Score the texts of one pass, at the tokens that their set counts."""
        number = self._seen.get(name, 0)
        self._seen[name] = number + 1
        positions = self._probes.positions[name][number]  # on the host, so that nothing waits for a device
        positions = positions[counted.flatten()[positions]]
        if len(positions) == 0:
            return
        text = (positions // counted.shape[1]).unique_consecutive(return_inverse=True)[1]
        for each in self._of:
            there = caught[each.place].detach()
            values = there.flatten(0, 1).index_select(0, positions.to(there.device, non_blocking=True)).float()
            scores = each.score(TextActivations(values, text))
            self._found.setdefault(each.key, {}).setdefault(name, []).append(scores)

    def read(self) -> dict[str, dict[str, Float[Tensor, ""]]]:
        """By watcher and set, the mean score since the last reading; the first is kept as `start`.

        Raises:
            ValueError: before training, a watcher does not tell its concept's set from the neutral one.
        """
        found, self._found, self._seen = self._found, {}, {}
        means = {key: {name: torch.cat(s).mean() for name, s in sets.items()} for key, sets in found.items()}
        if not self.start:
            for each in self._of:
                zero, one = (float(means[each.key][name]) for name in ("neutral", each.concept))
                if not one > zero:
                    raise ValueError(
                        f"watcher '{each.placed.name}' of '{each.concept}' scores the concept's own probe set "
                        f"{one:.3g} and the neutral one {zero:.3g} before training, expected more: it does not see "
                        "the concept at the tokens that the sets count; fit it on such tokens"
                    )
            self.start = means
        return means

    def curves(self, means: Mapping[str, Mapping[str, Float[Tensor, ""]]]) -> dict[str, Float[Tensor, "concept"]]:
        """A reading scaled by the start: by `PROBE/SET`, one figure a concept; NaN where no such probe watches it."""
        found: dict[str, Tensor] = {}
        for each in self._of:
            row, start = self._names.index(each.concept), self.start[each.key]
            for name, score in means[each.key].items():
                zero, one = (start[which].to(score) for which in ("neutral", each.concept))
                key = f"{each.placed.name}/{name}"
                found.setdefault(key, score.new_full((len(self._names),), torch.nan))[row] = (score - zero) / (
                    one - zero
                )
        return found

    def held_bytes(self) -> int:
        """Bytes of the probes; their dictionaries are counted by who else looks at them."""
        return sum(tensor.nbytes for each in self._of for tensor in each.placed.tensors().values())

    def state_dict(self) -> dict[str, Any]:
        """What each watcher saw before training, and its tensors, by which another is told from it."""
        return {
            each.key: {
                "start": {name: value.cpu() for name, value in self.start[each.key].items()},
                "tensors": {name: tensor.cpu() for name, tensor in each.placed.tensors().items()},
            }
            for each in self._of
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what they saw before an earlier run.

        Raises:
            ValueError: it is of other watchers.
        """
        for each in self._of:
            if each.key not in state or not each.placed.same_as(state[each.key]["tensors"]):
                found = "another probe of that name" if each.key in state else ", ".join(state) or "no watchers"
                raise ValueError(
                    f"the saved start has {found}, this run watches by '{each.key}'; resume with the same watchers"
                )
        self.start = {each.key: dict(state[each.key]["start"]) for each in self._of}


def _checked(watchers: Watchers, bank: ConceptBank, sets: Sequence[str]) -> tuple[_Watcher, ...]:
    found: dict[str, _Watcher] = {}
    for concept, given in watchers.items():
        several = [given] if isinstance(given, PlacedProbe) else list(given)
        if concept not in bank.names:
            raise ValueError(f"watchers name '{concept}', not in the bank; it has {', '.join(bank.names)}")
        if missing := [name for name in ("neutral", concept) if name not in sets]:
            raise ValueError(
                f"a watcher of '{concept}' needs the probe sets {', '.join(missing)}; there are {', '.join(sets)}"
            )
        for placed in several:
            if not isinstance(placed, PlacedProbe):
                raise TypeError(
                    f"a watcher of '{concept}' is a {type(placed).__name__}, expected a PlacedProbe; "
                    "PlacedProbe.load(folder) reads a saved one"
                )
            if placed.model and bank.model and placed.model != bank.model:
                raise ValueError(
                    f"watcher '{placed.name}' of '{concept}' was fitted on '{placed.model}', the bank is of "
                    f"'{bank.model}'"
                )
            watcher = _Watcher(concept, placed, _dictionary_of(placed, bank))
            if watcher.key in found:
                raise ValueError(f"two watchers of '{concept}' have the name '{placed.name}'; name each of its own")
            found[watcher.key] = watcher
    return tuple(found.values())


def _dictionary_of(placed: PlacedProbe, bank: ConceptBank) -> Readout | None:
    """What encodes for a probe of latents; None for the others."""
    probe = placed.of_latents
    if probe is None:
        return None
    readout = bank.readouts.get(placed.hook)
    if readout is None or not encodes_tokens(readout):
        raise ValueError(
            f"watcher '{placed.name}' looks at latents at '{placed.hook}', and the bank holds no SAE there that "
            "encodes tokens; make the bank of the SAE that the probe was fitted on (from_saelens)"
        )
    alike = len(readout.alive) == probe.dictionary
    alike = alike and bool(((readout.rows(probe.latents) * probe.decoder.cpu()).sum(-1) > _SAME_ROW).all())
    if not alike:
        raise ValueError(
            f"watcher '{placed.name}' was fitted on the latents of another SAE than the bank's at '{placed.hook}'"
        )
    return readout


def _encoded(readout: Readout, texts: TextActivations) -> TextActivations:
    from interptrain.concepts.saelens import shared_sae

    sae = shared_sae(readout).to(texts.values.device)
    with torch.autocast(texts.values.device.type, enabled=False):
        return replace(texts, values=latents_of(sae, texts.values))
