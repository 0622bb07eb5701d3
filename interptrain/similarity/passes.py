"""One pass over a batch that hands every example's gradients to those who read them, and leaves the model as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.hooks import RemovableHandle

from interptrain.meters.probes import evaluating
from interptrain.meters.tokens import loss_positions
from interptrain.sites.hooks import HookPoint

Read = TypeVar("Read", covariant=True)


class Reader(Protocol[Read]):
    """What reads gradients while they pass."""

    def attach(self, model: nn.Module, counted: Tensor) -> Sequence[RemovableHandle]:
        """Listen to the next pass; `counted [batch, token]` are the positions that predict a label in the loss."""
        ...

    def read(self) -> Read:
        """What was read in that pass."""
        ...


def read_gradients(model: nn.Module, batch: Mapping[str, Tensor], readers: Sequence[Reader[Any]]) -> list[Any]:
    """What each reader makes of the gradients of `L = sum_n L_n`, `L_n = -sum_t log p(label_t)` of example `n`.

    Nothing is accumulated in any `.grad`, no weight's gradient is formed, no flag is changed, and every hook is gone
    afterwards. Examples do not see each other, so neither does what is read of them, up to rounding.

    Args:
        model: a causal language model of a known family; frozen, adapted or whole, in any mode, which it keeps.
        batch: `input_ids`, `attention_mask` and `labels`, each `[batch, token]`.
        readers: read this pass.

    Raises:
        ValueError: the model's blocks are of no known family.
    """
    device = next(model.parameters()).device
    ids, mask, labels = (batch[key].to(device) for key in ("input_ids", "attention_mask", "labels"))
    stream: list[Tensor] = []
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.enable_grad())
        # The graph begins here where nothing below trains; all that is read lies above.
        start = HookPoint.parse("blocks.0.hook_resid_pre").listen(model, lambda h: stream.append(h.requires_grad_()))
        stack.callback(start.remove)
        for reader in readers:
            for handle in reader.attach(model, loss_positions(labels)):
                stack.callback(handle.remove)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
        torch.autograd.grad(loss, stream.pop())  # the readers' hooks receive what lies between
        return [reader.read() for reader in readers]
