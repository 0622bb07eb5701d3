"""Interventions: what changes training beside the rules, through hooks that are gone when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from interptrain.concepts.bank import ConceptBank
from interptrain.meters.probes import callable_model
from interptrain.meters.tokens import Positions
from interptrain.sites.hooks import HookPoint
from interptrain.sites.sharding import is_sharded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interptrain.interventions.token_weights import TokenWeights


@runtime_checkable
class Intervention(Protocol):
    """Something that acts on training while it is attached: a gate, a hold, a penalty."""

    def attach(self, context: Context) -> None:
        """Register through the context what is to happen; the context undoes all of it.

        Raises:
            ValueError: the model, the bank or the loop is of a kind that it cannot work on.
        """
        ...


BeforeStep = Callable[["Tensor | float"], None]
Act = Callable[[], None]


@dataclass(eq=False)
class Context:
    """A model in training, as an intervention may touch it.

    Args:
        model: the module that takes `input_ids`.
        bank: the concepts.
        positions: which tokens of the batch in hand are in the loss.
        steps: whether somebody says when the optimizer steps.
        kept: what a resumed run needs, by name; saved and restored with the steering state, read anew at each use.
        figures: the latest figure of each kind, by metric name, on the device.
        suppressed: concepts that an intervention keeps from being learnt; the alarm watches what takes their place.
        gradient_scale: what the parameters' gradients are multiplied by, while `before_step` is called back.
        compiled: whether a compiler stands around the model or in it.
    """

    model: nn.Module
    bank: ConceptBank
    positions: Positions
    steps: bool
    kept: dict[str, Tensor] = field(default_factory=dict)
    figures: dict[str, Tensor] = field(default_factory=dict)
    suppressed: set[str] = field(default_factory=set)
    gradient_scale: Tensor | float = 1.0
    compiled: bool = False
    _names: set[str] = field(default_factory=set)
    _before: list[BeforeStep] = field(default_factory=list)
    _after: list[Act] = field(default_factory=list)
    _restored: list[Act] = field(default_factory=list)
    _needs_word: list[str] = field(default_factory=list)
    _undo: ExitStack = field(default_factory=ExitStack)
    _weights: TokenWeights | None = None

    @classmethod
    def of(cls, model: nn.Module, bank: ConceptBank, positions: Positions, *, steps: bool) -> Context:
        """The context of a model, found in whatever wraps it.

        Raises:
            ValueError: no module of it takes `input_ids`.
        """
        return cls(callable_model(model), bank, positions, steps, compiled=is_compiled(model))

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.model.parameters()).device

    @property
    def trainable(self) -> list[nn.Parameter]:
        """What the optimizer may change."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def token_weights(self) -> TokenWeights:
        """The weights of the loss's tokens, shared by all that change them."""
        from interptrain.interventions.token_weights import TokenWeights

        if self._weights is None:
            self._weights = TokenWeights(self)
        return self._weights

    def needs_whole_parameters(self, who: str) -> None:
        """Raise where every process has a part of the parameters only.

        Raises:
            ValueError: the model is sharded.
        """
        sharded = next((name for name, each in self.model.named_parameters() if is_sharded(each)), None)
        if sharded is not None:
            raise ValueError(
                f"{who} differentiates by whole parameters, and '{sharded}' is sharded over the processes (FSDP2); "
                "use DDP or one process"
            )

    def claim(self, name: str) -> None:
        """Take a name for what is kept and logged.

        Raises:
            ValueError: it is taken.
        """
        if name in self._names:
            raise ValueError(f"'{name}' is there already; give one intervention of that kind and name")
        self._names.add(name)

    def keep(self, handle: RemovableHandle) -> None:
        """Remove a hook at the end."""
        self._undo.callback(handle.remove)

    def listen(self, hook: str, receive: Callable[[Tensor], None]) -> None:
        """Hand over each forward pass's activation at a hook point."""
        self.keep(HookPoint.parse(hook).listen(self.model, receive))

    def edit(self, hook: str, change: Callable[[Tensor], Tensor]) -> None:
        """Replace each forward pass's activation at a hook point by a function of it."""
        self.keep(HookPoint.parse(hook).edit(self.model, change))

    def before_step(self, act: BeforeStep, who: str | None = None) -> None:
        """Call back between `backward` and the optimizer's step, with what the loss was multiplied by (AMP).

        Args:
            act: what to call.
            who: cannot do without it; an optimizer that then steps without word is an error.
        """
        self._before.append(act)
        if who is not None:
            self._needs_word.append(who)

    def after_step(self, act: Act, who: str) -> None:
        """Call back when the optimizer has stepped.

        Raises:
            ValueError: nobody would know when it has.
        """
        if not self.steps:
            raise ValueError(f"{who} acts after the optimizer's step: attach(model, optimizer)")
        self._after.append(act)

    def when_restored(self, act: Act) -> None:
        """Call back when `kept` has been restored from a saved state."""
        self._restored.append(act)

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Take over what another run kept."""
        self.kept.update(kept)
        for act in self._restored:
            act()

    def run_before_step(self, loss_scale: Tensor | float, gradient_scale: Tensor | float = 1.0) -> None:
        """What is due before the optimizer's step."""
        self.gradient_scale = gradient_scale
        for act in self._before:
            act(loss_scale)

    def stepped_without_word(self) -> None:
        """Say that the optimizer has stepped, and `run_before_step` was not called.

        Raises:
            RuntimeError: something was due before it.
        """
        if self._needs_word:
            due = ", ".join(self._needs_word)
            raise RuntimeError(f"the optimizer stepped before {due} had acted: call before_step() first")

    def run_after_step(self) -> None:
        """What is due after it."""
        for act in self._after:
            act()

    def detach(self) -> None:
        """Undo everything."""
        self._undo.close()
        self._before.clear()
        self._after.clear()
        self._restored.clear()
        self._weights = None

    @contextmanager
    def asking(self) -> Iterator[None]:
        """For passes of one's own, inside: the meters and the other interventions let them go by."""
        asked, self.positions.asking = self.positions.asking, True
        try:
            yield
        finally:
            self.positions.asking = asked

    def last_hook(self, concept: str) -> str:
        """The concept's hook point that is last in the stream: what is nearest to the answer.

        Raises:
            ValueError: the bank has no such concept.
        """
        return max(self.bank.select(concept).hook_points, key=lambda hook: HookPoint.parse(hook).position)


def is_compiled(model: nn.Module) -> bool:
    """Whether a compiler stands around a model or in it."""
    return any(
        "_orig_mod" in dict(module.named_children()) or module._compiled_call_impl is not None
        for module in model.modules()
    )


def split(rules: Any) -> tuple[tuple[Any, ...], tuple[Intervention, ...]]:
    """Rules and interventions apart, each in their order.

    Example:
        >>> from interptrain import gate, suppress
        >>> rules, interventions = split([suppress("pirate"), gate("pirate")])
        >>> len(rules), len(interventions)
        (1, 1)
    """
    given: Sequence[Any] = tuple(rules) if isinstance(rules, Iterable) else (rules,)
    interventions = tuple(each for each in given if isinstance(each, Intervention))
    return tuple(each for each in given if not isinstance(each, Intervention)), interventions
