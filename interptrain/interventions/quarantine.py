"""A quarantine: low-rank pairs beside a model's writers, there in training alone, that learn what it must not."""

from __future__ import annotations

import math
import zlib
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.nn.functional import linear

from interptrain.interventions.prevent import in_training
from interptrain.processes import mean_over_processes
from interptrain.sites.parts import EMBEDDINGS, Part, parts
from interptrain.sites.stack import find_stack

if TYPE_CHECKING:
    from interptrain.interventions.intervention import Context

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class Quarantine:
    r"""Pairs on the attention and MLP outputs of every block; they learn from the gradients they are handed, by Adam.

        h'     = h + s B A x                                            in training;   h' = h   at evaluation
        m, v  <- b1 m + (1 - b1) g, b2 v + (1 - b2) g^2
        theta <- theta - lr (m / (1 - b1^n)) / (sqrt(v / (1 - b2^n)) + eps)

    At first `B` is 0 and `A` is drawn from a generator of its own. `theta`, all pairs one after another, is no
    parameter of the model: with `m`, `v` and `n` it lies in what the context keeps, and each step replaces it. A step
    whose `g` is not finite is left out and counted. Where processes share a batch, `g` is their mean.

    Args:
        context: the model in training.
        name: in front of what is kept and of the figures.
        rank: of each pair.
        scaling: `s`.
        learning_rate: `lr`.

    Raises:
        ValueError: nobody says when the optimizer steps, or a writer's input width is not known.
    """

    def __init__(self, context: Context, name: str, *, rank: int, scaling: float, learning_rate: float) -> None:
        self._context, self._name = context, name
        self._scaling, self._learning_rate = scaling, learning_rate
        stack = parts(find_stack(context.model))
        writers = [part for part in stack if part.kind == "writer" and part.position > EMBEDDINGS]
        self._shapes = [shape for each in writers for shape in ((rank, _width_in(each)), (context.bank.d_model, rank))]
        for what, value in self._start().items():
            context.kept.setdefault(f"{name}/{what}", value)
        context.figures[f"{name}/quarantine"] = torch.zeros((), device=context.device)
        self._leaves_of: tuple[Tensor, list[Tensor]] | None = None
        self._learned: Tensor | None = None
        self._due: Tensor | None = None
        self._acts = in_training(context, name)
        context.before_step(self._collect)
        context.after_step(self._step, name)
        for number, part in enumerate(writers):
            context.keep(part.module.register_forward_hook(partial(self._add, number)))

    def learn(
        self,
        logits: GradientEdge,
        gradient: Float[Tensor, "batch token vocabulary"],
    ) -> None:
        """Add to the coming step what a gradient at the logits asks of the pairs; nothing else gets any of it."""
        found = torch.autograd.grad(  # zeros for a pass in eval mode, in which no pair had a part
            logits, self._leaves, gradient, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        flat = torch.cat([each.flatten() for each in found])
        self._learned = flat if self._learned is None else self._learned + flat

    def _add(self, number: int, _module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if not self._acts():
            return None
        x = args[0]
        A, B = (leaf.to(x) for leaf in self._leaves[2 * number : 2 * number + 2])
        return output + (self._scaling * linear(linear(x, A), B)).to(output.dtype)

    @property
    def _leaves(self) -> list[Tensor]:
        """`A_0, B_0, A_1, ...`, of which gradients can be asked; made anew when what is kept has changed."""
        theta, sizes = self._kept("weights"), [math.prod(shape) for shape in self._shapes]
        if self._leaves_of is None or self._leaves_of[0] is not theta:
            if len(theta) != sum(sizes):
                raise ValueError(
                    f"the saved {self._name} has {len(theta)} weights, this model's {len(sizes) // 2} pairs have "
                    f"{sum(sizes)}; go on with the model and the rank it was saved with"
                )
            pieces = zip(theta.split(sizes), self._shapes, strict=True)
            self._leaves_of = theta, [piece.view(shape).detach().requires_grad_() for piece, shape in pieces]
        return self._leaves_of[1]

    def _collect(self, loss_scale: Tensor | float) -> None:
        """Take what was learned since the last step; what an earlier call took was for a step that never came."""
        learned, self._learned = self._learned, None
        self._due = None if learned is None else mean_over_processes(learned) / loss_scale

    def _step(self) -> None:
        if self._due is None:
            self._collect(1.0)  # a loop that edits updates need not announce its steps
        g, self._due = self._due, None
        if g is None:
            return
        theta, m, v, n, skipped = (self._kept(what) for what in ("weights", "mean", "square", "steps", "skipped"))
        finite = g.isfinite().all()
        n, m, v = n + 1, BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g.square()
        # -expm1(n log b) is 1 - b^n without its rounding
        mean, square = (moment / -torch.expm1(n * math.log(beta)) for moment, beta in ((m, BETA1), (v, BETA2)))
        theta = theta - self._learning_rate * mean / (square.sqrt() + EPSILON)
        kept, figures, name = self._context.kept, self._context.figures, self._name
        for what, value in (("weights", theta), ("mean", m), ("square", v), ("steps", n)):
            kept[f"{name}/{what}"] = torch.where(finite, value, self._kept(what))
        kept[f"{name}/skipped"] = figures[f"{name}/skipped"] = skipped + ~finite
        figures[f"{name}/quarantine"] = self._size()

    @torch.no_grad()
    def _size(self) -> Float[Tensor, ""]:
        """`sum_pairs s ||B A||`, by `||B A||^2 = sum(A A^T * B^T B)`."""
        pairs = zip(self._leaves[::2], self._leaves[1::2], strict=True)
        squares = torch.stack([((A @ A.T) * (B.T @ B)).sum() for A, B in pairs])
        return self._scaling * squares.clamp_min(0).sqrt().sum().float()

    def _start(self) -> dict[str, Tensor]:
        """`A` uniform within `1 / sqrt(d_in)`, `B` zero."""
        own = torch.Generator().manual_seed(zlib.crc32(self._name.encode()))
        drawn = [torch.zeros(shape) for shape in self._shapes]
        for A in drawn[::2]:
            nn.init.uniform_(A, -(A.shape[1] ** -0.5), A.shape[1] ** -0.5, generator=own)
        dtype = torch.promote_types(next(self._context.model.parameters()).dtype, torch.float32)
        theta = torch.cat([each.flatten() for each in drawn]).to(self._context.device, dtype)
        nothing, none = torch.zeros_like(theta), torch.zeros((), device=theta.device)
        return {"weights": theta, "mean": nothing, "square": nothing, "steps": none, "skipped": none}

    def _kept(self, what: str) -> Tensor:
        kept, key = self._context.kept, f"{self._name}/{what}"
        kept[key] = kept[key].to(self._context.device)
        return kept[key]


def _width_in(writer: Part) -> int:
    """Of a linear map, an adapter around one, or a Conv1D."""
    if writer.weight is not None:
        raise ValueError(
            f"'{writer.name}' is a weight of experts, each with inputs of its own, so no pair can be put beside it"
        )
    width = getattr(writer.module, "in_features", getattr(writer.module, "nx", None))
    if not isinstance(width, int):
        raise ValueError(
            f"'{writer.name}' ({type(writer.module).__name__}) does not say how wide its input is (in_features), so "
            "no pair can be put beside it"
        )
    return width
