"""The engine: a step's gradients are read as concepts, and a rule decides what of them the optimizer gets.

It knows no trainer. A loop calls `before_step` between `backward` and `optimizer.step`; a callback does it for
the loops people have.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interptrain.concepts.bank import ConceptBank
from interptrain.meters import DemandMeter, MeanInputs, gradient_reading, loss_positions
from interptrain.projection import as_columns, correct_
from interptrain.report import Recorder, StepReport
from interptrain.sites import HookPoint, Site
from interptrain.steering.rules import Gains, Rule, chain, observe, reads_coefficients
from interptrain.views import Views


class Steerer:
    """Reads every step's gradients as concepts and steers them by a rule, before the optimizer steps.

    On every step, for each site and the directions `D` of the concepts that the rule names:

        G' = G + D^T (D D^T)^-1 diag(gain - 1) D G

    and on every `every`-th step the meters: demand at the hook, share of the raw gradient, each with its
    null. A gradient that is not finite is left as it is and counted. A steered gradient is not a steered
    update: Adam's scaling, momentum and weight decay bring part of a removed component back.

    Args:
        bank: the concepts.
        sites: where they meet the parameters, from `find_sites`.
        rule: what to do to them; a sequence is chained.
        where: `"gradient"`, the raw gradient before the optimizer's own arithmetic.
        every: measure on every n-th optimizer step; steering acts on all of them.
        recorders: take the report of each measured step.
        ridge: allow nearly parallel directions, at the price of inexact gains.
        norm_cap: bound on `||G' - G|| / ||G||` at each site; None for no bound.
        null_every: measure the gradient's null groups on every n-th measured step; they cost more than the
            concepts do.
        seed: of the null groups.

    Raises:
        ValueError: no sites, a LoRA reader in gradient mode, an unknown concept in a rule, parallel directions.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from interptrain import ConceptBank, Steerer, find_sites, suppress
        >>> config = LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        ...                      num_attention_heads=2, num_key_value_heads=2)
        >>> model = LlamaForCausalLM(config)
        >>> bank = ConceptBank.from_directions({"pirate": torch.ones(16)}, hook="blocks.0.hook_resid_post")
        >>> steerer = Steerer(bank, find_sites(model, bank), suppress("pirate")).attach(model)
        >>> tokens = torch.randint(0, 8, (2, 5))
        >>> model(input_ids=tokens, labels=tokens).loss.backward()
        >>> report = steerer.before_step()
        >>> left = bank.directions @ model.model.layers[0].mlp.down_proj.weight.grad
        >>> bool(left.abs().max() < 1e-6)
        True
        >>> steerer.detach()
    """

    def __init__(
        self,
        bank: ConceptBank,
        sites: Iterable[Site],
        rule: Rule | Iterable[Rule] | None = None,
        *,
        where: str = "gradient",
        every: int = 1,
        recorders: Sequence[Recorder] = (),
        ridge: float = 0.0,
        norm_cap: float | None = None,
        null_every: int = 10,
        seed: int = 0,
    ) -> None:
        self.bank, self.sites, self.step = bank, tuple(sites), 0
        _check(self.sites, where=where, every=every, null_every=null_every)
        self._every, self._null_every, self._norm_cap = every, null_every, norm_cap
        self._recorders = list(recorders)
        self._views = Views(bank, ridge=ridge, seed=seed)
        self._demand = DemandMeter(bank, {h: HookPoint.parse(h) for h in bank.hook_points}, seed=seed)
        self._inputs = MeanInputs(self._demand.positions)
        self._cumulative: dict[str, Tensor] = {}
        self._gradient_null: Tensor | None = None
        self._requested: tuple[object, Tensor] | None = None
        self._attached = False
        self.set_rule(rule if rule is not None else observe())

    @property
    def rule(self) -> Rule:
        """What is done to the concepts; `set_rule` changes it, between any two steps."""
        return self._rule

    def set_rule(self, rule: Rule | Iterable[Rule]) -> None:
        """Change what is done to the concepts from the next step on; a sequence is chained.

        Raises:
            ValueError: it names a concept that the bank has not, or its directions cannot be steered apart.
        """
        chained = chain(rule)
        gains = chained({name: torch.zeros(()) for name in self.bank.names}, self.step)
        self._check_names(gains)
        for site in self.sites:
            self._views.frame(site, tuple(gains), site.parameter.device)
        self._rule = chained
        if self._attached:
            self._attach_inputs()

    def attach(self, model: nn.Module) -> Steerer:
        """Register the meters' forward hooks on a model."""
        self.detach()
        self._demand.attach(model)
        self._attached = True
        self._attach_inputs()
        self._warn_of_leaks()
        return self

    def detach(self) -> None:
        """Remove every hook; the model is as it was."""
        self._demand.detach()
        self._inputs.detach()
        self._attached = False

    def watch(self, labels: Tensor | None) -> None:
        """Say which tokens of the coming forward pass are in the loss: labels `[batch, token]`, -100 ignored.

        None counts every token.
        """
        self._demand.positions.current = None if labels is None else loss_positions(labels)

    @torch.no_grad()
    def before_step(
        self, *, parameters: Collection[nn.Parameter] | None = None, loss_scale: Tensor | float = 1.0
    ) -> StepReport | None:
        """Measure the gradients, then edit those that the rule names. Call after `backward` and unscaling.

        Args:
            parameters: those the coming step will change; sites of others wait for their own step.
            loss_scale: what the loss was multiplied by (AMP); undone in signed figures.

        Returns:
            The report of a measured step, None for the others.
        """
        ready = self._ready(parameters)
        gains = self._rule(self._coefficients(ready), self.step)
        self._check_names(gains)
        report = None
        if ready and self.step % self._every == 0:
            report = self._measure(ready, gains, loss_scale)
        cap = self._edit(ready, gains)
        self._inputs.reset()
        self.step += 1
        self._demand.active = self.step % self._every == 0
        if report is not None:
            report = report.with_cap(cap)
            self._record(report)
        return report

    def held_bytes(self) -> int:
        """Bytes that the meters keep beside the model."""
        return self._views.held_bytes(self.sites)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with its curves."""
        return {
            "concepts": list(self.bank.names),
            "step": self.step,
            "cumulative": {name: value.cpu() for name, value in self._cumulative.items()},
            "gradient_null": None if self._gradient_null is None else self._gradient_null.cpu(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: it belongs to a bank of other concepts.
        """
        if tuple(state["concepts"]) != self.bank.names:
            raise ValueError(
                f"the saved steering state is of concepts {', '.join(state['concepts'])}; "
                f"this bank has {', '.join(self.bank.names)}"
            )
        self.step = int(state["step"])
        self._cumulative = dict(state["cumulative"])
        self._gradient_null = state["gradient_null"]
        self._demand.active = self.step % self._every == 0

    def _ready(self, parameters: Collection[nn.Parameter] | None) -> list[_Ready]:
        """The sites that the coming step changes, with their gradients."""
        chosen = None if parameters is None else {id(parameter) for parameter in parameters}
        ready = []
        for site in self.sites:
            parameter = site.parameter
            if parameter.grad is None or (chosen is not None and id(parameter) not in chosen):
                continue
            if parameter.grad.is_sparse:
                raise ValueError(f"'{site.name}' has a sparse gradient; build its embedding with sparse=False")
            columns = as_columns(parameter.grad, site.axis)
            ready.append(_Ready(site, columns, columns.float().square().sum()))
        return ready

    def _coefficients(self, ready: Sequence[_Ready]) -> dict[str, Tensor]:
        """How far the raw step would move the stream toward each concept: `-sum_writers s m^T G x_mean`."""
        device = ready[0].columns.device if ready else torch.device("cpu")
        toward = torch.zeros(len(self.bank.names), device=device)
        if reads_coefficients(self._rule):
            for site, columns, energy in ready:
                if site.role == "reader" or (received := self._inputs.mean(site.module)) is None:
                    continue
                weight = received if columns.shape[1] > 1 else torch.ones_like(received[:1])
                means = self._views.means(site, device)
                toward -= torch.where(torch.isfinite(energy), site.scaling * means @ (columns.float() @ weight), 0.0)
        return dict(zip(self.bank.names, toward, strict=True))

    def _measure(self, ready: Sequence[_Ready], gains: Gains, loss_scale: Tensor | float) -> StepReport:
        device = ready[0].columns.device
        null = (self.step // self._every) % self._null_every == 0
        gradient = gradient_reading(
            [(self._views.spans(site, device, null=null), columns, energy) for site, columns, energy in ready],
            null=null,
        )
        demand = self._demand.read(loss_scale)
        if null:
            self._gradient_null = gradient.null.mean(-1)
        self._accumulate("gradient", gradient.share - _on(self._gradient_null, gradient.share))
        if demand is None:
            self._warn_of_silence()
        elif demand.signed is not None:
            self._accumulate("demand", demand.signed)
        requested = [torch.as_tensor(gains.get(name, 1.0), device=device) for name in self.bank.names]
        return StepReport(
            step=self.step,
            concepts=self.bank.names,
            readings={"gradient": gradient} if demand is None else {"demand": demand, "gradient": gradient},
            cumulative=dict(self._cumulative),
            gains=torch.stack(requested),
            nonfinite=torch.stack([~torch.isfinite(energy) for _, _, energy in ready]).sum().float(),
            capped=torch.ones((), device=device),
        )

    def _edit(self, ready: Sequence[_Ready], gains: Gains) -> Tensor | None:
        """Steer every site; the smallest factor of the norm cap, or None where nothing was to be done."""
        if all(isinstance(gain, (int, float)) and gain == 1 for gain in gains.values()) or not ready:
            return None
        names = tuple(gains)
        device = ready[0].columns.device
        wanted = self._on_device(tuple(gains.values()), device)
        caps = []
        for site, columns, energy in ready:
            steered = self._views.frame(site, names, device)
            if steered is not None:
                caps.append(
                    correct_(
                        columns,
                        steered.frame.basis,
                        steered.mixing(wanted),
                        allowed=torch.isfinite(energy),
                        norm_cap=self._norm_cap,
                    )
                )
        return torch.stack(caps).amin() if caps else None

    def _on_device(self, gains: tuple[float | Tensor, ...], device: torch.device) -> Tensor:
        """Gains as one tensor; plain numbers are uploaded only when they change."""
        if any(isinstance(gain, Tensor) for gain in gains):
            return torch.stack([torch.as_tensor(gain, dtype=torch.float32, device=device) for gain in gains])
        if self._requested is None or self._requested[0] != (gains, device):
            self._requested = ((gains, device), torch.tensor(gains, dtype=torch.float32, device=device))
        return self._requested[1]

    def _accumulate(self, quantity: str, value: Tensor) -> None:
        before = self._cumulative.get(quantity, torch.zeros_like(value))
        self._cumulative[quantity] = _on(before, value) + value.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    def _record(self, report: StepReport) -> None:
        for recorder in tuple(self._recorders):
            try:
                recorder.record(report)
            except Exception as error:  # noqa: BLE001  a recorder is the user's code: it must not end the run
                self._recorders.remove(recorder)
                warnings.warn(
                    f"{type(recorder).__name__} raised {type(error).__name__}: {error}; it takes no more reports, "
                    "training and steering go on",
                    stacklevel=3,
                )

    def _attach_inputs(self) -> None:
        self._inputs.detach()
        if reads_coefficients(self._rule):
            self._inputs.attach({site.module: None for site in self.sites if site.role == "writer"})

    def _warn_of_silence(self) -> None:
        if "demand" not in self._cumulative and self._attached and self.step == 0:
            warnings.warn(
                f"no gradient reached {', '.join(self.bank.hook_points)} in the first step, so demand is not measured: "
                "nothing below the hook trains, or the forward pass was not the model's own",
                stacklevel=4,
            )

    @torch.no_grad()
    def _warn_of_leaks(self) -> None:
        """Say which LoRA writers start where steering B's gradient alone misses part of the product's step."""
        names = tuple(self._rule({name: torch.zeros(()) for name in self.bank.names}, self.step))
        leaking = []
        for site in self.sites:
            steered = self._views.frame(site, names, site.parameter.device) if site.lora else None
            if steered is not None and bool((steered.frame.basis @ site.parameter.float()).abs().amax() > 0):
                leaking.append(site.name)
        if leaking:
            warnings.warn(
                f"{len(leaking)} LoRA writers start with B already inside the steered concepts ({leaking[0]}, ...): "
                "the step s (dB A + B dA) leaks through dA, and the achieved gain will differ from the requested one",
                stacklevel=3,
            )

    def _check_names(self, gains: Gains) -> None:
        unknown = [name for name in gains if name not in self.bank.names]
        if unknown:
            raise ValueError(f"the rule names {', '.join(unknown)}; the bank has {', '.join(self.bank.names)}")


class _Ready(NamedTuple):
    site: Site
    columns: Float[Tensor, "d_model other"]
    energy: Float[Tensor, ""]  # ||G||^2: not finite where an element is not


def _check(sites: Sequence[Site], *, where: str, every: int, null_every: int) -> None:
    if where != "gradient":
        raise ValueError(f'where must be "gradient", found {where!r}')
    if every < 1 or null_every < 1:
        raise ValueError(f"every and null_every must be at least 1, found {every} and {null_every}")
    if not sites:
        raise ValueError("no sites to read or steer; find_sites(model, bank) lists them and says what it left out")
    readers = [site.name for site in sites if site.lora and site.role == "reader"]
    if readers:
        raise ValueError(
            f"LoRA readers cannot be steered through the gradient: with B = 0 the step is s dB A, and editing A's "
            f"gradient changes nothing of it. Leave out {', '.join(readers)}"
        )


def _on(stored: Tensor | None, like: Tensor) -> Tensor:
    return torch.full_like(like, torch.nan) if stored is None else stored.to(like.device)
