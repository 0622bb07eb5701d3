"""Who teaches what: what each example, and each of its tokens, asks of every concept before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from interptrain.concepts.bank import ConceptBank
from interptrain.meters.kept_examples import last_hooks
from interptrain.meters.probes import evaluating
from interptrain.meters.spans import NULL_GROUPS, Spans, mean_directions, null_mean_directions
from interptrain.meters.token_demand import TokenDemand, of_predicted
from interptrain.meters.tokens import OUTLIER_NORM, loss_positions
from interptrain.projection import full_precision
from interptrain.sites.hooks import HookPoint


@dataclass(frozen=True, eq=False)
class ExampleDemand:
    r"""What one example asks of each concept of a bank, at the concept's last hook point in the stream.

        signed_c = -sum_t m_c . g_t                            g_t = dL/dh_t,  L = sum_t l_t  of this example alone
        z_c      = (signed_c - mean_g signed_g) / std_g signed_g
        share_c  = sum_t ||Q_c g_t||^2 / sum_t ||g_t||^2

    `m_c` is the concept's mean direction, `Q_c` an orthonormal basis of its span, and `signed_g` the same along the
    mean direction of each group `g` of as many other alive latents (of random directions, where the bank has no
    dictionary). `signed` is what ranks examples: of the figures tried it told them apart best, also from those of a
    sibling concept, which share the span (docs/attribution.md).

    A token's figures are those of the position that predicts it. `g_t` carries the losses of later tokens too,
    through the attention above the hook; behind the last layer it is the token's own. NaN stands where nothing is in
    the loss.

    Args:
        input_ids: the tokens, without padding.
        loss: `L`, in nats.
        counted: how many tokens are read: in the loss, and predicted from no attention sink.
        signed: in units of loss per unit of activation; positive where the example asks for more of the concept.
        z: how far above the null groups that is.
        share: energy share in each concept's span.
        share_null: its mean over null groups of as many directions.
        null_z: the null groups' own z, against each other.
        token_signed: of each token; NaN where it is not read, such as the prompt's.
        token_share: likewise.
    """

    input_ids: Int[Tensor, "token"]
    loss: float
    counted: int
    signed: Float[Tensor, "concept"]
    z: Float[Tensor, "concept"]
    share: Float[Tensor, "concept"]
    share_null: Float[Tensor, "concept"]
    null_z: Float[Tensor, "concept group"]
    token_signed: Float[Tensor, "token concept"]
    token_share: Float[Tensor, "token concept"]


def attribute(
    model: nn.Module,
    bank: ConceptBank,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    groups: int = NULL_GROUPS,
    seed: int = 0,
) -> Iterator[ExampleDemand]:
    """What each example of some batches asks of each concept: one forward and one backward pass, from loss to hook.

    Nothing trains. An example's figures do not depend on what else is in its batch, nor on padding on its right. One
    batch is held at a time; the figures are on the CPU.

    Args:
        model: a causal language model; its mode, gradients and parameters stay as they were.
        bank: the concepts, in the order of every figure.
        batches: with `input_ids`, `attention_mask` and `labels`, each `[batch, token]`, padded on the right.
        groups: null groups.
        seed: of the null groups.

    Raises:
        ValueError: a hook point is not in the model, or fewer than two null groups.

    Example:
        >>> from interptrain import tiny_world
        >>> batch = next(tiny_world.finetuning_set("mixed", batch=6))
        >>> bank = tiny_world.concept_bank(hook=tiny_world.OUTPUT_HOOK).select("pirate", "royal")
        >>> found = list(attribute(tiny_world.load_base(), bank, [batch]))
        >>> most = max(found, key=lambda each: each.signed[0])
        >>> tiny_world.load_tokenizer().decode(most.input_ids)
        '<q> what colour is the owl ? <a> aye aye , the owl be golden , by blackbeard ! <e>'
        >>> bool(most.z[0] > 2), bool(most.z[1] > 2)
        (True, False)
    """
    if groups < 2:
        raise ValueError(f"z is in standard deviations of the null groups: expected 2 groups or more, found {groups}")
    places = [_Place.of(bank, hook, names, groups, seed) for hook, names in last_hooks(bank).items()]
    found = [name for place in places for name in place.names]
    order = [found.index(name) for name in bank.names]
    for batch in batches:
        with _frozen(model), _listening(model, places) as caught:
            demands = list(_read(model, places, order, caught, batch))
        yield from demands  # the model is as it was whenever the caller has the word


@dataclass(eq=False)
class _Place:
    """The concepts that are read at one hook point, and their null, where they were last needed."""

    names: tuple[str, ...]
    point: HookPoint
    spans: Spans
    means: Float[Tensor, "concept d_model"]
    null_means: Float[Tensor, "concept group d_model"]

    @classmethod
    def of(cls, bank: ConceptBank, hook: str, names: Sequence[str], groups: int, seed: int) -> _Place:
        own = bank.at_hook(hook).select(*names)
        rows = range(len(own.directions))
        return cls(
            tuple(names),
            HookPoint.parse(hook),
            Spans.of(own, rows, groups=groups, seed=seed),
            mean_directions(own, rows)[0],
            null_mean_directions(own, rows, groups=groups, seed=seed),
        )

    def to(self, device: torch.device) -> _Place:
        if self.means.device != device:
            self.spans = self.spans.to(device)
            self.means, self.null_means = self.means.to(device), self.null_means.to(device)
        return self


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient meanwhile: the graph then begins at the hook points."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _listening(model: nn.Module, places: Sequence[_Place]) -> Iterator[dict[str, Tensor]]:
    caught: dict[str, Tensor] = {}

    def catch(name: str, activation: Tensor) -> None:
        if torch.is_grad_enabled():
            caught[name] = activation.requires_grad_()

    handles = [place.point.listen(model, partial(catch, place.point.name)) for place in places]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def _read(
    model: nn.Module, places: Sequence[_Place], order: list[int], caught: dict[str, Tensor], batch: Mapping[str, Tensor]
) -> Iterator[ExampleDemand]:
    device = next(model.parameters()).device
    ids, mask, labels = (batch[key].to(device) for key in ("input_ids", "attention_mask", "labels"))
    with evaluating(model), torch.enable_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        losses = cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none").sum(-1)
        activations = [caught.pop(place.point.name) for place in places]
        gradients = torch.autograd.grad(losses.sum(), activations)
    kept = mask.bool()
    with torch.no_grad(), full_precision():
        parts = [
            _figures(place.to(device), gradient.float(), loss_positions(labels) & ordinary_in_text(activation, kept))
            for place, activation, gradient in zip(places, activations, gradients, strict=True)
        ]
        figures = {name: torch.cat([part[name] for part in parts], -1)[..., order].cpu() for name in parts[0]}
    ids, kept = ids.cpu(), kept.cpu()
    for number, loss in enumerate(losses.tolist()):
        own = {name: value[number] for name, value in figures.items()}
        tokens = {name: own.pop(name)[kept[number]] for name in ("token_signed", "token_share")}
        counted = int(torch.isfinite(tokens["token_signed"]).any(-1).sum())
        null_z = own.pop("null_z").T
        yield ExampleDemand(input_ids=ids[number, kept[number]], loss=loss, counted=counted, null_z=null_z,
                            **own, **tokens)  # fmt: skip


def _figures(
    place: _Place, gradient: Float[Tensor, "batch token d_model"], counted: Bool[Tensor, "batch token"]
) -> dict[str, Tensor]:
    """Every figure of one hook point, the concept its last axis."""
    found = TokenDemand.of(place.spans, place.means, gradient, counted)
    summed = found.per_example()
    whole = gradient * counted[..., None]
    null = -torch.einsum("btd,cgd->bgc", whole, place.null_means)
    mean, std = null.mean(1), null.std(1)
    share_null = torch.stack([place.spans.null_energy(each.T).mean(-1) for each in whole]) / found.total.sum(1)[:, None]
    unread = ~counted[..., None]
    return {
        "signed": summed["signed"].where(counted.any(-1, keepdim=True), torch.nan),
        "z": (summed["signed"] - mean) / std,
        "share": summed["share"],
        "share_null": share_null,
        "null_z": (null - mean[:, None]) / std[:, None],
        "token_signed": of_predicted(found.signed.masked_fill(unread, torch.nan)),
        "token_share": of_predicted(found.share().masked_fill(unread, torch.nan)),
    }


def ordinary_in_text(
    activations: Float[Tensor, "batch token d_model"], kept: Bool[Tensor, "batch token"]
) -> Bool[Tensor, "batch token"]:
    """Tokens whose activation norm is within ten times the median of their own text; the others are attention sinks.

    Example:
        >>> h = torch.tensor([[[50.0], [1.0], [2.0], [0.0]]])
        >>> ordinary_in_text(h, torch.tensor([[True, True, True, False]]))
        tensor([[False,  True,  True,  True]])
    """
    norms = activations.detach().float().norm(dim=-1)
    return norms <= OUTLIER_NORM * norms.masked_fill(~kept, torch.nan).nanmedian(-1, keepdim=True).values
