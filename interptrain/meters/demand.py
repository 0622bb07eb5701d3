"""Demand: what the data ask of a concept, read from the activation gradients at its hook."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from interptrain.concepts.activation import Activation, activation_elsewhere, concept_activation
from interptrain.concepts.bank import ConceptBank
from interptrain.meters.probes import callable_model
from interptrain.meters.realised import Shift
from interptrain.meters.spans import NULL_GROUPS, Spans, sign_flipped_means
from interptrain.meters.token_demand import TokenDemand
from interptrain.meters.tokens import Positions
from interptrain.processes import count
from interptrain.projection import Backend, Matrix, Sums, full_precision
from interptrain.report import Measured, Reading
from interptrain.sites.reading import reading_point

if TYPE_CHECKING:
    from interptrain.meters.dictionary import DictionaryMeter
    from interptrain.sites import HookPoint


class DemandMeter:
    r"""Collects `g_t = dL/dh_t` at every hook point of a bank, over loss tokens, between two reads.

        share_c  = sum_t ||Q_c g_t||^2 / sum_t ||g_t||^2      (Q_c: orthonormal basis of the concept's span)
        signed_c = -sum_t m_c . g_t                           (m_c: the concept's mean direction, unit)

    The share says how much of what the data ask lies in the concept, whichever way; its null is the share of
    as many other alive latents. The signed figure is positive where the data ask for more of the concept, in
    units of loss per unit of activation; its null flips the signs of the concept's own directions at random
    (for a concept of one direction that null is +-itself and says nothing).

    With `reinforced` also the same weighted by how strongly the concept is on: what is there already and is asked
    for again, in units of loss.

        reinforced_c = -sum_t z_c(h_t) m_c . g_t              (z_c: the concept's activation, see `concept_activation`)

    `g_t` carries the losses of later tokens too, through the attention above the hook.

    Of several processes each sees its own tokens, and the gradient of its own mean loss: energies are summed, signed
    figures are means over the processes. Where all have as many loss tokens, both are those of the whole batch.

    Args:
        bank: the concepts.
        points: the bank's hook points, parsed.
        groups: null groups.
        seed: of the null groups.
        keep_tokens: also keep what every token asked for, in `tokens`.
        reinforced: also weight it by the activations, which runs the read-out over every counted batch.
        dictionary: is shown the same gradients, to say which of all latents they teach.
        backend: what reads them.
    """

    def __init__(
        self,
        bank: ConceptBank,
        points: dict[str, HookPoint],
        *,
        groups: int = NULL_GROUPS,
        seed: int = 0,
        keep_tokens: bool = False,
        reinforced: bool = False,
        dictionary: DictionaryMeter | None = None,
        backend: Backend | None = None,
    ) -> None:
        self._backend = Backend() if backend is None else backend
        self.positions = Positions()
        self.active = True
        self.tokens: dict[str, list[TokenDemand]] = {}
        self._keep_tokens, self._dictionary = keep_tokens, dictionary
        self._seen: dict[str, list[TokenDemand]] = {}
        self._given: tuple[Tensor | None, Tensor | None] = (None, None)
        self._activations = {hook: concept_activation(bank, hook) for hook in points} if reinforced else {}
        elsewhere = {hook: activation_elsewhere(bank, hook) for hook in self._activations}
        self._elsewhere = {hook: found for hook, found in elsewhere.items() if found is not None}
        self._on: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self._hooks = {hook: _Hook.of(bank, hook, point, groups=groups, seed=seed) for hook, point in points.items()}
        self._shape = (len(bank.names), groups)
        self._tally: _Tally | None = None
        self._device, self._silent = torch.device("cpu"), False

    def attach(self, model: nn.Module) -> None:
        """Register one forward hook a hook point; nothing of the forward or backward pass is changed."""
        self._device = next(model.parameters()).device
        if self._keep_tokens:
            self._heed_tokens(model)
        for hook in self._hooks.values():
            self._handles.append(hook.point.listen(model, partial(self._capture, hook)))
        for name, (place, activation) in self._elsewhere.items():
            self._handles.append(reading_point(place).listen(model, partial(self._read_elsewhere, name, activation)))

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen, self._on, self._tally, self._given = {}, {}, None, (None, None)

    @property
    def attached(self) -> bool:
        """Whether its hooks are there."""
        return bool(self._handles)

    def partial(self) -> list[Tensor]:
        """What has to be summed over the processes before `read`; of zeros where no gradient came by here."""
        if count() == 1 or not self.attached:
            return []
        self._silent = self._tally is None
        if self._tally is None:
            self._tally = _Tally.zeros(*self._shape, self._device)
        return list(vars(self._tally).values())

    def _read_elsewhere(self, name: str, activation: Activation, given: Tensor) -> None:
        """What a read-out encodes in front of its hook point, kept until the pass comes there."""
        if self.active and not self.positions.asking and torch.is_grad_enabled():
            with torch.no_grad():
                self._on[name] = activation(given)

    def _capture(self, hook: _Hook, activations: Tensor) -> None:
        asking = self.positions.asking
        if asking or not (self._wanted and torch.is_grad_enabled() and activations.requires_grad):
            return
        counted = self.positions.ordinary(activations)
        on = None
        if self.active and hook.point.name in self._activations:
            with torch.no_grad():
                on = self._activations[hook.point.name](activations)
                if hook.point.name in self._elsewhere:
                    on = on + self._on.pop(hook.point.name)
        given = self._given
        activations.register_hook(lambda gradient: self._add(hook, gradient, counted, on, given))

    def _heed_tokens(self, model: nn.Module) -> None:
        """Keep which tokens the model is given, where its call shows them."""
        try:
            module = callable_model(model)
        except ValueError:
            return

        def heed(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.active and not self.positions.asking and torch.is_grad_enabled():
                given = kwargs.get("input_ids", args[0] if args else None), kwargs.get("attention_mask")
                # copies: whoever trains may write the next batch into the same tensors
                ids, mask = (each.clone() if isinstance(each, Tensor) else None for each in given)
                self._given = ids, mask

        self._handles.append(module.register_forward_pre_hook(heed, with_kwargs=True))

    @property
    def _wanted(self) -> bool:
        return self.active or (self._dictionary is not None and self._dictionary.active)

    @full_precision()
    def _add(
        self,
        hook: _Hook,
        gradient: Tensor,
        counted: Tensor,
        on: Tensor | None,
        given: tuple[Tensor | None, Tensor | None],
    ) -> None:
        if self.positions.asking:
            return
        columns = (gradient.detach().float() * counted[..., None]).flatten(0, 1).T
        if self._dictionary is not None and self._dictionary.active:
            self._dictionary.add(hook.point.name, columns)
        if not self.active:
            return
        if self._tally is None:
            self._tally = _Tally.zeros(*self._shape, columns.device)
        on_device = hook.to(columns.device)
        sums = self._backend.on(columns.device).read([Matrix(columns, on_device.rows)])
        self._tally.add(on_device, columns, sums)
        if on is not None:
            self._tally.reinforce(hook, columns @ on.flatten(0, 1).float())
        if self._keep_tokens:
            found = TokenDemand.of(hook.spans, hook.means[0], gradient.detach(), counted)
            ids, mask = (each if each is not None and each.shape == counted.shape else None for each in given)
            found = replace(found, input_ids=ids, attended=None if mask is None else mask.bool())
            self._seen.setdefault(hook.point.name, []).append(found)

    def read(self, loss_scale: Float[Tensor, ""] | float = 1.0) -> dict[str, Measured]:
        """`demand`, and `reinforced` on request, since the last reading; nothing if no gradient came by.

        Args:
            loss_scale: undone in what is signed.
        """
        tally, self._tally = self._tally, None
        if self._seen:
            self.tokens = {hook: [one.scaled(loss_scale) for one in seen] for hook, seen in self._seen.items()}
            self._seen = {}
        if tally is None or (self._silent and not tally.passes.any()):  # waits for the device after silence only
            return {}
        scale = loss_scale * count()
        found: dict[str, Measured] = {"demand": tally.reading(scale)}
        if self._activations:
            found["reinforced"] = Shift(tally.reinforced / scale, tally.reinforced_null / scale)
        return found


@dataclass
class _Hook:
    """One hook point's directions on the device they were last needed on."""

    point: HookPoint
    spans: Spans
    means: Float[Tensor, "1 concept d_model"]
    flipped: Float[Tensor, "group concept d_model"]
    rows: Float[Tensor, "row d_model"]

    @classmethod
    def of(cls, bank: ConceptBank, hook: str, point: HookPoint, *, groups: int, seed: int) -> _Hook:
        rows = [row for row, at in enumerate(bank.hooks) if at == hook]
        means = sign_flipped_means(bank, rows, groups=groups, seed=seed)
        spans = Spans.of(bank, rows, groups=groups, seed=seed)
        return cls(point, spans, means[:1], means[1:], torch.cat([spans.rows, means[0]]))

    def to(self, device: torch.device) -> _Hook:
        if self.means.device != device:
            self.spans = self.spans.to(device)
            self.means, self.flipped, self.rows = (each.to(device) for each in (self.means, self.flipped, self.rows))
        return self


@dataclass
class _Tally:
    energy: Float[Tensor, "concept"]
    null: Float[Tensor, "concept group"]
    total: Float[Tensor, "concept"]
    signed: Float[Tensor, "concept"]
    signed_null: Float[Tensor, "concept group"]
    reinforced: Float[Tensor, "concept"]
    reinforced_null: Float[Tensor, "concept group"]
    passes: Float[Tensor, ""]

    @classmethod
    def zeros(cls, concepts: int, groups: int, device: torch.device) -> _Tally:
        one, two = torch.zeros(concepts, device=device), torch.zeros(concepts, groups, device=device)
        none = torch.zeros((), device=device)
        return cls(one.clone(), two.clone(), one.clone(), one.clone(), two.clone(), one.clone(), two.clone(), none)

    def add(self, hook: _Hook, columns: Float[Tensor, "d_model token"], sums: Sums) -> None:
        """`sums` is of the spans' rows, then of the concepts' mean directions."""
        spans, concepts = hook.spans, len(self.energy)
        self.passes += 1
        self.energy += sums.energy[0, :-concepts].view(spans.bases.shape[:2]).sum(-1)
        self.null += spans.null_energy(columns)
        self.total += torch.where(spans.reached, sums.total[0], 0.0)
        self.signed -= sums.signed[0, -concepts:]
        self.signed_null -= (hook.flipped @ columns.sum(-1)).T

    def reinforce(self, hook: _Hook, weighted: Float[Tensor, "d_model concept"]) -> None:
        """`weighted` is `sum_t z_c g_t` for every concept."""
        self.reinforced -= (hook.means[0] * weighted.T).sum(-1)
        self.reinforced_null -= torch.einsum("gcd,dc->cg", hook.flipped, weighted)

    def reading(self, loss_scale: Float[Tensor, ""] | float) -> Reading:
        return Reading(
            share=self.energy / self.total,
            null=self.null / self.total[:, None],
            signed=self.signed / loss_scale,
            signed_null=self.signed_null / loss_scale,
        )
