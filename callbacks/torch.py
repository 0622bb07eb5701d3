"""A loop of one's own: `with attach(model, optimizer, bank, suppress("pirate")):` around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Unpack

from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from interptrain.concepts import ConceptBank
from interptrain.optimizers import bare, loss_scale
from interptrain.session import Controls, Options, Rules, Session

KEPT = 1000  # reports, while nobody asks for metrics


class Steering(Controls):
    """The handle that `attach` returns; also a context manager, which undoes everything at its end.

    Args:
        session: attached.
        optimizers: that train the model.
        scaler: that the loss goes through.
    """

    def __init__(self, session: Session, optimizers: Iterable[Optimizer], scaler: GradScaler | None) -> None:
        self._session, self._scaler = session, scaler
        self._optimizers = tuple(optimizers)
        self._done: set[Optimizer] = set()
        self._handles: list[RemovableHandle] = []
        for optimizer in self._optimizers:
            self._handles.append(optimizer.register_step_pre_hook(self._takes_turn))
            self._handles.append(optimizer.register_step_post_hook(self._took_turn))

    def watch(self, labels: Tensor | None) -> None:
        """Say which tokens of the coming forward pass are in the loss: labels `[batch, token]`, -100 ignored.

        To be said where the model is not called with `labels` or `attention_mask` by name.
        """
        self._session.heed_batches = False
        self._session.steerer.watch(labels)

    def before_step(self, optimizer: Optimizer | None = None) -> None:
        """Read and steer now what the next `step` would read and steer at its beginning.

        For whatever has to come between the two, such as clipping by one's own hand; gradients must be unscaled.

        Args:
            optimizer: whose step is coming; None where there is only one.

        Raises:
            ValueError: it is not attached, or there are several and none is named.
        """
        if optimizer is None and len(self._optimizers) > 1:
            raise ValueError(f"{len(self._optimizers)} optimizers are attached; name the one whose step is coming")
        chosen = self._optimizers[0] if optimizer is None else bare(optimizer)
        self._session.steerer.before_step(chosen, loss_scale=loss_scale(self._scaler, chosen))
        self._done.add(chosen)

    def metrics(self) -> dict[str, float]:
        """The mean of what was measured since the last call (of the last 1000 reports at most); empty if nothing was.

        One synchronisation with the device.
        """
        return dict(self._session.metrics) if self._session.drain() else {}

    def state_dict(self) -> dict[str, Any]:
        """The steering state, for your checkpoint: tensors and JSON values; `interptrain.checkpoint` writes a file."""
        return self._session.state_dict()

    def detach(self) -> None:
        """Leave nothing behind on the model and its optimizers."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._session.end()

    def __enter__(self) -> Steering:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            if kind is None:
                self._session.summarise()
        finally:
            self.detach()

    def _takes_turn(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """At the beginning of a step; a closure is followed by what this does, since it makes the gradients."""
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._before(optimizer)
            return None
        return (args[0],), {**kwargs, "closure": self._followed(closure, optimizer)}

    def _took_turn(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._done.discard(optimizer)

    def _followed(self, closure: Callable[[], Any], optimizer: Optimizer) -> Callable[[], Any]:
        def followed() -> Any:
            loss = closure()
            self._before(optimizer)
            return loss

        return followed

    def _before(self, optimizer: Optimizer) -> None:
        if optimizer not in self._done:
            kept = vars(optimizer).get("grad_scale")  # fused ones unscale in their own step
            scale = 1.0 if kept is None else kept
            self._session.steerer.before_step(
                optimizer, loss_scale=loss_scale(self._scaler, optimizer), gradient_scale=scale
            )


def attach(
    model: nn.Module,
    optimizer: Optimizer | Iterable[Optimizer],
    bank: ConceptBank,
    rule: Rules | None = None,
    *,
    scaler: GradScaler | None = None,
    state: Mapping[str, Any] | None = None,
    **options: Unpack[Options],
) -> Steering:
    """Read every step of a loop as concepts, and steer it by a rule; nothing else of the loop changes.

        optimizer.step():   G -> before_step (read, steer, clip) -> the optimizer's arithmetic -> dW read, or steered

    The gradients are read when the optimizer's `step` begins, after whatever the loop does to them: unscaling,
    accumulation, clipping. To clip what is steered, as Lightning does, give `clip_norm` in place of clipping, or call
    `before_step()` in front of it. Labels are taken from the model's own call, `model(input_ids=..., labels=...)`.
    Closures, fused optimizers, models that are compiled, `accelerate.prepare`d, in DDP or FSDP2 work.

    Args:
        model: that trains.
        optimizer: that trains it, or several; accelerate's wrappers are looked into.
        bank: the concepts.
        rule: what to do to them; by default they are observed only.
        scaler: that the loss goes through, where there is one: signed figures are of the unscaled loss.
        state: of an earlier run, from `state_dict`, to go on from.
        options: those of every callback, see `interptrain.session.Options`.

    Raises:
        ValueError: the bank does not fit the model, a module is not understood, a rule names an unknown concept, or
            the state is of another bank or other sites.
        TypeError: an unknown option, or a model or optimizer that cannot be steered.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from interptrain import ConceptBank, suppress
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=16,
        ...                                      num_hidden_layers=2, num_attention_heads=2))
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> bank = ConceptBank.from_directions({"pirate": torch.ones(16)}, hook="blocks.0.hook_resid_post")
        >>> tokens = torch.randint(0, 8, (2, 5))
        >>> with attach(model, optimizer, bank, suppress("pirate"), summary=False) as steering:
        ...     for _ in range(3):
        ...         model(input_ids=tokens, labels=tokens).loss.backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        ...     metrics = steering.metrics()
        >>> metrics["concept/pirate/gain"]
        0.0
    """
    session = Session(bank, rule, kept=KEPT, **options)
    given = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    optimizers = [bare(each) for each in given]
    session.load_state_dict(state or {})
    session.start(model, *optimizers)
    session.listen(model)
    return Steering(session, optimizers, _scaler_of(given) if scaler is None else scaler)


def _scaler_of(optimizers: Iterable[Optimizer]) -> GradScaler | None:
    """The scaler that accelerate's wrapper knows."""
    return next((scaler for each in optimizers if (scaler := vars(each).get("scaler")) is not None), None)
