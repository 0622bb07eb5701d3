"""Random signs that shorten vectors and keep their inner products, made again from a seed rather than kept."""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 4096  # columns drawn from one seed
KEPT = 256 << 20  # bytes of signs that a reader keeps; of more, each batch draws its own again


class Signs:
    """A matrix `P [rows, width]` of random signs over `sqrt(rows)`, so that `E[(P x) . (P y)] = x . y`.

    Columns come in blocks, each from a seed of its own: the same name and seed give the same matrix on every machine,
    and of a wide matrix one block is there at a time (Johnson and Lindenstrauss 1984; Achlioptas 2003 for signs).

    Args:
        rows: length of what comes out.
        width: of what goes in.
        name: matrices of other names are independent.
        seed: of all names.
        keep: hold the signs, a byte each; otherwise they are drawn anew every time.

    Example:
        >>> signs = Signs(rows=4096, width=1000, name="x")
        >>> x = torch.ones(1000) / 1000**0.5
        >>> abs(float(signs.times(x).square().sum()) - 1) < 0.1
        True
    """

    def __init__(self, rows: int, width: int, name: str, *, seed: int = 0, keep: bool = True) -> None:
        self.rows, self.width = rows, width
        self._name, self._seed, self._keep = name, seed, keep
        self._kept: dict[int, Tensor] = {}

    def times(self, x: Float[Tensor, "*token width"]) -> Float[Tensor, "*token rows"]:
        """`P x` of every vector, in the precision of `x` but no less than float32."""
        x = x if x.dtype == torch.float64 else x.float()
        found = x.new_zeros(*x.shape[:-1], self.rows)
        for number, start in enumerate(range(0, self.width, BLOCK)):
            block = self._block(number, x.device)
            found += x[..., start : start + block.shape[1]] @ block.T.to(x.dtype)
        return found / self.rows**0.5

    def _block(self, number: int, device: torch.device) -> Tensor:
        if number in self._kept:
            return self._kept[number]
        generator = _generator(self._seed, self._name, number)
        columns = min(BLOCK, self.width - number * BLOCK)
        drawn = torch.randint(0, 2, (self.rows, columns), generator=generator, dtype=torch.int8) * 2 - 1
        drawn = drawn.to(device)
        if self._keep:
            self._kept[number] = drawn
        return drawn


class Folding:
    """Adds up the columns of a wide vector in so many places, each with a random sign.

        (F x)_b = sum over i with place(i) = b of sign_i x_i,        E[(F x) . (F y)] = x . y

    As true on average as as many rows of signs, for one multiplication a column: what a dictionary of many thousand
    latents needs (count sketch, Charikar, Chen and Farach-Colton 2002).

    Args:
        places: length of what comes out.
        width: of what goes in.
        name: foldings of other names are independent.
        seed: of all names.

    Example:
        >>> Folding(2, 5, "x").times(torch.eye(5)).abs().sum(-1)
        tensor([1., 1., 1., 1., 1.])
    """

    def __init__(self, places: int, width: int, name: str, *, seed: int = 0) -> None:
        self.places, self.width = places, width
        generator = _generator(seed, name, 0)
        self._place = torch.randint(0, places, (width,), generator=generator)
        self._sign = torch.randint(0, 2, (width,), generator=generator) * 2 - 1

    def times(self, x: Float[Tensor, "batch width"]) -> Float[Tensor, "batch places"]:
        """`F x` of every row."""
        place, sign = self._place.to(x.device), self._sign.to(x.device)
        return x.new_zeros(len(x), self.places).index_add(1, place, x * sign)


def _generator(seed: int, name: str, number: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {name} {number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
