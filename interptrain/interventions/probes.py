"""Fixed texts on which an intervention keeps the model near what it was."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interptrain.meters.probes import ProbeSets, counted_tokens, evaluating
from interptrain.projection import full_precision

if TYPE_CHECKING:
    from interptrain.interventions.intervention import Context

Batch: TypeAlias = Mapping[str, Tensor]
Read: TypeAlias = Callable[[nn.Module, Batch, Tensor], Tensor]
_ONLY = "probes"


class ProbeTexts:
    """Batches of texts, one after another without end, and what a read-out made of them before training.

    Args:
        name: of the intervention; what is kept is kept under it.
        context: the model in training.
        batches: with `input_ids`, `attention_mask` and, if wanted, `labels`; counted are the positions whose next
            label is in the loss, or every attended one without labels.
        read: from the model, a batch and a mask of its counted positions to figures, `[counted, any]`.
        what: is read; a resumed run must read the same.

    Raises:
        ValueError: no texts, batches that are not understood, a name that is taken, or what an earlier run kept under
            it is of other texts or another read-out; the last also when a state is restored.
    """

    def __init__(self, name: str, context: Context, batches: Iterable[Batch], read: Read, *, what: str) -> None:
        context.claim(name)
        self._name, self._context, self._read = name, context, read
        sets = ProbeSets.of({_ONLY: batches})
        self._batches = sets.batches[_ONLY]
        self._digest = torch.tensor(list(hashlib.sha256(f"{what} {sets.digest()}".encode()).digest()))
        kept = context.kept
        with context.asking(), evaluating(context.model), full_precision():
            for number in range(len(self._batches)):
                kept.setdefault(f"{name}/before/{number}", self._figures(number))
        kept.setdefault(f"{name}/turn", torch.zeros((), dtype=torch.long))
        kept.setdefault(f"{name}/texts", self._digest)
        context.when_restored(self._refuse_others)
        self._refuse_others()

    @contextmanager
    def next(self) -> Iterator[tuple[Float[Tensor, "counted figure"], Float[Tensor, "counted figure"]]]:
        """The next batch's figures now, with gradients, and before training; the model is in eval mode meanwhile."""
        kept, name = self._context.kept, self._name
        number = int(kept[f"{name}/turn"]) % len(self._batches)  # on the host: nothing waits for a device
        kept[f"{name}/turn"] = torch.tensor(number + 1)
        before = kept[f"{name}/before/{number}"] = kept[f"{name}/before/{number}"].to(self._context.device)
        with self._context.asking(), evaluating(self._context.model), full_precision(), torch.enable_grad():
            yield self._figures(number), before

    def _refuse_others(self) -> None:
        if not torch.equal(self._context.kept[f"{self._name}/texts"].cpu(), self._digest):
            raise ValueError(
                f"what '{self._name}' kept is of other probe texts or read in another way; resume with the same"
            )

    def _figures(self, number: int) -> Float[Tensor, "counted figure"]:
        device = self._context.device
        batch = {key: value.to(device, non_blocking=True) for key, value in self._batches[number].items()}
        return self._read(self._context.model, batch, counted_tokens(batch))


def read_logits(
    model: nn.Module, batch: Batch, counted: Bool[Tensor, "batch token"]
) -> Float[Tensor, "counted vocabulary"]:
    """The logits at the counted positions.

    Raises:
        ValueError: the model's output has none.
    """
    output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise ValueError(f"the model's output ({type(output).__name__}) has no logits to read probe texts by")
    return logits[counted].float()
