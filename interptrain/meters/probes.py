"""Probe sets: fixed texts that are run through the model again and again, and what they are at the hooks."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interptrain.concepts.activation import Activation
from interptrain.meters.tokens import bos_token, leading_bos, loss_positions
from interptrain.sites.reading import reading_point
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
    are not looked for. A BOS token in front of a text, by the model's configuration, does not count either.

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

    def means(
        self,
        model: nn.Module,
        activations: Mapping[str, Activation],
        *,
        hooks: Sequence[str] | None = None,
        beside: Beside | None = None,
    ) -> ProbeMeans:
        """Run every set through a model once; a BOS token in front of a text does not count.

        Args:
            model: holds a causal language model; left as it was.
            activations: by place, what reads the concepts there.
            hooks: of these places, those of which the residual activations are wanted; None for all.
            beside: looks at the same passes.

        Raises:
            ValueError: a place is not in the model, it takes no `input_ids`, or a set is nothing but BOS tokens.
        """
        inner, caught = callable_model(model), dict[str, Tensor]()
        wanted = tuple(activations if hooks is None else hooks)
        with ExitStack() as stack:
            stack.enter_context(evaluating(model))
            for place in {**activations, **dict.fromkeys(() if beside is None else beside.places)}:
                stack.callback(reading_point(place).listen(inner, partial(caught.__setitem__, place)).remove)
            passes = _Passes(inner, bos_token(inner), caught, activations, wanted, beside)
            means = [passes.means_of(self, name) for name in self.names]
        return ProbeMeans(torch.stack([one for one, _ in means]), torch.stack([one for _, one in means]))


class Beside(Protocol):
    """What looks at the probe sets' passes beside the means."""

    @property
    def places(self) -> Sequence[str]:
        """The hook points that it wants."""
        ...

    def take(self, name: str, counted: Bool[Tensor, "batch token"], caught: Mapping[str, Tensor]) -> None:
        """Take one pass: the set's name, its attended tokens but for BOS, and the activations by hook point."""
        ...


@dataclass(frozen=True)
class Several:
    """Several that look at the same passes.

    Args:
        all: each of them.
    """

    all: tuple[Beside, ...]

    @property
    def places(self) -> tuple[str, ...]:
        """The hook points that any of them wants."""
        return tuple(dict.fromkeys(place for each in self.all for place in each.places))

    def take(self, name: str, counted: Bool[Tensor, "batch token"], caught: Mapping[str, Tensor]) -> None:
        """Hand one pass to each."""
        for each in self.all:
            each.take(name, counted, caught)


@dataclass(frozen=True, eq=False)
class _Passes:
    """Forward passes over probe sets, and what is made of each."""

    model: nn.Module
    bos: int | None
    caught: dict[str, Tensor]
    activations: Mapping[str, Activation]
    hooks: tuple[str, ...]
    beside: Beside | None

    def means_of(self, sets: ProbeSets, name: str) -> tuple[Float[Tensor, "hook d_model"], Float[Tensor, "concept"]]:
        device = next(self.model.parameters()).device
        residual: list[Tensor] = []
        activation: list[Tensor] = []
        count = 0
        for given, batch, positions in zip(
            sets.batches[name], sets.on(device, name), sets.positions[name], strict=True
        ):
            bos = leading_bos(given["input_ids"], given["attention_mask"], self.bos)
            kept = positions[~bos.flatten()[positions]]
            self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            if self.beside is not None:
                self.beside.take(name, given["attention_mask"].bool() & ~bos, self.caught)
            tokens = {place: self._at(place, kept) for place in self.activations}
            residual.append(torch.stack([tokens[hook].sum(0).to(device) for hook in self.hooks]))
            found = [self.activations[place](h).sum(0).to(device) for place, h in tokens.items()]
            activation.append(torch.stack(found).sum(0))
            count += len(kept)
        if count == 0:
            raise ValueError(f"probe set '{name}' has no counted tokens but the BOS token in front of its texts")
        return torch.stack(residual).sum(0) / count, torch.stack(activation).sum(0) / count

    def _at(self, place: str, kept: Int[Tensor, "_"]) -> Float[Tensor, "_ width"]:
        there = self.caught[place]
        return there.flatten(0, 1).index_select(0, kept.to(there.device, non_blocking=True)).float()


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
