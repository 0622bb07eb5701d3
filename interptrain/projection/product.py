"""Steering what a step did to a product of two factors, as in LoRA, by editing both of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

RIDGE = 1e-6  # of the inner factor's Gram matrix, relative to its trace: above float32's rounding of it
EUCLIDEAN = 3e-3  # cost of the inner edit's own size beside its off-concept effect, so that no cheap one is huge
TOLERATED = 1e-7  # energy of a miss, relative to the concept's step, that is worth one whole step off the concept
DOUBLINGS = 6  # of the refinement: 2^6 passes
LARGEST = 100.0  # whole steps: bound on what the inner edit may do off the concept, when exactness would cost more
TINY = 1e-100  # float64: keeps zero from being divided by zero


@dataclass(frozen=True, eq=False)
class Factors:
    """A product `B A`, the factor with the residual axis first; leading dimensions are a batch.

    Args:
        outer: `B`. LoRA writers: `lora_B`. Readers: `lora_A` transposed.
        inner: `A`. LoRA writers: `lora_A`. Readers: `lora_B` transposed.
    """

    outer: Float[Tensor, "*batch d_model rank"]
    inner: Float[Tensor, "*batch rank other"]


def steer_product(
    before: Factors,
    after: Factors,
    basis: Float[Tensor, "*batch direction d_model"],
    mixing: Float[Tensor, "*batch direction direction"],
) -> Factors:
    """New factors whose product changed by `(I + Q^T T Q)` times what the step did, as nearly as the rank allows.

    The step took `B A` to `B' A'`. With `dA = A' - A = H A' + U`, where `H A'` is the part in the rows of `A'`, and
    `b = Q B`, `b' = Q B'`, `db = b' - b`:

        wanted   Q B'' A'' = Q B' A' + T Q (B' A' - B A) = beta A' + T b U,    beta = b' + T (db + b H)
        outer    B'' = B' + Q^T T (db + b H)
        inner    A'' = A' + X U,    X = argmin ||P B' X||_F   subject to   beta X = T b,    P = I - Q^T Q

    The constraint is met by iterated Tikhonov regularisation and given up where `beta` is so nearly singular that
    meeting it would move the rest by more than some hundred times the step. It holds whatever `H` is, so that a
    rank-deficient `A'` costs no exactness. `B'' - B'` lies in the directions' span; `T = 0` keeps every bit of both
    factors, `dA = 0` those of `A'`.

    **Exact** (median miss below 1e-5 of the concept's step in float32): up to as many directions as the rank, whatever
    the factors were; a writer while `Q B = 0` and a reader from `lora_B = 0` by the outer factor alone, with any number
    of directions. **Not exact**: single steps where as many directions as the rank have unlike gains (up to 29 %
    missed); more directions than the rank (gain .5 or 2: up to 2 %; unlike gains: up to 49 %); half precision,
    whose own rounding is larger than many a step. So the achieved gain must be measured.

    **The price** is what moves off the directions, for no product of this rank can meet the gains and leave the rest
    alone. `||P (B'' A'' - B' A')|| / ||P (B' A' - B A)||`, median over three seeds of 200 AdamW steps, rank 8, width
    128, for one, three and eight directions, by `benchmarks/product.py`:

        gain    writer from B = 0    reader from B = 0    random B            B, A from an SVD (PiSSA)
        0       0    0    0          0    0    0          .19  .40  .92       .39  .60  .84
        .5      .06  .15  .32        .08  .17  .30        .10  .19  .34       .14  .21  .36
        2       .10  .18  .34        .19  .33  .57        .16  .28  .49       .19  .32  .56

    Within some percent this is the least possible, that of the best approximation of rank r that keeps the rows
    `Q B'' A''` fixed (Golub, Hoffman & Stewart, Linear Algebra and its Applications 88-89, 1987). As many directions
    as the rank with unlike gains cost one to two whole steps. An amplified reader's gain compounds: its outer factor
    keeps what it was multiplied by, so the next raw step is larger already: stay at 2 or below.

    Args:
        before: `B`, `A`.
        after: `B'`, `A'`; given back as they are where anything is not finite.
        basis: `Q`, orthonormal rows.
        mixing: `T`, from `Frame.mixing`.

    Returns:
        `B''`, `A''` in the dtype of `after`. Products are taken in float32 (float64 for float64), the small algebra
        in float64. The device is not synchronised.

    Example:
        >>> import torch
        >>> before = Factors(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 0.0]]))
        >>> after = Factors(torch.tensor([[1.5], [2.5]]), torch.tensor([[1.0, 0.5]]))
        >>> steered = steer_product(before, after, torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0]]))  # gain 0
        >>> change = steered.outer @ steered.inner - before.outer @ before.inner
        >>> bool(change[0].abs().max() < 1e-6)
        True
    """
    working = torch.promote_types(after.outer.dtype, torch.float32)
    old, outer, inner = before.outer.to(working), after.outer.to(working), after.inner.to(working)
    d_outer, d_inner = outer - old, inner - before.inner.to(working)
    rows, t = basis.to(working), mixing.double()
    eye = torch.eye(inner.shape[-2], dtype=torch.float64, device=inner.device)

    own, cross = (torch.cat([inner, d_inner], -2) @ inner.mT).double().chunk(2, -2)
    absorbed = torch.linalg.solve_ex(own + RIDGE * _trace(own) * eye, cross.mT)[0].mT  # H
    rest = d_inner - absorbed.to(working) @ inner  # U
    b, d_b = (rows @ torch.cat([old, d_outer], -1)).double().chunk(2, -1)
    inside = d_b + b @ absorbed
    edit = t @ inside

    gram, b_after = (outer.mT @ outer).double(), b + d_b
    off_concept = gram - b_after.mT @ b_after + EUCLIDEAN * _trace(gram) * eye  # B'^T P B'
    moved = _energy(rest)
    concept_step = (inside @ own * inside).sum((-2, -1), keepdim=True) + moved * _energy(b)
    whole_step = _energy(d_outer) * _trace(own) + moved * _trace(gram)
    weight = TOLERATED * concept_step / (whole_step + TINY) * off_concept
    x = _constrained(b_after + edit, t @ b, weight + TINY * eye)
    cost = moved * (x * (off_concept @ x)).sum((-2, -1), keepdim=True)
    x = x * (LARGEST**2 * whole_step / (cost + TINY)).clamp_max(1.0).sqrt()

    new_outer = outer + rows.mT @ edit.to(working)
    new_inner = inner + x.to(working) @ rest
    finite = torch.isfinite(new_outer.sum((-2, -1), keepdim=True) + new_inner.sum((-2, -1), keepdim=True))
    return Factors(
        torch.where(finite, new_outer.to(after.outer.dtype), after.outer),
        torch.where(finite, new_inner.to(after.inner.dtype), after.inner),
    )


def product_change(
    before: Factors, after: Factors
) -> tuple[Float[Tensor, "*batch d_model twice_rank"], Float[Tensor, "*batch twice_rank other"]]:
    """`B' A' - B A` as two factors, without cancellation: `[B', dB] [dA; A]`.

    Example:
        >>> import torch
        >>> before = Factors(torch.ones(2, 1), torch.ones(1, 2))
        >>> left, right = product_change(before, Factors(torch.ones(2, 1), 3 * torch.ones(1, 2)))
        >>> left @ right
        tensor([[2., 2.],
                [2., 2.]])
    """
    left = torch.cat([after.outer, after.outer - before.outer], -1)
    return left, torch.cat([after.inner - before.inner, before.inner], -2)


def thin(
    left: Float[Tensor, "*batch d_model inside"], right: Float[Tensor, "*batch inside other"]
) -> Float[Tensor, "*batch d_model least"]:
    """`left R^T` with `right^T = Theta R`: the same energy along every residual direction, in few columns.

        ||q^T left R^T||  =  ||q^T left right||      for every q, as Theta has orthonormal columns

    Whatever measures energies of `left right` measures them here; there are `min(inside, other)` columns.

    Example:
        >>> import torch
        >>> few = thin(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 4.0]]))
        >>> few.abs()
        tensor([[ 5.],
                [10.]])
    """
    return left @ torch.linalg.qr(right.mT, mode="r")[1].mT


def _constrained(
    beta: Float[Tensor, "*batch direction rank"],
    wanted: Float[Tensor, "*batch direction rank"],
    weight: Float[Tensor, "*batch rank rank"],
) -> Float[Tensor, "*batch rank rank"]:
    """`X` of least `tr X^T W X` with `beta X = wanted`, by Tikhonov regularisation iterated `2^DOUBLINGS` times.

    With `M = beta^T beta + W` the first pass is `X = M^-1 beta^T wanted`, and each more adds `M^-1 W` times the last
    correction: what `beta` meets with a squared singular value of `s` in the metric of `W` goes unmet by
    `(1 + s)^-8`, next to nothing for `s > 10`, and is left alone for `s < .1`.
    """
    inverse = torch.linalg.inv_ex(beta.mT @ beta + weight)[0]
    x, unmet = inverse @ (beta.mT @ wanted), inverse @ weight
    for _ in range(DOUBLINGS):
        x, unmet = x + unmet @ x, unmet @ unmet
    return x


def _energy(matrix: Float[Tensor, "*batch row column"]) -> Float[Tensor, "*batch 1 1"]:
    return torch.linalg.vector_norm(matrix, dim=(-2, -1), keepdim=True).double().square()


def _trace(gram: Float[Tensor, "*batch rank rank"]) -> Float[Tensor, "*batch 1 1"]:
    return gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] + TINY
