"""Concepts from contrast: what separates two sets of texts, in activations or in an SAE's latents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from interptrain.concepts.bank import unit_rows
from interptrain.meters.probes import evaluating
from interptrain.meters.tokens import bos_token, leading_bos, loss_positions
from interptrain.sites.reading import reading_point


@dataclass(frozen=True, eq=False)
class TextActivations:
    """Activations of the counted tokens of some texts.

    Args:
        values: one row a token: residual activations, or an SAE's latents.
        text: which text each token belongs to, counted from 0.
    """

    values: Float[Tensor, "token width"]
    text: Int[Tensor, "token"]

    def means(self) -> Float[Tensor, "text width"]:
        """The mean over each text's tokens.

        Raises:
            ValueError: there are no texts, or one without tokens.
        """
        if len(self.text) == 0:
            raise ValueError("a set of texts is empty: no tokens to average")
        counts = torch.bincount(self.text)
        if not counts.all():
            raise ValueError(f"text {int((counts == 0).nonzero()[0])} has no counted tokens")
        sums = torch.zeros(len(counts), self.values.shape[1]).index_add_(0, self.text, self.values)
        return sums / counts[:, None]


@contextmanager
def _captured(model: nn.Module, hook: str) -> Iterator[list[Tensor]]:
    """The residual activations at a hook point, call by call; the model is left as it was."""
    caught: list[Tensor] = []

    def catch(activation: Tensor) -> None:  # of a frozen model the graph begins here
        caught.append(activation.requires_grad_() if torch.is_grad_enabled() else activation)

    handle = reading_point(hook).listen(model, catch)
    try:
        with evaluating(model):
            yield caught
    finally:
        handle.remove()


@torch.no_grad()
def collect(
    model: nn.Module, hook: str, batches: Iterable[Mapping[str, Tensor]], *, keep_bos: bool = False
) -> TextActivations:
    """Run texts through a model and keep the residual activations at a hook point.

    Counted are the positions whose next label is in the loss: from the end of the prompt to the last token
    but one. Without labels every attended position counts. A BOS token in front of a text, by the model's
    configuration, does not: it is an attention sink, and the same in every text.

    Args:
        model: takes `input_ids` and `attention_mask`; left in the mode it was in.
        hook: e.g. `blocks.2.hook_resid_post`.
        batches: with `input_ids`, `attention_mask` and, if wanted, `labels`, each `[batch, token]`, on any device.
        keep_bos: count a BOS token like others.

    Returns:
        The activations, on the CPU.

    Raises:
        ValueError: the hook point is not in the model, or there are no texts.
    """
    values, texts, seen, bos = [], [], 0, None if keep_bos else bos_token(model)
    device = next(model.parameters()).device
    with _captured(model, hook) as caught:
        for given in batches:
            batch = {key: value.to(device) for key, value in given.items()}
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            counted = loss_positions(batch["labels"]) if "labels" in batch else batch["attention_mask"].bool()
            counted = counted & ~leading_bos(batch["input_ids"], batch["attention_mask"], bos)
            values.append(caught.pop().float()[counted].cpu())
            texts.append(counted.nonzero()[:, 0].cpu() + seen)
            seen += len(counted)
    if seen == 0:
        raise ValueError("a set of texts is empty: nothing to run through the model")
    return TextActivations(torch.cat(values), torch.cat(texts))


def effects(
    model: nn.Module, hook: str, batches: Iterable[Mapping[str, Tensor]], decoder: Float[Tensor, "latent d_model"]
) -> Float[Tensor, "latent"]:
    """How much more likely each latent makes the answers of some texts, to first order.

        e_i = -mean_t d_i . dL/dh_t

    With positive answers to neutral prompts this says which latents bring a concept about, where AUC only says
    which ones notice it.

    Args:
        model: a causal language model that returns its loss, given `labels`.
        hook: where the latents write.
        batches: with `input_ids`, `attention_mask` and `labels`; the mean is over the labels' tokens.
        decoder: decoder rows, of any scale.

    Raises:
        ValueError: the hook point is not in the model, or there are no texts.
    """
    total, count = torch.zeros(decoder.shape[1]), 0
    device = next(model.parameters()).device
    with _captured(model, hook) as caught, torch.enable_grad():
        for given in batches:
            batch = {key: value.to(device) for key, value in given.items()}
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            loss = cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
            (gradient,) = torch.autograd.grad(loss, caught.pop())
            counted = loss_positions(batch["labels"])
            total -= gradient[counted].float().sum(0).cpu()
            count += int(counted.sum())
    if count == 0:
        raise ValueError("a set of texts is empty: nothing to run through the model")
    return unit_rows(decoder.float().cpu()) @ total / count


def difference_of_means(positive: TextActivations, negative: TextActivations) -> Float[Tensor, "width"]:
    """The unit direction from the mean of one set of texts to that of another.

        d = (m+ - m-) / ||m+ - m-||,   m = mean over texts of the mean over a text's tokens

    Raises:
        ValueError: a set is empty, or the means coincide.

    Example:
        >>> one = TextActivations(torch.tensor([[3.0, 1.0]]), torch.tensor([0]))
        >>> other = TextActivations(torch.tensor([[0.0, 1.0]]), torch.tensor([0]))
        >>> difference_of_means(one, other)
        tensor([1., 0.])
    """
    return unit_rows((positive.means().mean(0) - negative.means().mean(0))[None])[0]


def auc(positive: Float[Tensor, "positive score"], negative: Float[Tensor, "negative score"]) -> Float[Tensor, "score"]:
    """How well each score separates two sets: `P(s+ > s-) + P(s+ = s-) / 2`.

    Example:
        >>> auc(torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [1.0]]))
        tensor([0.8750])
    """
    ordered = negative.T.contiguous().sort(-1).values
    sought = positive.T.contiguous()
    below = torch.searchsorted(ordered, sought, side="left")
    upto = torch.searchsorted(ordered, sought, side="right")
    return (below + upto).float().mean(-1) / (2 * ordered.shape[-1])


@dataclass(frozen=True, eq=False)
class Separation:
    """A group of latents that separates two sets of texts, best first.

    Args:
        latents: latent numbers.
        auc: of each, by the mean activation of a text.
        effect: of each, if it was ranked by effect.
        positive_rate: share of the positive texts' tokens it fires on.
        negative_rate: the same of the negative texts.
        scale: spread of its text means, for adding latents of different size.
    """

    latents: tuple[int, ...]
    auc: tuple[float, ...]
    effect: tuple[float, ...] | None
    positive_rate: tuple[float, ...]
    negative_rate: tuple[float, ...]
    scale: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.latents)


def separating_latents(
    positive: TextActivations,
    negative: TextActivations,
    *,
    count: int,
    decoder: Float[Tensor, "latent d_model"],
    effect: Float[Tensor, "latent"] | None = None,
    min_auc: float = 0.8,
    max_cosine: float = 0.9,
    alive: Bool[Tensor, "latent"] | None = None,
) -> Separation:
    """The SAE latents that fire more on one set of texts than on another, best first.

    A latent that fires on a concept need not bring it about. So every candidate must separate the texts with an
    AUC of at least `min_auc`, and of the candidates those with the largest `effect` are chosen (by AUC alone
    if there is none). Latents are redundant too: one whose decoder row lies within `max_cosine` of a better
    one's is passed over, so that a group spans about as many directions as it has latents.

    Args:
        positive: latent activations on texts that show the concept.
        negative: the same on texts that do not.
        count: how many to choose.
        decoder: decoder rows, of any scale.
        effect: of every latent, see `effects`.
        min_auc: of every chosen latent.
        max_cosine: between any two chosen rows.
        alive: latents to choose from; None for all.

    Raises:
        ValueError: a set is empty, or fewer than `count` latents separate the sets so well.
    """
    first, second = positive.means(), negative.means()
    separation = auc(first, second)
    rows = unit_rows(decoder.float())
    candidates = separation >= min_auc if alive is None else (separation >= min_auc) & alive
    order = (separation if effect is None else effect).argsort(descending=True)
    chosen: list[int] = []
    for latent in order[candidates[order]].tolist():
        if len(chosen) < count and (rows[chosen] @ rows[latent] <= max_cosine).all():
            chosen.append(latent)
    if len(chosen) < count:
        raise ValueError(
            f"asked for {count} latents but only {len(chosen)} separate the two sets of texts with an AUC of "
            f"{min_auc} or more; ask for fewer, or lower min_auc"
        )
    spread = torch.cat([first, second])[:, chosen].std(0)
    return Separation(
        latents=tuple(chosen),
        auc=tuple(separation[chosen].tolist()),
        effect=None if effect is None else tuple(effect[chosen].tolist()),
        positive_rate=tuple((positive.values[:, chosen] > 0).float().mean(0).tolist()),
        negative_rate=tuple((negative.values[:, chosen] > 0).float().mean(0).tolist()),
        scale=tuple(spread.tolist()),
    )


@dataclass(frozen=True)
class GroupAUC:
    """A group's AUC on texts that the search never saw, and the same under shuffled labels.

    Args:
        auc: of the group.
        shuffled: mean AUC over shuffles of the labels.
        shuffled_std: its spread.
    """

    auc: float
    shuffled: float
    shuffled_std: float


def group_auc(
    group: Separation, positive: TextActivations, negative: TextActivations, *, shuffles: int = 64, seed: int = 0
) -> GroupAUC:
    """How well a group of latents, taken together, separates two other sets of texts.

        s(text) = sum_i mean_t z_i(t) / scale_i

    Raises:
        ValueError: a set is empty.
    """
    scale = torch.tensor(group.scale)
    columns = list(group.latents)
    first = (positive.means()[:, columns] / scale).sum(-1)
    second = (negative.means()[:, columns] / scale).sum(-1)
    pooled, random = torch.cat([first, second]), torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(len(pooled), generator=random) for _ in range(shuffles)], dim=-1)
    shuffled = pooled[orders]
    chance = auc(shuffled[: len(first)], shuffled[len(first) :])
    return GroupAUC(float(auc(first[:, None], second[:, None])), float(chance.mean()), float(chance.std()))
