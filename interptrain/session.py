"""What every callback does, whatever the loop: find the sites, attach, hand the curves on, keep the state."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypedDict, Unpack

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from interptrain.alarm import Alarm
from interptrain.concepts import ConceptBank
from interptrain.discovery import DiscoveryTable
from interptrain.gain_check import GainCheck
from interptrain.interventions.intervention import Intervention, split
from interptrain.meters.kept_examples import KeptExample
from interptrain.meters.probes import ProbeSets, callable_model
from interptrain.meters.tokens import IGNORED_LABEL
from interptrain.meters.watch import Watchers
from interptrain.plan import Plan, summary_table
from interptrain.processes import rank
from interptrain.report import Recorder, Window
from interptrain.sae_check import SAECheck
from interptrain.sae_fit import Fit
from interptrain.sites import Site, find_sites
from interptrain.steerer import Steerer
from interptrain.steering import Rule, observe
from interptrain.warn import warn

Labels: TypeAlias = Callable[[Any], Tensor | None]
Rules: TypeAlias = Rule | Intervention | Iterable[Rule | Intervention]


class Options(TypedDict, total=False):
    """What every callback takes beside a bank and a rule.

    Args:
        sites: where the concepts meet the parameters; by default trainable writers that run before the hook point and
            trainable readers after it.
        where: `"gradient"`, the default, or `"update"`: exact on what the optimizer did, LoRA readers included.
        every: measure on every n-th optimizer step; steering acts on all of them.
        recorders: take the report of each measured step; of several processes, those of the first.
        skip: name patterns of trainable parameters to leave alone where they are not understood.
        labels: from a batch (the forward pass's keyword arguments where the loop does not show its batches) to its
            labels `[batch, token]` (-100: not in the loss); by default its `labels`, else what its `attention_mask`
            keeps, else every token.
        summary: print, in the first process, what is held when training starts, and a table when it ends.
        check_saes: before or in the first pass, say how much of the model's activations the bank's SAEs explain, beside
            the same at other layers, and warn where it is poor or another layer fits better. It looks at the neutral
            probe set (one forward pass), or without probes at the first training pass itself; nothing of the run
            changes. A run that is resumed is not checked.
        ridge: allow nearly parallel directions, at the price of inexact gains.
        norm_cap: bound on the relative size of the edit at each site.
        clip_norm: clip the norm of each optimizer's gradients to this, after they are steered: what makes a clipped
            run the same in every loop, with the loop's own clipping turned off.
        null_every: measure the parameters' null groups on every n-th measured step.
        meters: which of `demand`, `gradient` and `write` to measure, and `reinforced` on request; `write` keeps a
            copy of the sites.
        probes: fixed texts by set, `{"neutral": batches, "pirate": batches}`: what training makes of them is
            measured against the model before training.
        probe_every: run them after every n-th optimizer step.
        watchers: by concept, a fitted probe of texts or several (`PlacedProbe.load(folder)`): what they see in the
            probe sets is logged as `concept/NAME/watch/PROBE/SET`, 0 the neutral set and 1 the concept's own before
            training. They know nothing of the bank's directions, so they notice what comes by others.
        discover_every: on every n-th step ask which of all the dictionary's latents it teaches; None never.
        latent_labels: what those latents are about.
        keep_examples: keep for so many of the last measured steps which examples and tokens asked for each concept;
            `examples(concept)` ranks them.
        token_view: is shown the last of them at log steps, and makes a file of it (`recorders.tokens.TokenFile`).
        alarm: warns when something else moves in place of a suppressed concept; needs probes.
        backend: `"torch"`, `"cuda"` (this package's kernels, or an error at the start) or `"auto"`, whichever can
            run; the start line says which and why.
        seed: of the null groups.
        name: tells several callbacks of one run apart, in their metrics (`NAME/concept/...`) and in checkpoints.
    """

    sites: Iterable[Site] | None
    where: str
    every: int
    recorders: Sequence[Recorder]
    skip: Sequence[str]
    labels: Labels | None
    summary: bool
    check_saes: bool
    ridge: float
    norm_cap: float | None
    clip_norm: float | None
    null_every: int
    meters: Collection[str]
    probes: ProbeSets | Mapping[str, Iterable[Mapping[str, Tensor]]] | None
    probe_every: int
    watchers: Watchers | None
    discover_every: int | None
    latent_labels: Mapping[int, str] | None
    keep_examples: int
    token_view: TokenView | None
    alarm: Alarm | None
    backend: str
    seed: int
    name: str


class TokenView(Protocol):
    """What shows the last examples that a run has seen, token by token."""

    def due(self) -> bool:
        """Whether it is time to show others."""
        ...

    def show(self, bank: ConceptBank, step: int, examples: Sequence[KeptExample]) -> None:
        """Show the examples of the last measured step before `step`."""
        ...


class Session:
    """A steerer from fit to fit: a callback says when things happen, and this knows what is to be done then.

    Args:
        bank: the concepts.
        rule: what to do to them; a sequence is chained and may hold interventions.
        kept: reports kept at most until somebody asks for their mean.
        options: see `Options`.

    Raises:
        TypeError: no bank, an option that is not known, or a recorder that is none.
    """

    def __init__(
        self, bank: ConceptBank, rule: Rules | None = None, *, kept: int | None = None, **options: Unpack[Options]
    ) -> None:
        unknown = sorted(set(options) - set(Options.__annotations__))
        if unknown:
            raise TypeError(f"unknown options {', '.join(unknown)}; known are {', '.join(Options.__annotations__)}")
        if not isinstance(bank, ConceptBank):
            raise TypeError(
                f"expected a ConceptBank, found {type(bank).__name__}; ConceptBank.load(folder) reads a saved one"
            )
        given: dict[str, Any] = dict(options)
        sites = given.pop("sites", None)
        self.bank, self.name = bank, str(given.pop("name", ""))
        self._rule: Rules = observe() if rule is None else rule
        self._sites = None if sites is None else tuple(sites)
        self._skip = tuple(given.pop("skip", ()))
        self._labels: Labels = given.pop("labels", None) or labels_of
        self._summary = given.pop("summary", True)
        self._checks_saes = given.pop("check_saes", True)
        self._window = Window(limit=kept)
        self._token_view: TokenView | None = given.pop("token_view", None)
        if self._token_view is not None:
            given["keep_examples"] = max(1, given.get("keep_examples", 0))
        self._recorders = _checked_recorders(given.pop("recorders", ()))
        self._options = given
        self._steerer: Steerer | None = None
        self._model: nn.Module | None = None
        self._restored: Mapping[str, Any] | None = None
        self._handle: RemovableHandle | None = None
        self._begin()

    def _begin(self) -> None:
        self.figures: dict[str, float] = {}
        self.tables: dict[str, DiscoveryTable] = {}
        self._gains = GainCheck()
        self._fit: SAECheck | None = None
        self._training: frozenset[str] = frozenset()
        self.heed_batches = True

    @property
    def rule(self) -> Rules:
        """What is done to the concepts; see `Controls.rule`."""
        return self._rule

    @rule.setter
    def rule(self, rule: Rules) -> None:
        if self._steerer is not None and self._steerer.attached:
            self._steerer.set_rule(rule)
            rule = [*split(rule)[0], *split(self._rule)[1]]
        self._rule = rule

    @property
    def metrics(self) -> dict[str, float]:
        """The latest figures by the names they are logged under."""
        return {f"{self.prefix}{key}": value for key, value in self.figures.items()}

    @property
    def prefix(self) -> str:
        """What those names begin with."""
        return f"{self.name}/" if self.name else ""

    @property
    def steerer(self) -> Steerer:
        """The engine of this fit."""
        assert self._steerer is not None, "training has not started"
        return self._steerer

    @property
    def fits(self) -> tuple[Fit, ...]:
        """How well each of the bank's SAEs fits the model, once that is known."""
        return () if self._fit is None else self._fit.fits

    @property
    def restored(self) -> bool:
        """Whether a state waits for training to start."""
        return self._restored is not None

    def dry_run(self, model: nn.Module, *, show: bool = True) -> Plan:
        """List the sites, the memory they cost, and what was left out and why; nothing is attached."""
        plan = Plan.of(self._steerer_for(model), model, skip=self._skip)
        if show:
            Console().print(plan)
        return plan

    def start(self, model: nn.Module, *optimizers: Optimizer) -> None:
        """Find the sites, attach, and go on from a restored state; or say what does not fit and leave nothing behind.

        Args:
            model: in training.
            optimizers: that train it.
        """
        self.end()
        self._begin()
        state, self._restored = self._restored, None  # of this start alone, also where it fails
        steerer = self._steerer_for(model)
        if state is not None:
            steerer.load_state_dict(state)
        elif self._checks_saes:
            self._fit = SAECheck(self.bank, steerer, show=self._summary)
            self._fit.start(model)
        try:
            steerer.attach(model, *optimizers)
        except BaseException:
            self.end()
            raise
        self._steerer, self._model = steerer, model
        self._training = _trainable(model)
        if self._summary and rank() == 0:
            held = f"{steerer.held_bytes() / 2**20:.1f} MiB beside the model"
            sites = f"{len(steerer.sites)} sites (dry_run(model) lists them)"
            Console().print(f"interptrain: {sites}, {held}, projected by {steerer.projected_by}")
        if self._fit is not None:
            self._fit.say()

    def watch(self, batch: Any) -> None:
        """Tell the meters which tokens of a batch are in the loss."""
        self.steerer.watch(self._labels(batch))
        if self._fit is not None:
            self._fit.expect(batch)

    def listen(self, model: nn.Module) -> None:
        """Take the labels from the model's own call, in a loop that does not show its batches.

        A model that takes no `input_ids` by name has none to take; then every token counts, or what `watch` says.
        """
        try:
            module = callable_model(model)
        except ValueError:
            return

        def heed(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
            if torch.is_grad_enabled() and self.heed_batches:
                self.watch(kwargs)

        self._handle = module.register_forward_pre_hook(heed, with_kwargs=True)

    def drain(self) -> bool:
        """Bring what was measured since the last time to the host, in one transfer: `figures` and `tables`.

        Returns:
            Whether anything was measured.
        """
        report = self._window.drain()
        if report is None:
            return False
        self.figures = report.scalars()
        self.tables |= report.discoveries
        self._warn(report.step + 1)
        if self._token_view is not None and self._token_view.due():
            self._show_tokens(self._token_view)
        return True

    def summarise(self) -> None:
        """Print the last figures and tables, if any."""
        self.drain()
        if self._token_view is not None:
            self._show_tokens(self._token_view)
        if self._summary and rank() == 0 and self.figures:
            fits = [] if self._fit is None else [f"interptrain: {fit}" for fit in self._fit.fits]
            Console().print(summary_table(self.bank.names, self.figures), *fits, *self.tables.values())

    def end(self) -> None:
        """Leave nothing behind on the model and its optimizers."""
        if self._handle is not None:
            self._handle.remove()
        if self._fit is not None:
            self._fit.stop()
        if self._steerer is not None:
            self._steerer.detach()
        self._window.drain()
        self._model = self._handle = None

    def state_dict(self) -> dict[str, Any]:
        """The steering state, for a checkpoint; of the last fit, where none is going on."""
        return {} if self._steerer is None else self._steerer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep a checkpoint's steering state until training starts."""
        self._restored = state or None

    def _steerer_for(self, model: nn.Module) -> Steerer:
        where = self._options.get("where", "gradient")
        sites = find_sites(model, self.bank, skip=self._skip, where=where) if self._sites is None else self._sites
        recorders = (*self._recorders, self._window) if rank() == 0 else (self._window,)
        return Steerer(self.bank, sites, self._rule, recorders=recorders, **self._options)

    def examples(self, concept: str | None = None) -> list[KeptExample]:
        """The examples of the last measured steps; see `Controls.examples`."""
        if self._steerer is None:
            raise ValueError("training has not started, so no examples were seen")
        return self._steerer.examples(concept)

    def _show_tokens(self, view: TokenView) -> None:
        """The examples of the last measured step, in the first process."""
        examples = self.steerer.examples() if rank() == 0 else []
        if examples:
            step = examples[-1].step
            view.show(self.bank, step, [each for each in examples if each.step == step])

    def _warn(self, step: int) -> None:
        """Of gains that part, of gradients that are not finite, and of parameters that train in mid-run."""
        if (parted := self._gains.parted(self.figures, self.bank.names)) is not None:
            warn(f"{parted}, by step {step}")
        bad = int(self.figures.get("interptrain/nonfinite_sites", 0))
        if bad:
            warn(
                f"{bad} site gradients held NaN or infinity before step {step}; where they did they were "
                "left as they were found, and none of them is in the curves",
            )
        if self._model is not None and (new := sorted(_trainable(self._model) - self._training)):
            self._training |= set(new)
            warn(
                f"{len(new)} parameters began to train after the start ({new[0]}, ...): they are neither read nor "
                "steered; start a new fit to find their sites",
            )


class Controls:
    """What every callback shows of its session."""

    _session: Session

    @property
    def bank(self) -> ConceptBank:
        """The concepts."""
        return self._session.bank

    @property
    def rule(self) -> Rules:
        """What is done to the concepts; assign to it in mid-run to change it from the next step on.

        Interventions are those of the start until training ends: assigned rules act beside them.
        """
        return self._session.rule

    @rule.setter
    def rule(self, rule: Rules) -> None:
        self._session.rule = rule

    @property
    def sae_fits(self) -> tuple[Fit, ...]:
        """How much of the model's activations each of the bank's SAEs explains, once the check has seen them."""
        return self._session.fits

    def examples(self, concept: str | None = None) -> list[KeptExample]:
        """The examples of the last `keep_examples` measured steps, with what each and its tokens asked for.

        One transfer from the device. Of several processes each has its own.

        Args:
            concept: puts those that ask most for it first; without one they stand in the order of training.

        Raises:
            ValueError: none are kept, training has not started, or the bank has no such concept.
        """
        return self._session.examples(concept)

    def dry_run(self, model: nn.Module, *, show: bool = True) -> Plan:
        """List the sites, the memory they cost, and what was left out and why; nothing is attached."""
        return self._session.dry_run(model, show=show)


def labels_of(batch: Any) -> Tensor | None:
    """A batch's labels; without them, every token that the attention mask keeps.

    Example:
        >>> import torch
        >>> ids, mask = torch.tensor([[5, 6, 0]]), torch.tensor([[1, 1, 0]])
        >>> labels_of({"input_ids": ids, "attention_mask": mask})
        tensor([[   1,    1, -100]])
    """
    if not isinstance(batch, Mapping):
        return None
    if batch.get("labels") is None and batch.get("attention_mask") is not None:
        return batch["attention_mask"].masked_fill(batch["attention_mask"] == 0, IGNORED_LABEL)
    return batch.get("labels")


def _checked_recorders(given: Any) -> tuple[Recorder, ...]:
    if not isinstance(given, Sequence):
        found = f"one {type(given).__name__}"
    elif wrong := [each for each in given if not isinstance(each, Recorder)]:
        found = f"a {type(wrong[0]).__name__} among them"
    else:
        return tuple(given)
    raise TypeError(f"recorders is a list of recorders, such as [JSONLRecorder(path)]; found {found}")


def _trainable(model: nn.Module) -> frozenset[str]:
    return frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)
