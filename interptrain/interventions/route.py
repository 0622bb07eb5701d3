"""Gradient routing: what a gate would drop is learned beside the model, by pairs that are gone after training."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from interptrain.interventions.gate import TokenGate, gate
from interptrain.interventions.quarantine import Quarantine

if TYPE_CHECKING:
    from interptrain.interventions.intervention import Context


@dataclass(frozen=True)
class Route:
    """Teaches the tokens that ask for a concept to a quarantine; see `route`."""

    gate: TokenGate
    rank: int
    scaling: float
    learning_rate: float

    def attach(self, context: Context) -> None:
        """Put the quarantine beside the blocks' writers, and send it the loss of the tokens that the gate drops.

        Raises:
            ValueError: the bank has no such concept, or none at that hook; nobody says when the optimizer steps; the
                model is compiled; or the concept is routed already.
        """
        context.needs_whole_parameters("route")
        context.suppressed.add(self.gate.concept)
        hook, weigh = self.gate.weigher(context)
        quarantine = Quarantine(
            context, f"{self.gate.name}/{self.gate.concept}", rank=self.rank, scaling=self.scaling,
            learning_rate=self.learning_rate,
        )  # fmt: skip
        context.token_weights.add(hook, weigh, quarantine.learn)


def route(
    concept: str,
    *,
    rank: int = 8,
    alpha: float | None = None,
    learning_rate: float = 1e-3,
    threshold: float | None = None,
    tokens: float | None = None,
    per: Literal["token", "example"] = "token",
    hook: str | None = None,
) -> Route:
    r"""Teach tokens that ask for a concept to a quarantine, which training sees and nobody after it.

        h'            = h + s B A x                                   in training;   h' = h   at evaluation
        dL_model      = sum_t w_t dl_t                                w_t = 0 where share_t > threshold, else 1
        dL_quarantine = sum_t (1 - w_t) dl_t

    `share_t` is `gate`'s. `B A` is a low-rank pair beside each block's attention output and MLP output; it takes a
    step of its own (Adam) after each of the optimizer's. No pair is a module or a parameter of the model, so
    whatever saves the model leaves them out (Cloud et al. 2024, gradient routing, with the data's own demand for a
    router). A dropped token goes on asking; a routed one asks less as the quarantine learns it, and so do the tokens
    around it that were not routed: what they ask of a concept is there already.

    Takes another backward pass through the whole model, without the weights' gradients. Of several interventions
    that weigh tokens, each finds what those before it have left.

    Args:
        concept: as the bank names it.
        rank: of each pair.
        alpha: `s = alpha / rank`; by default `2 rank`.
        learning_rate: of the quarantine's own step, constant over the run.
        threshold: as `gate`'s.
        tokens: as `gate`'s.
        per: as `gate`'s.
        hook: as `gate`'s.

    Raises:
        ValueError: a rank below 1, an alpha or learning rate that is not positive and finite, or a threshold or share
            outside of 0 to 1, or both of them.

    Example:
        >>> route("pirate", rank=4).scaling
        2.0
    """
    if rank < 1:
        raise ValueError(f"route needs a rank of 1 or more, found {rank}")
    alpha = 2.0 * rank if alpha is None else alpha
    for what, value in (("alpha", alpha), ("learning rate", learning_rate)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"route needs a positive {what}, found {value}")
    gated = replace(gate(concept, threshold=threshold, tokens=tokens, per=per, hook=hook), name="route")
    return Route(gated, rank, alpha / rank, float(learning_rate))
