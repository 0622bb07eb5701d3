"""Weights of the loss's tokens that follow from what each token asks for, without touching the loss code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from interptrain.projection import full_precision

if TYPE_CHECKING:
    from interptrain.interventions.intervention import Context

# From the gradient at the hook and the tokens that count to a weight for each token.
Weigh: TypeAlias = Callable[
    [Float[Tensor, "batch token d_model"], Bool[Tensor, "batch token"]], Float[Tensor, "batch token"]
]
# Takes where the logits are in the graph, and of the gradient that reaches them what a weight takes away.
Rest: TypeAlias = Callable[[GradientEdge, Float[Tensor, "batch token vocabulary"]], None]


class TokenWeights:
    r"""Trains on `sum_t w_t l_t` where the loop asked for `sum_t l_t`, with `w_t` a function of `g_t = dL/dh_t`.

        dL'/dlogits_t = w_t dL/dlogits_t,   w_t = prod_i f_i(g_t)

    In the backward pass, when the gradient reaches the logits, a second one from there to the hook points asks
    what every token wants; its answer becomes the weights, and the first one goes on with weighted logits. The
    user's loss is whatever it was, and what it reports is the loss without weights. The cost is a backward pass
    through the layers between the last of the hook points and the logits: little, at the last layer.

    `g_t` carries the losses of later tokens too, through the attention above the hook; at the output of the last
    layer there is none, and `g_t` is the token's own.

    Needs logits in the model's output, eager mode, and checkpointing that is not reentrant.

    Args:
        context: the model in training.

    Raises:
        ValueError: the model is compiled.
    """

    def __init__(self, context: Context) -> None:
        if context.compiled:
            raise ValueError(
                "the model is compiled, and weights of tokens are found in the middle of its backward pass; train it "
                "without torch.compile"
            )
        self._positions = context.positions
        self._weighers: list[_Weigher] = []
        self._caught: dict[str, Tensor] = {}
        self._context = context
        context.keep(context.model.register_forward_hook(self._forward, with_kwargs=True))

    def add(self, hook: str, weigh: Weigh, rest: Rest | None = None) -> None:
        """Multiply every token's weight by a function of its gradient at a hook point.

        Args:
            hook: where.
            weigh: the function.
            rest: is handed, in every backward pass, what this weight takes away of what those before it have left.
        """
        if hook not in self._hooks:
            self._context.listen(hook, lambda activation: self._caught.__setitem__(hook, activation))
        self._weighers.append(_Weigher(hook, weigh, rest))

    @property
    def _hooks(self) -> list[str]:
        return list(dict.fromkeys(weigher.hook for weigher in self._weighers))

    def _forward(self, _module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        caught, self._caught = self._caught, {}
        if not torch.is_grad_enabled() or not self._weighers or self._positions.asking:
            return
        logits = _logits_of(output)
        for hook in self._hooks:
            if hook not in caught or not caught[hook].requires_grad:
                raise ValueError(
                    f"no gradient can reach '{hook}', so what a token asks for there cannot be known: nothing below "
                    f"the hook trains, or checkpointing is reentrant; {_NOT_REENTRANT}"
                )
        counted, number = self._positions.of(logits), logits.output_nr
        # Not the logits themselves: what they hold would hold them, out of the garbage collector's sight.
        logits.register_hook(lambda gradient: self._weighted(number, gradient, caught, counted))

    def _weighted(
        self,
        number: int,
        gradient: Float[Tensor, "batch token vocabulary"],
        caught: dict[str, Tensor],
        counted: Bool[Tensor, "batch token"],
    ) -> Float[Tensor, "batch token vocabulary"]:
        if self._positions.asking:
            return gradient  # the questions below start at these logits, and meet this hook first
        hooks, logits = self._hooks, GradientEdge(torch._C._current_autograd_node(), number)
        with full_precision(), self._context.asking(), _reentrant_refused():  # the meters' hooks fire in there too
            asked = torch.autograd.grad(logits, [caught[hook] for hook in hooks], gradient, retain_graph=True)
        wanted = {hook: each.detach().float() for hook, each in zip(hooks, asked, strict=True)}
        weight = torch.ones(counted.shape, device=gradient.device)
        for hook, weigh, rest in self._weighers:
            with full_precision():
                left = weight * weigh(wanted[hook], counted.to(wanted[hook].device)).to(weight.device)
            if rest is not None:
                with self._context.asking():
                    rest(logits, gradient * (weight - left)[..., None].to(gradient.dtype))
            weight = left
        return gradient * weight[..., None].to(gradient.dtype)


_NOT_REENTRANT = 'checkpoint with {"use_reentrant": False}'


class _Weigher(NamedTuple):
    hook: str
    weigh: Weigh
    rest: Rest | None


@contextmanager
def _reentrant_refused() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "checkpoint" not in str(error).lower():
            raise
        raise ValueError(f"reentrant checkpointing cannot say what a token asks for; {_NOT_REENTRANT}") from error


def _logits_of(output: Any) -> Tensor:
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or not logits.requires_grad:
        raise ValueError(
            f"the model's output ({type(output).__name__}) has no logits that take a gradient, so its tokens cannot be "
            "weighted; a fused loss never makes them: switch it off (Liger's: use_liger_kernel=False), or give TRL's "
            "SFTTrainer a compute_loss_func of your own"
        )
    return logits
