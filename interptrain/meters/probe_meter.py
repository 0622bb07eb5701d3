"""The meters that need fixed texts: what training made of them, against the model before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interptrain.concepts.activation import concept_activations, measured_by_latents
from interptrain.concepts.bank import ConceptBank
from interptrain.meters.explained import ExplainedMeter, reconstructions
from interptrain.meters.linear_probe import LinearProbe
from interptrain.meters.probe_reading import ProbeReading
from interptrain.meters.probes import ProbeMeans, ProbeSets, Several, callable_model
from interptrain.meters.realised import MeanDirections, realised_fraction, realised_reading
from interptrain.meters.spans import NULL_GROUPS
from interptrain.meters.unexplained import bank_spans, unexplained_reading
from interptrain.meters.watch import Watchers, WatchMeter
from interptrain.sites.hooks import HookPoint

if TYPE_CHECKING:
    from interptrain.concepts.contrast import TextActivations

NEUTRAL = "neutral"  # the set that shows no concept


class ProbeMeter:
    """Runs probe sets through the model before training and again whenever asked, and reads the difference.

    A set named like a concept shows it; the set `neutral` shows none. With both, a concept has a `fraction` and a
    linear probe, fitted at the start. On the neutral set (on all, where there is none) the bank's SAEs are looked at
    too: how much of the activations they explain, see `ExplainedMeter`. What the model was before training is stored,
    not asked of it again: with some adapters, disabling them does not bring the start model back.

    Args:
        bank: the concepts.
        probes: the texts.
        groups: null groups.
        seed: of the null groups.
        watchers: fitted probes of texts that look at the same passes, by concept; see `WatchMeter`.

    Raises:
        ValueError: a watcher does not fit the bank or the probe sets.
        ModuleNotFoundError: the bank's concepts are an SAE's latents and SAELens is not installed.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=16,
        ...                                      num_hidden_layers=2, num_attention_heads=2))
        >>> bank = ConceptBank.from_directions({"pirate": torch.ones(16)}, hook="blocks.0.hook_resid_post")
        >>> ids = torch.randint(0, 8, (4, 5))
        >>> texts = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
        >>> meter = ProbeMeter(bank, ProbeSets.of({"neutral": texts}))
        >>> meter.start(model)
        >>> with torch.no_grad():
        ...     _ = model.model.embed_tokens.weight.add_(0.5)
        >>> bool(meter.read(model).realised["neutral"].value > 1.9)
        True
    """

    def __init__(
        self,
        bank: ConceptBank,
        probes: ProbeSets,
        *,
        groups: int = NULL_GROUPS,
        seed: int = 0,
        watchers: Watchers | None = None,
    ) -> None:
        self.bank, self.probes = bank, probes
        self._watch = WatchMeter(watchers or {}, bank, probes)
        self._activations = concept_activations(bank)
        self._explained = ExplainedMeter(bank, (NEUTRAL,) if NEUTRAL in probes.names else probes.names)
        self._directions = MeanDirections.of(bank, groups=groups, seed=seed)
        self._spans = bank_spans(bank, groups=groups, seed=seed)
        by_latents = [any(measured_by_latents(bank, name, hook) for hook in bank.hook_points) for name in bank.names]
        self._by_latents = torch.tensor(by_latents)
        self._start: ProbeMeans | None = None
        self._linear: dict[str, LinearProbe] = {}

    @property
    def started(self) -> bool:
        """Whether it knows the model before training."""
        return self._start is not None

    @property
    def auc(self) -> dict[str, float]:
        """How well each concept's linear probe told held-out texts apart before training."""
        return {name: float(probe.auc) for name, probe in self._linear.items()}

    @property
    def contrast(self) -> Float[Tensor, "concept hook d_model"]:
        """Each concept's own set minus the neutral one, before training; NaN where there are not both.

        Raises:
            RuntimeError: there was no start.
        """
        residual = self._known().residual
        means = dict(zip(self.probes.names, residual, strict=True))
        unknown = torch.full_like(residual[0], torch.nan)
        neutral = means.get(NEUTRAL, unknown)
        return torch.stack([means.get(name, unknown) - neutral for name in self.bank.names])

    def start(self, model: nn.Module) -> None:
        """Remember a model that has not trained yet; does nothing where a state was loaded or it has started.

        Raises:
            ValueError: a hook point is not in the model, it takes no `input_ids`, or a concept's own set has too
                few texts for a linear probe or does not differ from the neutral one.
        """
        if self.started:
            return
        start = self._means(model)
        self._explained.read()
        self._watch.read()
        shown = set(self.probes.names) - {NEUTRAL} if NEUTRAL in self.probes.names else set()
        tokens = cache(partial(self._tokens, callable_model(model)))  # the neutral set serves every concept
        self._linear = {name: self._fit(tokens, start, name) for name in self.bank.names if name in shown}
        self._start = start

    def read(self, model: nn.Module) -> ProbeReading:
        """What the probe sets are now, against the start.

        Raises:
            RuntimeError: there was no start.
        """
        self._known()
        now = self._means(model)
        start = self._move(now.residual.device)
        shift, contrast, names = now.residual - start.residual, self.contrast, self.probes.names
        latents = torch.where(self._by_latents, now.activation - start.activation, torch.nan)
        return ProbeReading(
            realised={name: realised_reading(self._directions, v) for name, v in zip(names, shift, strict=True)},
            fraction=torch.stack([realised_fraction(self._directions, v, contrast) for v in shift]),
            latents=latents,
            unexplained={n: unexplained_reading(self._spans, v, contrast) for n, v in zip(names, shift, strict=True)},
            probe=torch.stack([self._score(name, now) for name in self.bank.names], dim=-1),
            explained=self._explained.metrics(self._explained.read()),
            watch=self._watch.curves(self._watch.read()),
        )

    def _means(self, model: nn.Module) -> ProbeMeans:
        beside = Several((self._explained, self._watch))
        return self.probes.means(model, self._activations, hooks=self.bank.hook_points, beside=beside)

    def held_bytes(self) -> int:
        """Bytes kept beside the model: directions, null groups, the start's means, and the SAE where it is used."""
        held = self._directions.nbytes + sum(span.bases.nbytes + span.null.nbytes for span in self._spans)
        if self._start is not None:
            held += self._start.residual.nbytes + self._start.activation.nbytes
        held += sum(probe.weight.nbytes + probe.origin.nbytes for probe in self._linear.values())
        held += self._watch.held_bytes()
        used = {each.hook for each in reconstructions(self.bank)}
        return held + sum(tensor.nbytes for hook in used for tensor in self.bank.readouts[hook].weights.values())

    def state_dict(self) -> dict[str, Any]:
        """The model before training, for a run that goes on later: tensors and JSON values.

        Raises:
            RuntimeError: there was no start.
        """
        start = self._known()
        return {
            "concepts": list(self.bank.names),
            "hooks": list(self.bank.hook_points),
            "texts": self.probes.digest(),
            "residual": start.residual.cpu(),
            "activation": start.activation.cpu(),
            "explained": {hook: value.cpu() for hook, value in self._explained.start.items()},
            "watchers": self._watch.state_dict(),
            "linear": {
                name: {"weight": probe.weight.cpu(), "origin": probe.origin.cpu(), "auc": probe.auc.cpu()}
                for name, probe in self._linear.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the start of an earlier run; a later `start` leaves it as it is.

        Raises:
            ValueError: it is of other concepts, hook points, probe texts or watchers.
        """
        for what, own in (("concepts", self.bank.names), ("hooks", self.bank.hook_points)):
            if tuple(state[what]) != own:
                raise ValueError(f"the saved start is of {what} {', '.join(state[what])}; here are {', '.join(own)}")
        if state["texts"] != self.probes.digest():
            raise ValueError("the saved start is of other probe texts; use the same sets, in the same batches")
        self._watch.load_state_dict(state.get("watchers", {}))  # states of versions before them have none
        self._start = ProbeMeans(state["residual"], state["activation"])
        self._explained.start = dict(state.get("explained", {}))  # states of versions before it have none
        self._linear = {name: LinearProbe(**probe) for name, probe in state["linear"].items()}

    def _tokens(self, model: nn.Module, name: str, number: int) -> TextActivations:
        """A set's activations at a hook."""
        from interptrain.concepts.contrast import collect

        device = next(model.parameters()).device
        return collect(model, self.bank.hook_points[number], self.probes.on(device, name))

    def _fit(self, tokens: Callable[[str, int], TextActivations], start: ProbeMeans, name: str) -> LinearProbe:
        """A concept's linear probe at the last of its hooks in the stream, where everything before has flowed in."""
        number = self._last_hook(name)
        shown, neutral = (tokens(each, number) for each in (name, NEUTRAL))
        one, zero = (start.residual[self.probes.names.index(each), number] for each in (name, NEUTRAL))
        try:
            return LinearProbe.fit(shown, neutral, zero=zero, one=one)
        except ValueError as error:
            raise ValueError(f"probe set '{name}' against '{NEUTRAL}': {error}") from None

    def _score(self, name: str, now: ProbeMeans) -> Float[Tensor, "set"]:
        if name not in self._linear:
            return torch.full_like(now.residual[:, 0, 0], torch.nan)
        return self._linear[name].score(now.residual[:, self._last_hook(name)])

    def _last_hook(self, name: str) -> int:
        own = [n for n, hook in enumerate(self.bank.hook_points) if self.bank.rows(name, hook)]
        return max(own, key=lambda number: HookPoint.parse(self.bank.hook_points[number]).position)

    def _known(self) -> ProbeMeans:
        if self._start is None:
            raise RuntimeError("the model before training is not known: call start(model) before training")
        return self._start

    def _move(self, device: torch.device) -> ProbeMeans:
        """Everything to the device of what is read; the start on it."""
        start = self._known()
        if start.residual.device != device or self._directions.own.device != device:
            self._start = start = ProbeMeans(start.residual.to(device), start.activation.to(device))
            self._linear = {name: probe.to(device) for name, probe in self._linear.items()}
            self._directions = self._directions.to(device)
            self._spans = tuple(span.to(device) for span in self._spans)
            self._by_latents = self._by_latents.to(device)
        return start
