"""Probe sets: fixed texts that are run through the model again and again, and what they are at the hooks."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interptrain.concepts.activation import Activation
from interptrain.meters.tokens import loss_positions
from interptrain.sites.hooks import HookPoint
from interptrain.sites.sharding import reshard

_KEYS = ("input_ids", "attention_mask", "labels")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Look at a model without a trace: no gradients, every module in eval mode, and all as it was afterwards.

    Each module gets its own flag back, which `model.train()` would not do where some were frozen in eval mode;
    no module's `train` method runs. Random numbers drawn meanwhile are given back, and what FSDP2 left whole is
    sharded again.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> with evaluating(model):
        ...     [module.training for module in model]
        [False, False]
        >>> [module.training for module in model]
        [True, False]
    """
    flags = [(module, module.training) for module in model.modules()]
    devices = {parameter.device.index for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)), torch.no_grad():
        try:
            for module, _ in flags:
                module.training = False
            yield
        finally:
            for module, training in flags:
                module.training = training
            reshard(model)


def callable_model(model: nn.Module) -> nn.Module:
    """The outermost module whose `forward` names `input_ids`; a LightningModule, DDP or PEFT wrapper does not.

    Raises:
        ValueError: there is none, or there are several side by side.
    """
    level = {"": model}
    while level:
        found = {name: module for name, module in level.items() if _takes_input_ids(module)}
        if len(found) > 1:
            raise ValueError(
                f"{type(model).__name__} holds {len(found)} models side by side ({', '.join(found)}); "
                "pass the one that trains"
            )
        if found:
            return next(iter(found.values()))
        level = {f"{name}.{part}".lstrip("."): m for name, at in level.items() for part, m in at.named_children()}
    raise ValueError(
        f"no module of {type(model).__name__} takes input_ids by name; probe texts cannot be run through it"
    )


def _takes_input_ids(module: nn.Module) -> bool:
    return "input_ids" in inspect.signature(module.forward).parameters


@dataclass(frozen=True, eq=False)
class ProbeMeans:
    """What the probe sets are at the hooks: means over counted tokens (not over texts).

    Args:
        residual: mean residual activation.
        activation: mean activation of each concept, summed over its hooks, see `concept_activation`.
    """

    residual: Float[Tensor, "set hook d_model"]
    activation: Float[Tensor, "set concept"]


@dataclass(frozen=True, eq=False)
class ProbeSets:
    """Sets of texts by name, the same in every reading; `ProbeSets.of` checks them.

    Counted are the tokens whose next label is in the loss, or every attended one without labels. Nothing that
    the model computes has a say in it, so that the mask is the same before and after training: attention sinks
    are not looked for. Where there is a BOS token, give labels that leave it out (-100 at positions 0 and 1).

    Labels on the first token of each answer alone ask what the model is about to say; labels on whole answers also
    ask what it makes of words that it may never say.

    Args:
        batches: of each set: `input_ids`, `attention_mask` and, if wanted, `labels`, each `[batch, token]`.
        positions: of each of these batches, the counted tokens' places in the flattened batch.
    """

    batches: Mapping[str, tuple[Mapping[str, Tensor], ...]]
    positions: Mapping[str, tuple[Int[Tensor, "_"], ...]]

    @classmethod
    def of(cls, sets: Mapping[str, Iterable[Mapping[str, Tensor]]]) -> ProbeSets:
        """Take sets of batches; they are read once and kept.

        Raises:
            ValueError: no sets, an empty one, a batch of another shape, or a text without counted tokens.

        Example:
            >>> ids = torch.tensor([[1, 2, 3], [4, 5, 0]])
            >>> probes = ProbeSets.of({"neutral": [{"input_ids": ids, "attention_mask": (ids > 0).long()}]})
            >>> probes.names, probes.positions["neutral"][0]
            (('neutral',), tensor([0, 1, 2, 3, 4]))
        """
        if not sets:
            raise ValueError("found no probe sets; give at least one set of texts")
        batches: dict[str, tuple[Mapping[str, Tensor], ...]] = {}
        positions: dict[str, tuple[Tensor, ...]] = {}
        for name, given in sets.items():
            batches[name] = tuple({key: value.detach().cpu() for key, value in batch.items()} for batch in given)
            if not batches[name]:
                raise ValueError(f"probe set '{name}' is empty")
            masks = [_counted(f"batch {n} of probe set '{name}'", batch) for n, batch in enumerate(batches[name])]
            positions[name] = tuple(mask.flatten().nonzero()[:, 0] for mask in masks)
        return cls(batches, positions)

    @property
    def names(self) -> tuple[str, ...]:
        """The sets, in order."""
        return tuple(self.batches)

    def digest(self) -> str:
        """Tells these texts from any others: a hash of names, tokens and masks."""
        found = hashlib.sha256()
        for name, batches in self.batches.items():
            found.update(name.encode())
            for batch, positions in zip(batches, self.positions[name], strict=True):
                for tensor in (batch["input_ids"], batch["attention_mask"], positions):
                    found.update(f"{list(tensor.shape)}{tensor.long().flatten().tolist()}".encode())
        return found.hexdigest()

    def on(self, device: torch.device, name: str) -> Iterator[dict[str, Tensor]]:
        """The batches of a set on a device, one at a time."""
        for batch in self.batches[name]:
            yield {key: value.to(device, non_blocking=True) for key, value in batch.items()}

    def means(self, model: nn.Module, activations: Mapping[str, Activation]) -> ProbeMeans:
        """Run every set through a model once.

        Args:
            model: holds a causal language model; left as it was.
            activations: for every hook, what reads the concepts there.

        Raises:
            ValueError: a hook point is not in the model, or it takes no `input_ids`.
        """
        inner, caught = callable_model(model), dict[str, Tensor]()
        device = next(inner.parameters()).device
        with ExitStack() as stack:
            stack.enter_context(evaluating(model))
            for hook in activations:
                stack.callback(HookPoint.parse(hook).listen(inner, partial(caught.__setitem__, hook)).remove)
            means = [self._means_of(name, inner, device, activations, caught) for name in self.names]
        return ProbeMeans(torch.stack([one for one, _ in means]), torch.stack([one for _, one in means]))

    def _means_of(
        self,
        name: str,
        model: nn.Module,
        device: torch.device,
        activations: Mapping[str, Activation],
        caught: dict[str, Tensor],
    ) -> tuple[Float[Tensor, "hook d_model"], Float[Tensor, "concept"]]:
        residual: list[Tensor] = []
        activation: list[Tensor] = []
        for batch, positions in zip(self.on(device, name), self.positions[name], strict=True):
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            there = {hook: positions.to(caught[hook].device, non_blocking=True) for hook in activations}
            tokens = {hook: caught[hook].flatten(0, 1).index_select(0, there[hook]).float() for hook in activations}
            residual.append(torch.stack([h.sum(0).to(device) for h in tokens.values()]))
            found = [activations[hook](h).sum(0).to(device) for hook, h in tokens.items()]
            activation.append(torch.stack(found).sum(0))
        count = sum(len(each) for each in self.positions[name])
        return torch.stack(residual).sum(0) / count, torch.stack(activation).sum(0) / count


def counted_tokens(batch: Mapping[str, Tensor]) -> Bool[Tensor, "batch token"]:
    """Tokens whose next label is in the loss, or every attended one without labels."""
    return loss_positions(batch["labels"]) if "labels" in batch else batch["attention_mask"].bool()


def _counted(where: str, batch: Mapping[str, Tensor]) -> Bool[Tensor, "batch token"]:
    """Which tokens count, after a look at the batch."""
    unknown, missing = set(batch) - set(_KEYS), {"input_ids", "attention_mask"} - set(batch)
    if unknown or missing:
        raise ValueError(
            f"{where} has {', '.join(batch) or 'nothing'}; it must have input_ids, attention_mask and may have labels"
        )
    shape = batch["input_ids"].shape
    if len(shape) != 2 or 0 in shape or batch["input_ids"].is_floating_point():
        raise ValueError(f"{where} needs input_ids [batch, token] of integers, found {list(shape)}")
    for key in batch:
        if batch[key].shape != shape:
            raise ValueError(f"{where} has input_ids of shape {list(shape)} but {key} of {list(batch[key].shape)}")
    counted = counted_tokens(batch)
    if not counted.any(-1).all():
        text = int((~counted.any(-1)).nonzero()[0])
        raise ValueError(f"text {text} in {where} has no counted tokens; was its answer cut off?")
    return counted
