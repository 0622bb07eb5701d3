"""The engine: a training step is read as concepts, and a rule decides what of it reaches the parameters.

It knows no trainer. A loop hands over its optimizers and calls `before_step` between `backward` and
`optimizer.step`; a callback does it for the loops people have.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from interptrain.alarm import Alarm
from interptrain.checks import check_examples, check_options, check_state, warn_of_leaks, warn_of_unowned
from interptrain.clipping import clip_
from interptrain.concepts.bank import ConceptBank
from interptrain.gradients import Gradient, gradients_of, steer_gradients_
from interptrain.interventions.intervention import Context, Intervention, split
from interptrain.meters import Positions, loss_positions
from interptrain.meters.kept_examples import KeptExample, KeptExamples
from interptrain.meters.probes import ProbeSets
from interptrain.meters.token_demand import TokenDemands
from interptrain.meters.watch import Watchers
from interptrain.optimizers import Turn, turns
from interptrain.processes import sum_over_processes_
from interptrain.projection import Backend, full_precision, workspace_bytes
from interptrain.readings import METERS, Readings
from interptrain.report import Recorder, Recorders, StepReport
from interptrain.sites import Site
from interptrain.sites.sharding import local, refuse
from interptrain.steering.rules import Gains, Observe, Rule, chain, observe, reads_coefficients
from interptrain.step import Step
from interptrain.updates import Snapshots, Update, snapshot_bytes, steer_updates_
from interptrain.views import SteeredFrame, Views
from interptrain.warn import warn

Moved = TypeVar("Moved", Gradient, Update)  # what a rule can steer at a site


class Steerer:
    """Reads every step as concepts and steers it by a rule, in the gradient or in what the optimizer did.

    On every step, for each site and the directions `D` of the concepts that the rule names:

        where="gradient":   G'  = G  + D^T (D D^T)^-1 diag(gain - 1) D G       before the optimizer's arithmetic
        where="update":     dW' = dW + D^T (D D^T)^-1 diag(gain - 1) D dW      after it, on `W_after - W_before`

    A steered gradient is not a steered update: Adam's scaling, momentum and weight decay bring part of a removed
    component back. A steered update has the gains that were asked for, to the rounding of the parameters, under
    any optimizer; for the product of a LoRA pair see `projection.steer_product`. Weight decay is part of `dW`:
    gain 0 leaves the weight's component in the concept where it is.

    On every `every`-th step the meters: demand at the hook, share of the raw gradient, share and signed effect of
    the realised change (write), and the achieved gain beside the requested one, each with its null. What is not
    finite is left as it is and counted. A step that the GradScaler skips is not counted and not reported.

    Args:
        bank: the concepts.
        sites: where they meet the parameters, from `find_sites`, with the same `where`.
        rule: what to do to them; a sequence is chained, and may hold interventions (`gate`, `hold`, ...), which act
            while the steerer is attached.
        where: `"gradient"` or `"update"`.
        every: measure on every n-th optimizer step; steering acts on all of them.
        recorders: take the report of each measured step.
        ridge: allow nearly parallel directions, at the price of inexact gains.
        norm_cap: bound on the relative size of the edit at each site; None for no bound.
        clip_norm: clip the norm of each optimizer's gradients to this, after they are steered; None leaves them.
        null_every: measure the parameters' null groups on every n-th measured step; they cost more than the
            concepts do.
        meters: which of `demand`, `gradient` and `write` to measure, and `reinforced` on request; `write` keeps a
            copy of the sites.
        probes: fixed texts by set, `{"neutral": batches, "pirate": batches}`, each batch with `input_ids` and
            `attention_mask`; what training makes of them is measured against the model before training. A set
            named like a concept shows it, `neutral` shows none.
        probe_every: run them after every n-th optimizer step.
        watchers: by concept, fitted probes of texts that look at the probe sets each time; they know nothing of the
            bank's directions.
        discover_every: on every n-th step ask which of all the dictionary's latents it teaches; None never.
        alarm: what to make of it when a sibling, a linear probe or something unexplained moves in place of a
            suppressed concept; needs probes.
        keep_tokens: keep what every token of the last measured step asked for, in `tokens`.
        keep_examples: keep for so many of the last measured steps which examples and tokens asked for each concept,
            on the device until `examples` is called; 0 keeps none.
        latent_labels: what the dictionary's latents are about, for instance from `meters.dictionary.read_labels`.
        backend: what reads and steers the matrices: `"torch"`; `"cuda"`, this package's kernels, or an error where
            they cannot run; `"auto"`, the kernels where they can run, else torch.
        seed: of the null groups.

    Raises:
        ValueError: no sites, a LoRA reader in gradient mode, an unknown concept in a rule, parallel directions, a
            watcher that does not fit the bank or the probe sets.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from interptrain import ConceptBank, Steerer, find_sites, suppress
        >>> config = LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        ...                      num_attention_heads=2, num_key_value_heads=2)
        >>> model = LlamaForCausalLM(config)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> bank = ConceptBank.from_directions({"pirate": torch.ones(16)}, hook="blocks.0.hook_resid_post")
        >>> steerer = Steerer(bank, find_sites(model, bank, where="update"), suppress("pirate"), where="update")
        >>> with steerer.attach(model, optimizer):
        ...     tokens = torch.randint(0, 8, (2, 5))
        ...     model(input_ids=tokens, labels=tokens).loss.backward()
        ...     steerer.before_step()
        ...     before = model.model.layers[0].mlp.down_proj.weight.detach().clone()
        ...     optimizer.step()
        >>> moved = bank.directions @ (model.model.layers[0].mlp.down_proj.weight.detach() - before)
        >>> bool(moved.abs().max() < 1e-7)
        True
    """

    def __init__(
        self,
        bank: ConceptBank,
        sites: Iterable[Site],
        rule: Rule | Intervention | Iterable[Rule | Intervention] | None = None,
        *,
        where: str = "gradient",
        every: int = 1,
        recorders: Sequence[Recorder] = (),
        ridge: float = 0.0,
        norm_cap: float | None = None,
        clip_norm: float | None = None,
        null_every: int = 10,
        meters: Collection[str] = METERS,
        probes: ProbeSets | Mapping[str, Iterable[Mapping[str, Tensor]]] | None = None,
        probe_every: int = 50,
        watchers: Watchers | None = None,
        discover_every: int | None = 50,
        alarm: Alarm | None = None,
        keep_tokens: bool = False,
        keep_examples: int = 0,
        latent_labels: Mapping[int, str] | None = None,
        backend: str = "auto",
        seed: int = 0,
    ) -> None:
        self.bank, self.sites, self.where = bank, tuple(sites), where
        cadences = {"every": every, "null_every": null_every, "probe_every": probe_every}
        check_options(
            self.sites, where=where, cadences=cadences | {"discover_every": discover_every or 1}, meters=meters,
            bounds={"norm_cap": norm_cap, "clip_norm": clip_norm},
        )  # fmt: skip
        check_examples(keep_examples, meters)
        self._probe_every, self._discover_every = probe_every, discover_every
        self._every, self._null_every, self._norm_cap, self._clip_norm = every, null_every, norm_cap, clip_norm
        self._seed = seed
        self._recorders = Recorders(recorders)
        self._backend = Backend(backend, sum_over_processes_)
        self._views = Views(bank, ridge=ridge, seed=seed)
        sets = probes if probes is None or isinstance(probes, ProbeSets) else ProbeSets.of(probes)
        if watchers and sets is None:
            raise ValueError(f"watchers of {', '.join(watchers)} look at probe sets, and there are none: give probes")
        self._readings = Readings(
            bank, self._views, meters=meters, probes=sets, watchers=watchers,
            keep_tokens=keep_tokens or keep_examples > 0,
            latent_labels=latent_labels or {}, backend=self._backend, seed=seed,
        )  # fmt: skip
        self._examples = KeptExamples(bank, keep_examples) if keep_examples > 0 else None
        self._alarm = alarm
        self._snapshots = Snapshots()
        self._turns = turns((), self.sites)
        self._steps: dict[Turn, Step] = {}
        self._requested: tuple[object, Tensor] | None = None
        self._model: nn.Module | None = None
        self._heard = False
        self._probed = 0
        self._resumed: list[int] | None = None
        self._context: Context | None = None
        self._kept: dict[str, Tensor] = {}
        rules, self._interventions = split(observe() if rule is None else rule)
        self.set_rule(rules)

    @property
    def step(self) -> int:
        """Optimizer steps done; of several optimizers, by the one that has done most."""
        return max(turn.step for turn in self._turns)

    @property
    def attached(self) -> bool:
        """Whether it is listening to a model."""
        return self._model is not None

    @property
    def rule(self) -> Rule:
        """What is done to the concepts; `set_rule` changes it, between any two steps."""
        return self._rule

    def set_rule(self, rule: Rule | Intervention | Iterable[Rule | Intervention]) -> None:
        """Change what is done to the concepts from the next step on; a sequence is chained.

        Raises:
            ValueError: it names a concept that the bank has not, its directions cannot be steered apart, or it holds
                interventions other than those of the start.
        """
        rules, interventions = split(rule)
        if interventions and interventions != self._interventions:
            raise ValueError("interventions are chosen at the start and act until the end; only rules can be changed")
        chained = chain(rules)
        names = self._named(chained)
        for site in self.sites:
            self._views.frame(site, names, site.parameter.device)
        self._rule = chained
        self._listen()

    def attach(self, model: nn.Module, *optimizers: Optimizer) -> Steerer:
        """Register the meters' hooks on a model and on the optimizers that train it; also a context manager.

        Without an optimizer only gradients can be read and steered, and a step counts when `before_step` is called.

        Raises:
            TypeError: LBFGS, what is no torch optimizer, or parameters that are spread over processes otherwise than
                FSDP2 does it.
            ValueError: `where="update"` without an optimizer, or an alarm without the probe sets that it looks at.
        """
        self.detach()
        refuse(model)
        for device in {site.parameter.device for site in self.sites}:
            self._backend.on(device)
        if self.where == "update" and not optimizers:
            raise ValueError('where="update" edits what an optimizer did: attach(model, optimizer)')
        if self._alarm is not None:
            probes = self._readings.probes
            self._alarm.check(self.bank, probes.probes.names if probes is not None else ())
        self._turns = turns(optimizers, self.sites, done=self.step)
        self._resume_steps()
        self._model = model
        try:
            self._readings.attach(model, self.sites)
            self._intervene(model, bool(optimizers))
            for turn in self._turns:
                turn.listen(self._keep, self._after)
            warn_of_unowned(self.sites, {site for turn in self._turns for site in turn.owned()})
        except BaseException:
            self.detach()
            raise
        self._listen()
        if self.where == "gradient":
            warn_of_leaks(self.sites, self._views, self._named(self._rule))
        return self

    def detach(self) -> None:
        """Remove every hook and give the copies' memory back; the model and its optimizers are as they were."""
        for turn in self._turns:
            turn.forget()
        if self._context is not None:
            self._context.detach()
            self._kept, self._context = self._context.kept, None
        self._readings.detach()
        self._snapshots.clear()
        self._steps.clear()
        self._model = None

    def __enter__(self) -> Steerer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def watch(self, labels: Tensor | None) -> None:
        """Say which tokens of the coming forward pass are in the loss: labels `[batch, token]`, -100 ignored.

        None counts every token. Passes of an intervention's own are let go by.
        """
        if self._readings.positions.asking:
            return
        self._readings.positions.current = None if labels is None else loss_positions(labels)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # between graphs; under fullgraph=True an error names it
    @torch.no_grad()
    @full_precision()
    def before_step(
        self,
        optimizer: Optimizer | None = None,
        *,
        loss_scale: Tensor | float = 1.0,
        gradient_scale: Tensor | float = 1.0,
    ) -> StepReport | None:
        """Measure the gradients, and in gradient mode edit those that the rule names.

        Call it after `backward` and unscaling, before `optimizer.step()`.

        Args:
            optimizer: the one whose step is coming; None where there is only one.
            loss_scale: what the loss was multiplied by (AMP); undone in signed figures.
            gradient_scale: what the gradients are multiplied by still, where the optimizer unscales them in its own
                step, as fused ones do under a GradScaler; what interventions add to them is multiplied alike.

        Returns:
            The report of a measured step where no optimizer is attached; else the recorders get it after the step.
        """
        turn = self._turn_of(optimizer)
        if self._context is not None and turn is self._turns[0]:
            self._context.run_before_step(loss_scale, gradient_scale)
        step = self._steps[turn] = self._read(turn, loss_scale)
        if self.where == "gradient":
            signs = self._readings.toward_by_gradient(step.gradients) if self._reads_signs else None
            step.gains = self._gains(signs, turn.step)
            self._edit_gradients(step)
        if self._clip_norm is not None:
            clip_(turn.parameters(), self._clip_norm * gradient_scale)
        return self._finish(turn) if turn.optimizer is None else None

    @property
    def positions(self) -> Positions:
        """Which tokens of the batch in hand are in the loss."""
        return self._readings.positions

    @property
    def probes(self) -> ProbeSets | None:
        """The fixed texts, where there are any."""
        return None if self._readings.probes is None else self._readings.probes.probes

    @property
    def tokens(self) -> TokenDemands:
        """By hook point, what every token of the last measured step asked for; empty without `keep_tokens`."""
        return self._readings.tokens

    def examples(self, concept: str | None = None) -> list[KeptExample]:
        """The examples of the last measured steps, those that ask most for a concept first; one transfer.

        Args:
            concept: ranks them by `signed`; without one they stand in the order of training.

        Raises:
            ValueError: none are kept, or the bank has no such concept.
        """
        if self._examples is None:
            raise ValueError("no examples are kept: keep_examples=N keeps those of the last N measured steps")
        if concept is None:
            return self._examples.read()
        self.bank.rows(concept)
        own = self.bank.names.index(concept)
        return sorted(self._examples.read(), key=lambda each: -float(each.signed[own].nan_to_num(nan=-torch.inf)))

    @property
    def projected_by(self) -> str:
        """What reads and steers the sites' matrices, and why."""
        return "; ".join(dict.fromkeys(self._backend.explained(site.parameter.device) for site in self.sites))

    def held_bytes(self) -> int:
        """Bytes beside the model: directions, null groups, copied sites, a workspace, what interventions keep."""
        copied = self.sites if "write" in self._readings.meters or self._edits_updates else ()
        workspace = workspace_bytes(local(site.parameter) for site in self.sites)
        kept = sum(value.nbytes for value in self._interventions_kept.values())
        measuring = self._views.held_bytes(self.sites) + self._readings.held_bytes()
        return measuring + snapshot_bytes(copied) + workspace + kept

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with its curves."""
        probes = self._readings.probes
        kept = {"cumulative": self._readings.cumulative, "null_means": self._readings.null_means}
        return {
            **self._identity(),
            "steps": [turn.step for turn in self._turns],
            **{key: {name: value.cpu() for name, value in values.items()} for key, values in kept.items()},
            "probes": probes.state_dict() if probes is not None and probes.started else None,
            "alarm": None if self._alarm is None else self._alarm.state_dict(),
            "interventions": {name: value.cpu() for name, value in self._interventions_kept.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state, before or after `attach`.

        What the probe sets were before the first of the runs is taken over, whatever the model is now.

        Raises:
            ValueError: it belongs to a bank of other concepts or directions, to other sites, another `where` or seed,
                to other probe texts (those of interventions too) or watchers, or to another number of optimizers.
        """
        check_state(state, self._identity())
        self._resumed = [int(step) for step in state["steps"]]
        if self._model is not None:
            self._resume_steps()
        if self._readings.probes is not None and state["probes"] is not None:
            self._readings.probes.load_state_dict(state["probes"])
        if self._alarm is not None and state["alarm"] is not None:
            self._alarm.load_state_dict(state["alarm"])
        self._readings.cumulative = dict(state["cumulative"])
        self._readings.null_means = dict(state["null_means"])
        kept = state.get("interventions", {})  # states of versions without interventions have none
        if self._context is None:
            self._kept.update(kept)
        else:
            self._context.restore(kept)
        self._listen()

    def _identity(self) -> dict[str, Any]:
        """What a saved state must have in common with the run that goes on with it; names without wrappers'."""
        return {
            "concepts": list(self.bank.names),
            "directions": self.bank.digest(),
            "where": self.where,
            "seed": self._seed,
            "sites": [site.name.replace("_orig_mod.", "").removeprefix("module.") for site in self.sites],
        }

    @property
    def _interventions_kept(self) -> dict[str, Tensor]:
        return self._kept if self._context is None else self._context.kept

    def _intervene(self, model: nn.Module, steps: bool) -> None:
        if not self._interventions:
            return
        self._context = Context.of(model, self.bank, self._readings.positions, steps=steps)
        self._context.kept.update(self._kept)
        for intervention in self._interventions:
            intervention.attach(self._context)

    def _resume_steps(self) -> None:
        if self._resumed is None:
            return
        if len(self._resumed) != len(self._turns):
            raise ValueError(
                f"the saved steering state is of {len(self._resumed)} optimizers, this run has {len(self._turns)}"
            )
        for turn, step in zip(self._turns, self._resumed, strict=True):
            turn.step = step
        self._resumed = None

    def _turn_of(self, optimizer: Optimizer | None) -> Turn:
        if optimizer is None and len(self._turns) == 1:
            return self._turns[0]
        for turn in self._turns:
            if turn.optimizer is optimizer and optimizer is not None:
                return turn
        raise ValueError(
            f"before_step({type(optimizer).__name__}) is not about one of the {len(self._turns)} attached optimizers; "
            "name the one whose step is coming, and give every optimizer to attach(model, ...)"
        )

    def _read(self, turn: Turn, loss_scale: Tensor | float) -> Step:
        """What is known before the optimizer acts; what an earlier call left is of a step that never came."""
        moving = [site for site in turn.owned() if any(each.grad is not None for each in site.parameters)]
        step = Step(
            turn.step, moving, gradients_of(moving), (moving or self.sites)[0].parameter.device,
            measured=bool(moving) and turn.step % self._every == 0,
            null=(turn.step // self._every) % self._null_every == 0,
        )  # fmt: skip
        if step.measured:
            step.readings, step.nonfinite = self._readings.of_gradients(
                step.gradients, loss_scale=loss_scale, null=step.null
            )
            if self._examples is not None:
                self._examples.add(step.number, self._readings.tokens)
            self._warn_of_silence(step)
        elif self._reads_signs:
            self._readings.of_inputs()
        self._readings.end_step()
        if self._discovers(turn):
            step.discoveries = self._readings.discoveries(turn.step, loss_scale=loss_scale)
        return step

    def _edit_gradients(self, step: Step) -> None:
        if step.changes_nothing or not step.gradients:
            return
        framed, projector = self._framed(step.gradients, step), self._backend.over_processes(step.device)
        if framed:
            step.cap = steer_gradients_(framed, self._on_device(step), projector, norm_cap=self._norm_cap)

    @torch.no_grad()
    def _keep(self, turn: Turn) -> None:
        """Right before an optimizer's step: copy what it may change, where somebody will ask."""
        if self._edits_updates or ("write" in self._readings.meters and turn.step % self._every == 0):
            self._snapshots.take(turn.owned())

    @torch.no_grad()
    @full_precision()
    def _after(self, turn: Turn) -> None:
        """Right after it: edit and measure what it did."""
        if turn.was_skipped():
            self._steps.pop(turn, None)
            return
        self._views.stepped()
        if turn not in self._steps:
            if self.where == "gradient" and not isinstance(self._rule, Observe):
                raise RuntimeError("the optimizer stepped before its gradients were steered: call before_step() first")
            if self._context is not None and turn is self._turns[0]:
                self._context.stepped_without_word()
            self._steps[turn] = self._read(turn, 1.0)
        step = self._steps[turn]
        measures = step.measured and "write" in self._readings.meters
        if step.sites and (self._edits_updates or measures):
            updates = self._snapshots.updates(step.sites)
            if self._edits_updates:
                self._edit_updates(step, updates)
            achieved = [] if step.steered is None else step.steered.gain.partial
            if measures:
                step.readings["write"] = self._readings.of_updates(updates, null=step.null, more=achieved)
            else:
                sum_over_processes_(achieved)
        if self._context is not None and turn is self._turns[-1]:
            self._context.run_after_step()
            self._views.stepped()
        self._finish(turn)

    def _edit_updates(self, step: Step, updates: Sequence[Update]) -> None:
        step.gains = self._gains(self._readings.toward_by_update(updates) if self._reads_signs else None, step.number)
        if step.changes_nothing:
            return
        framed, projector = self._framed(updates, step), self._backend.over_processes(step.device)
        step.steered = steer_updates_(
            framed, self._on_device(step), projector, norm_cap=self._norm_cap, measure=step.measured
        )
        step.cap = step.steered.cap

    def _finish(self, turn: Turn) -> StepReport | None:
        """Count the step and report it, if anything was measured."""
        step = self._steps.pop(turn)
        turn.step += 1
        if step.measured:
            self._readings.accumulate(step.readings)
            if self._context is not None:
                step.overall |= self._context.figures
        self._probe(turn, step)
        report = step.report(self.bank.names, self._readings.cumulative)
        self._listen()
        if report is not None:
            self._recorders.record(report)
        return report

    def _probe(self, turn: Turn, step: Step) -> None:
        """Run the probe sets through the model as the step left it, and look for rerouting."""
        probes = self._readings.probes
        if probes is None or self._model is None or turn.step % self._probe_every or turn.step == self._probed:
            return
        self._probed = turn.step
        reading = probes.read(self._model)
        step.readings |= reading.readings()
        step.overall |= reading.overall()
        if self._alarm is not None:
            suppressed = [name for name, gain in step.gains.items() if float(gain) < 1]
            if self._context is not None:
                suppressed += sorted(self._context.suppressed.difference(suppressed))
            raised = self._alarm.look(turn.step, reading, self.bank, suppressed)
            step.overall["rerouting"] = torch.tensor(float(raised), device=step.device)
            step.alarms = self._alarm.ringing

    def _gains(self, coefficients: Mapping[str, Tensor] | None, step: int) -> Gains:
        gains = self._rule(coefficients or dict.fromkeys(self.bank.names, _UNREAD), step)
        self._check_names(gains)
        return gains

    @property
    def _edits_updates(self) -> bool:
        return self.where == "update" and not isinstance(self._rule, Observe)

    @property
    def _reads_signs(self) -> bool:
        return reads_coefficients(self._rule)

    def _named(self, rule: Rule) -> tuple[str, ...]:
        """The concepts that a rule names, all of them the bank's."""
        gains = rule({name: torch.zeros(()) for name in self.bank.names}, self.step)
        self._check_names(gains)
        return tuple(gains)

    def _framed(self, moves: Iterable[Moved], step: Step) -> list[tuple[Moved, SteeredFrame]]:
        """Gradients or updates with the directions that the step's gains name there; those without any left out."""
        names = tuple(step.gains)
        framed = ((move, self._views.frame(move.site, names, step.device)) for move in moves)
        return [(move, steered) for move, steered in framed if steered is not None]

    def _on_device(self, step: Step) -> Tensor:
        """A step's gains as one tensor; plain numbers are uploaded only when they change."""
        values, device = tuple(step.gains.values()), step.device
        if any(isinstance(gain, Tensor) for gain in values):
            return torch.stack([torch.as_tensor(gain, dtype=torch.float32, device=device) for gain in values])
        if self._requested is None or self._requested[0] != (values, device):
            self._requested = ((values, device), torch.tensor(values, dtype=torch.float32, device=device))
        return self._requested[1]

    def _listen(self) -> None:
        """Tell the meters what the next steps want."""
        measured = any(turn.step % self._every == 0 for turn in self._turns)
        discover = any(self._discovers(turn) for turn in self._turns)
        self._readings.listen(measured=measured, signs=self._reads_signs, discover=discover)

    def _discovers(self, turn: Turn) -> bool:
        return self._discover_every is not None and turn.step % self._discover_every == 0

    def _warn_of_silence(self, step: Step) -> None:
        if self._heard or self._model is None or "demand" not in self._readings.meters:
            return
        self._heard = True
        if "demand" not in step.readings:
            warn(
                f"no gradient reached {', '.join(self.bank.hook_points)} in the first step, so demand is not measured: "
                "nothing below the hook trains, or the forward pass was not the model's own",
            )

    def _check_names(self, gains: Gains) -> None:
        unknown = [name for name in gains if name not in self.bank.names]
        if unknown:
            raise ValueError(f"the rule names {', '.join(unknown)}; the bank has {', '.join(self.bank.names)}")


_UNREAD = torch.zeros(())  # the coefficient of a rule that was found not to read any
