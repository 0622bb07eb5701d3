"""The relearning check: how soon a forgotten topic is back, trained on a few of its examples.

    n = min { step : rate(step) >= 1/2 }

What was only hidden comes back from a few examples of it; what is gone has to be learnt from them like anything new.
(Deeb and Roger 2024, do unlearning methods remove information; Hu et al. 2024, jogging the memory of unlearned models.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from interptrain.recipes.examples import batches
from interptrain.recipes.fine_tuner import is_due
from interptrain.recipes.loading import ModelChoice, load_model, trainable
from interptrain.recorders.document import Checkpoint, Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Rows = Sequence[Mapping[str, Sequence[int]]]
BACK = 0.5


def fit(
    model: nn.Module,
    rows: Rows,
    *,
    steps: int,
    rate: float,
    batch: int,
    pad: int,
    seed: int,
    look: Callable[[int], None] = lambda step: None,
    cooldown: float = 0.0,
) -> None:
    """Plain fine-tuning with AdamW, nothing read and nothing steered.

    Args:
        model: trains what asks for a gradient.
        rows: tokens and labels.
        steps: of the optimizer.
        rate: AdamW's.
        batch: examples of a step.
        pad: the padding token.
        seed: of the order.
        look: called with the number of steps done, after each.
        cooldown: share of the steps, the last, over which the rate falls to 0.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, device = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0), parameters[0].device
    for step, each in enumerate(batches(rows, batch, pad, steps=steps, seed=seed)):
        left = (steps - step) / (cooldown * steps) if cooldown else 1.0
        optimizer.param_groups[0]["lr"] = rate * min(1.0, left)
        optimizer.zero_grad()
        model(**{name: values.to(device) for name, values in each.items()}).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        look(step + 1)


def relearn(
    model: nn.Module,
    rows: Rows,
    score: Callable[[nn.Module], Scores],
    *,
    steps: int,
    every: int,
    rate: float,
    batch: int,
    pad: int,
    seed: int,
    tell: Callable[[int], None] = lambda step: None,
) -> list[Checkpoint]:
    """Train on a few examples of the topic, and score at the start, at 1, 2, 4, ... and every few steps."""
    found: list[Checkpoint] = [{"step": 0, "scores": score(model)}]

    def look(step: int) -> None:
        if is_due(step, every) or step == steps:
            found.append({"step": step, "scores": score(model)})
        tell(step)

    fit(model, rows, steps=steps, rate=rate, batch=min(batch, len(rows)), pad=pad, seed=seed, look=look)
    return found


def back_after(checkpoints: Sequence[Checkpoint], measure: str) -> int | None:
    """The first step looked at with a rate of a half or more; None if there is none.

    Example:
        >>> looks = [{"step": step, "scores": {"topic": rate}} for step, rate in ((0, 0.0), (2, 0.4), (4, 0.6))]
        >>> back_after(looks, "topic"), back_after(looks[:2], "topic")
        (4, None)
    """
    return next((each["step"] for each in checkpoints if each["scores"][measure] >= BACK), None)


def load_trained(choice: ModelChoice, folder: Path | None) -> PreTrainedModel:
    """A model as a run left it, ready to be trained again the same way: an adapter is merged, and a new one begun.

    Args:
        choice: what the run started from.
        folder: where it left its weights; None for the start itself.
    """
    from dataclasses import replace

    from peft import PeftModel

    if folder is None:
        return load_model(choice)
    if choice.tuning == "full":
        return load_model(replace(choice, name=str(folder)))
    start = load_model(replace(choice, tuning="full", freeze=()))
    merged = PeftModel.from_pretrained(start, folder).merge_and_unload()
    return trainable(merged, choice).train()
