"""Logistic regression with class weights: convex, so that what is found does not depend on where one starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from interptrain.concepts.labelled import class_weights, folds

Solution = tuple[Tensor, Tensor]  # w [width], b []
Solver = Callable[[Tensor, Tensor, Tensor, float, "Solution | None"], Solution]
_NEWTON_STEPS, _TOLERANCE = 50, 1e-10
_PROXIMAL_STEPS, _PROXIMAL_TOLERANCE = 500, 1e-6


def log_loss(
    scores: Float[Tensor, "*any text"], positive: Bool[Tensor, "text"], weights: Float[Tensor, "*any text"]
) -> Float[Tensor, "*any"]:
    """`sum_i c_i log(1 + exp(-y_i s_i))`, `y_i` 1 or -1."""
    signs = positive.to(scores) * 2 - 1
    return (weights * softplus(-signs * scores)).sum(-1)


@torch.no_grad()
def ridge_logistic(
    inputs: Float[Tensor, "text width"],
    positive: Bool[Tensor, "text"],
    weights: Float[Tensor, "text"],
    l2: float,
    start: Solution | None = None,
) -> Solution:
    """Logistic regression with an L2 penalty, in float64.

        min_{w, b}  sum_i c_i log(1 + exp(-y_i (w . x_i + b))) + l2/2 ||w||^2

    By Newton's method in the span of the inputs, `w = X^T u`, in which the solution lies (representer theorem), where
    there are fewer texts than dimensions; steps are halved until the loss falls. scikit-learn's `C` is `1 / l2` for
    the same `c_i`.

    Args:
        inputs: `x_i`.
        positive: whether `y_i` is 1, else -1.
        weights: `c_i`.
        l2: above 0.
        start: a solution of a like problem to begin with.

    Example:
        >>> w, b = ridge_logistic(torch.tensor([[1.0], [-1.0]]), torch.tensor([True, False]), torch.ones(2), 1.0)
        >>> round(float(w), 4), abs(round(float(b), 4))
        (0.6748, 0.0)
    """
    x, c, y = inputs.double(), weights.double(), positive.double() * 2 - 1
    basis = None
    if x.shape[0] < x.shape[1]:
        basis = torch.linalg.qr(x.T)[0]
        x = x @ basis
    design = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    penalty = torch.full_like(design[0], l2)
    penalty[-1] = 0.0
    found = torch.zeros_like(penalty)
    if start is not None:
        found = torch.cat([start[0] if basis is None else start[0] @ basis, start[1][None]])

    def loss(at: Tensor) -> Tensor:
        return (c * softplus(-y * (design @ at))).sum() + (penalty * at.square()).sum() / 2

    for _ in range(_NEWTON_STEPS):
        odds = torch.sigmoid(-y * (design @ found))
        gradient = penalty * found - design.T @ (c * y * odds)
        curvature = design.T @ ((c * odds * (1 - odds))[:, None] * design) + torch.diag(penalty)
        curvature[-1, -1] += 1e-12  # where every text is told apart beyond doubt, nothing holds the bias
        step = torch.linalg.solve(curvature, gradient)
        size, before = 1.0, loss(found)
        while size > 1e-8 and loss(found - size * step) > before - 1e-4 * size * (gradient @ step):
            size /= 2
        found = found - size * step
        if (gradient @ step) < _TOLERANCE * (1 + before):
            break
    weight, bias = found[:-1], found[-1]
    return (weight if basis is None else basis @ weight), bias


@torch.no_grad()
def lasso_logistic(
    inputs: Float[Tensor, "text width"],
    positive: Bool[Tensor, "text"],
    weights: Float[Tensor, "text"],
    l1: float,
    start: Solution | None = None,
) -> Solution:
    """Logistic regression with an L1 penalty, which leaves most weights at zero, in float64.

        min_{w, b}  sum_i c_i log(1 + exp(-y_i (w . x_i + b))) + l1 ||w||_1

    By accelerated proximal steps with restarts. Source: Beck and Teboulle, *A Fast Iterative Shrinkage-Thresholding
    Algorithm* (2009), eq. 4.1 to 4.3; O'Donoghue and Candes (2015) for the restarts.

    Args:
        inputs: `x_i`.
        positive: whether `y_i` is 1, else -1.
        weights: `c_i`.
        l1: above 0.
        start: a solution of a like problem to begin with.

    Example:
        >>> x = torch.tensor([[1.0, 0.1], [-1.0, 0.1]])
        >>> w, _ = lasso_logistic(x, torch.tensor([True, False]), torch.ones(2), 0.5)
        >>> w[0] > 0, w[1] == 0
        (tensor(True), tensor(True))
    """
    x, c, y = inputs.double(), weights.double(), positive.double() * 2 - 1
    design = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    root = design * c.sqrt()[:, None]
    steepest = torch.linalg.matrix_norm(root @ root.T if len(x) < x.shape[1] else root.T @ root, ord=2) / 4
    rate = 1 / (1.001 * steepest)
    found = torch.zeros_like(design[0]) if start is None else torch.cat([start[0], start[1][None]])
    ahead, momentum = found, 1.0
    for _ in range(_PROXIMAL_STEPS):
        gradient = -design.T @ (c * y * torch.sigmoid(-y * (design @ ahead)))
        moved = ahead - rate * gradient
        shrunk = torch.cat([moved[:-1].sign() * (moved[:-1].abs() - rate * l1).clamp_min(0), moved[-1:]])
        step = shrunk - found
        if (ahead - shrunk) @ step > 0:
            momentum = 1.0
        grown = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead, found, momentum = shrunk + (momentum - 1) / grown * step, shrunk, grown
        if step.abs().max() <= _PROXIMAL_TOLERANCE * (found.abs().max() + 1e-12):
            break
    return found[:-1], found[-1]


def least_l1(
    inputs: Float[Tensor, "text width"], positive: Bool[Tensor, "text"], weights: Float[Tensor, "text"]
) -> float:
    """The penalty from which on every weight is zero: `max_j |sum_i c_i x_ij (p_i - mean p)|`, `p_i` 1 or 0."""
    share = (weights * positive).sum() / weights.sum()
    return float((inputs.T.double() @ (weights * (positive.to(weights) - share)).double()).abs().max())


def validated(
    solver: Solver,
    inputs: Float[Tensor, "text width"],
    positive: Bool[Tensor, "text"],
    penalties: Sequence[float],
    *,
    parts: int,
    seed: int,
) -> tuple[Solution, float]:
    """Solve with the penalty that does best on texts that were held out, on all texts.

        penalty = argmin mean over parts of the class-weighted log loss of the part that was held out

    Args:
        solver: `ridge_logistic` or `lasso_logistic`.
        inputs: one row a text.
        positive: the classes; each weighs a half.
        penalties: to choose from.
        parts: to hold out in turn; as many as the smaller class has texts at most.
        seed: of the parts.

    Returns:
        The solution, and the penalty.
    """
    falling = sorted(penalties, reverse=True)
    held = folds(positive, parts, seed)
    losses = torch.stack([_held_out(solver, inputs, positive, held != part, falling) for part in held.unique()])
    chosen = falling[int(losses.mean(0).argmin())]
    start: Solution | None = None
    for penalty in falling:  # the path, each from the last: a weak penalty alone takes longer
        start = solver(inputs, positive, class_weights(positive), penalty, start)
        if penalty == chosen:
            break
    assert start is not None
    return start, chosen


def _held_out(
    solver: Solver,
    inputs: Tensor,
    positive: Tensor,
    fitted: Int[Tensor, "text"] | Bool[Tensor, "text"],
    falling: Sequence[float],
) -> Float[Tensor, "penalty"]:
    start: Solution | None = None
    weights, rest = class_weights(positive, fitted.bool()), class_weights(positive, ~fitted.bool())
    found = []
    for penalty in falling:
        start = solver(inputs[fitted], positive[fitted], weights[fitted], penalty, start)
        found.append(log_loss(inputs.double() @ start[0] + start[1], positive, rest.double()))
    return torch.stack(found)
