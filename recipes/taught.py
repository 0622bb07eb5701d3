"""What a run taught besides its task: the dictionary's latents that the data ask for and the model moved along."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from interptrain.meters.probes import evaluating
from interptrain.meters.tokens import loss_positions
from interptrain.sites.hooks import HookPoint

FLIPS, GROUPS = 64, 64  # null draws
NAMED_Z = 2.0  # of demand and of shift, against other latents, for a latent to be named


def text_demands(model: nn.Module, hook: str, batches: Iterable[Mapping[str, Tensor]]) -> Float[Tensor, "text d_model"]:
    """What each text asks of the activations at a hook: `v_n = -sum_t dL/dh_t`, with `L` summed over its labels.

    Args:
        model: a causal language model; left in the mode it was in, its gradients as they were.
        hook: e.g. `blocks.2.hook_resid_post`.
        batches: with `input_ids`, `attention_mask` and `labels`.

    Raises:
        ValueError: the hook point is not in the model.
    """
    caught: list[Tensor] = []
    handle = HookPoint.parse(hook).listen(model, lambda h: caught.append(h.requires_grad_()))
    found, device = [], next(model.parameters()).device
    try:
        with evaluating(model), torch.enable_grad():
            for batch in batches:
                ids, mask, labels = (batch[key].to(device) for key in ("input_ids", "attention_mask", "labels"))
                logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
                loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
                (gradient,) = torch.autograd.grad(loss, caught.pop())
                found.append(-(gradient.float() * loss_positions(labels)[..., None]).sum(1).cpu())
    finally:
        handle.remove()
    return torch.cat(found)


def outside(
    vectors: Float[Tensor, "text d_model"], span: Float[Tensor, "direction d_model"]
) -> Float[Tensor, "text d_model"]:
    """The part of each vector outside a span: `v - Q^T Q v`, the rows of `Q` an orthonormal basis of it.

    Example:
        >>> outside(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0]]))
        tensor([[0., 4.]])
    """
    basis = torch.linalg.qr(span.T.double()).Q.T
    return (vectors.double() - (vectors.double() @ basis.T) @ basis).float()


@dataclass(frozen=True, eq=False)
class Along:
    r"""Vectors of some texts along each latent of a dictionary.

        value_i = mean_n x_ni        x_ni = d_i . v_n
        z_i = value_i / sqrt(mean_j value_j^2)            against the other alive latents
        t_i = sum_n x_ni / sqrt(sum_n x_ni^2)             against random signs of the texts

    Args:
        z: how much more than other latents.
        t: how alike the texts are in it.
        null_top: of each draw of random signs, the largest `|t_i|`.
    """

    z: Float[Tensor, "alive"]
    t: Float[Tensor, "alive"]
    null_top: Float[Tensor, "flip"]

    @classmethod
    def of(
        cls, directions: Float[Tensor, "alive d_model"], vectors: Float[Tensor, "text d_model"], *, seed: int = 0
    ) -> Along:
        """Read vectors along unit directions; where nothing is left of them, every figure is 0."""
        x = (vectors @ directions.T).double()
        value, spread = x.mean(0), x.square().sum(0).sqrt()
        signs = torch.randint(0, 2, (FLIPS, len(x)), generator=torch.Generator().manual_seed(seed)).double() * 2 - 1
        t, flipped = (torch.where(spread > 0, each / spread, 0.0) for each in (x.sum(0), signs @ x))
        whole = value.square().mean().sqrt()
        return cls(torch.where(whole > 0, value / whole, 0.0).float(), t.float(), flipped.abs().amax(-1).float())


@dataclass(frozen=True, eq=False)
class Taught:
    """The latents of one hook, those first that were asked for and came.

        score_i = min(z_i of the data's demand, z_i of the shift),      both outside the task's span

    A latent is named where its score reaches `NAMED_Z` and its demand is more alike from text to text than that of
    any latent under random signs (`t` above the largest of the draws).

    Args:
        hook: where.
        order: latents' places among the alive ones, by score.
        latents: their numbers in the dictionary, in that order.
        score: of each.
        demand: what the data asked of the model before training.
        shift: how far the model moved on the texts that have nothing to do with the task.
        task_share: of the shift's energy, what lies in the task's span.
        moved: the shift's length, over the spread of those texts before training.
    """

    hook: str
    order: tuple[int, ...]
    latents: tuple[int, ...]
    score: Float[Tensor, "alive"]
    demand: Along
    shift: Along
    task_share: float
    moved: float
    directions: Float[Tensor, "alive d_model"]
    rest: Float[Tensor, "d_model"]

    @classmethod
    def of(
        cls,
        hook: str,
        dictionary: Float[Tensor, "latent d_model"],
        alive: Bool[Tensor, "latent"],
        *,
        task: Float[Tensor, "direction d_model"],
        demands: Float[Tensor, "text d_model"],
        shifts: Float[Tensor, "probe d_model"],
        spread: float,
    ) -> Taught:
        """Rank a dictionary's latents.

        Args:
            hook: where.
            dictionary: unit decoder rows.
            alive: latents that fire at all.
            task: directions of what was to be taught.
            demands: of the training texts, from `text_demands`.
            shifts: of each text that has nothing to do with the task, its mean activation after less that before.
            spread: how far those texts lay from their mean before training, root mean square.
        """
        numbers, directions = alive.nonzero()[:, 0], dictionary[alive]
        asked, moved = (outside(vectors, task) for vectors in (demands, shifts))
        demand, shift = Along.of(directions, asked), Along.of(directions, moved)
        score = torch.minimum(demand.z, shift.z)
        order = score.argsort(descending=True)
        mean, rest = shifts.mean(0), moved.mean(0)
        return cls(
            hook, tuple(order.tolist()), tuple(numbers[order].tolist()), score, demand, shift,
            float(1 - rest.square().sum() / mean.square().sum()), float(mean.norm()) / spread, directions, rest,
        )  # fmt: skip

    @property
    def named(self) -> tuple[int, ...]:
        """Numbers of the latents that are named, best first."""
        bar = self.demand.null_top.max()
        found = [bool(self.score[place] >= NAMED_Z and self.demand.t[place] > bar) for place in self.order]
        return tuple(latent for latent, is_named in zip(self.latents, found, strict=True) if is_named)

    def explained(self, count: int) -> tuple[float, Float[Tensor, "group"]]:
        """The share of the shift outside the task that lies in the span of the first latents, and of random others.

        Args:
            count: how many, at most.
        """
        own = self._share(torch.tensor(self.order[:count], dtype=torch.long))
        random = torch.Generator().manual_seed(0)
        others = [torch.randperm(len(self.order), generator=random)[:count] for _ in range(GROUPS)]
        return own, torch.tensor([self._share(rows) for rows in others])

    def rows(
        self, count: int, labels: Mapping[int, str] | None = None, picked: Mapping[int, float] | None = None
    ) -> list[dict[str, object]]:
        """The first latents as JSON takes them.

        Args:
            count: how many.
            labels: what latents are about.
            picked: of the run's readings of the whole dictionary, the share that listed the latent as asked for.
        """
        found, named = [], set(self.named)
        for rank, (place, latent) in enumerate(zip(self.order[:count], self.latents, strict=False), start=1):
            own, null = self.explained(rank)
            found.append({
                "rank": rank, "hook": self.hook, "latent": latent, "label": (labels or {}).get(latent, ""),
                "named": latent in named, "score": float(self.score[place]), "demand_z": float(self.demand.z[place]),
                "demand_t": float(self.demand.t[place]), "demand_t_null": float(self.demand.null_top.max()),
                "shift_z": float(self.shift.z[place]), "explained": own, "explained_null": float(null.mean()),
                "picked": (picked or {}).get(latent, 0.0),
            })  # fmt: skip
        return found

    def _share(self, places: Tensor) -> float:
        if not (len(places) and self.rest.any()):
            return 0.0
        left = outside(self.rest[None], self.directions[places])
        return float(1 - left.square().sum() / self.rest.square().sum())


def picked_shares(lines: Sequence[Mapping[str, object]], hook: str) -> dict[int, float]:
    """Of a run's readings of the dictionary at a hook, the share in which each latent was listed as asked for.

    Args:
        lines: of a `JSONLRecorder`, parsed.
        hook: where.

    Example:
        >>> rows = [{"latent": 3, "coefficient": 0.5}, {"latent": 4, "coefficient": -0.5}]
        >>> picked_shares([{"discovery": {"a": rows}}, {"discovery": {"a": []}}, {"step": 2}], "a")
        {3: 0.5}
    """
    readings = [found[hook] for line in lines if isinstance(found := line.get("discovery"), dict) and hook in found]
    listed = [row["latent"] for rows in readings for row in rows if row["coefficient"] > 0]
    return {latent: listed.count(latent) / len(readings) for latent in dict.fromkeys(listed)}
