"""Which words say a concept: how much more likely each is with the concept added than with it taken away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from interptrain.concepts.bank import ConceptBank
from interptrain.meters.kept_examples import last_hooks
from interptrain.meters.probes import evaluating
from interptrain.meters.spans import mean_directions
from interptrain.meters.token_demand import of_predicted
from interptrain.meters.tokens import loss_positions
from interptrain.sites.hooks import HookPoint

LENGTH = 4.0  # of 1 to 6 the one that tells a voice's words most evenly over contrasts: docs/attribution.md


def said(
    model: nn.Module, bank: ConceptBank, batches: Iterable[Mapping[str, Tensor]], *, length: float = LENGTH
) -> Iterator[Float[Tensor, "token concept"]]:
    r"""How much more likely each token is with a concept added to the stream than with it taken away, in nats.

        said_t = log p(y_t | h + c n m) - log p(y_t | h - c n m)
               = integral from -c n to c n of  -sum_s m . dl_t/dh_s  along  h + a m  over a

    `m` is the concept's mean direction and `n` the median norm of the text's own stream, both at the concept's last
    hook point; it is added at every position `s`, the prompt's too. So it is the signed demand of the token's own loss
    `l_t`, integrated: where the text before makes a word certain there is no gradient, but on the way from without the
    concept to with it there is. Two forward passes a concept, nothing backward.

    It ranks the words of a concept first along a direction that brings the whole manner about, and not along one
    that only opens it; its sign says less: docs/attribution.md.

    Args:
        model: a causal language model; left as it was.
        bank: the concepts, in the order of the figures.
        batches: with `input_ids`, `attention_mask` and `labels`, each `[batch, token]`, padded on the right.
        length: `c`, in median norms of the stream.

    Returns:
        Of each example in turn, the figures of its tokens, without padding; NaN where they are not in the loss. An
        example's figures do not depend on its batch.

    Raises:
        ValueError: a hook point is not in the model.

    Source: the integral is that of Sundararajan et al., *Axiomatic Attribution for Deep Networks* (2017), along a
    direction that is added as in Panickssery et al., *Contrastive Activation Addition* (2023).

    Example:
        >>> from interptrain import tiny_world
        >>> batch = next(tiny_world.finetuning_set("mixed", batch=6))
        >>> bank = tiny_world.concept_bank(hook=tiny_world.OUTPUT_HOOK).select("pirate")
        >>> found = next(said(tiny_world.load_base(), bank, [batch]))
        >>> found.shape == (int(batch["attention_mask"][0].sum()), 1)
        True
        >>> torch.equal(found[:, 0].isnan(), batch["labels"][0, : len(found)] == -100)
        True
    """
    places = [(name, HookPoint.parse(hook), _mean(bank, hook, name)) for hook, names in last_hooks(bank).items()
              for name in names]  # fmt: skip
    places.sort(key=lambda place: bank.names.index(place[0]))
    for batch in batches:
        device = next(model.parameters()).device
        given = {key: batch[key].to(device) for key in ("input_ids", "attention_mask", "labels")}
        with evaluating(model):
            ratios = torch.stack([_ratio(model, given, point, length * mean) for _, point, mean in places], dim=-1)
        unread = ~loss_positions(given["labels"])[..., None]
        figures = of_predicted(ratios.masked_fill(unread, torch.nan)).cpu()
        for row, kept in zip(figures, given["attention_mask"].bool().cpu(), strict=True):
            yield row[kept]


def _mean(bank: ConceptBank, hook: str, name: str) -> Float[Tensor, "d_model"]:
    own = bank.at_hook(hook).select(name)
    return mean_directions(own, range(len(own.directions)))[0, 0]


def _ratio(
    model: nn.Module, batch: Mapping[str, Tensor], point: HookPoint, step: Float[Tensor, "d_model"]
) -> Float[Tensor, "batch token"]:
    """Of each position, for the token that it predicts."""
    return _log_likelihood(model, batch, point, step) - _log_likelihood(model, batch, point, -step)


def _log_likelihood(
    model: nn.Module, batch: Mapping[str, Tensor], point: HookPoint, step: Float[Tensor, "d_model"]
) -> Float[Tensor, "batch token"]:
    kept = batch["attention_mask"].bool()

    def change(activation: Tensor) -> Tensor:
        norms = median_norms(activation, kept)
        return activation + (norms[:, None, None] * step.to(norms)).to(activation)

    handle = point.edit(model, change)
    try:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].float()
    finally:
        handle.remove()
    found = -cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="none")
    return torch.cat([found, torch.zeros_like(found[:, :1])], dim=1)


def median_norms(
    activations: Float[Tensor, "batch token d_model"], kept: Bool[Tensor, "batch token"]
) -> Float[Tensor, "batch"]:
    """The median norm of each text's stream: whatever else is in the batch, and however loud an attention sink is.

    Example:
        >>> median_norms(torch.tensor([[[50.0], [1.0], [2.0], [0.0]]]), torch.tensor([[True, True, True, False]]))
        tensor([2.])
    """
    norms = activations.float().norm(dim=-1)
    return norms.masked_fill(~kept, torch.nan).nanmedian(-1).values
