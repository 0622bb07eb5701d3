"""The energy of a step's matrices in the null groups, which every share is compared with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interptrain.meters.spans import Spans
from interptrain.processes import sum_over_processes_
from interptrain.projection import Matrix

BUCKET_BYTES = 2**26  # of coefficients that are summed over the processes at a time

Measurable: TypeAlias = tuple[Spans, Matrix]


def null_energy(measured: Sequence[Measurable], finite: Bool[Tensor, "site"]) -> Float[Tensor, "concept group"]:
    """`sum_sites ||Q_g M||^2` of every null group `g`, at each concept's own rank.

    What is split by columns takes one collective; what is split by rows the coefficients of all groups, in as many
    collectives as keep them within some 64 MB each.

    Args:
        measured: for every site its spans, and its matrix.
        finite: which sites count.
    """
    by_split: dict[str | None, list[tuple[Spans, Matrix, Tensor]]] = defaultdict(list)
    for (spans, matrix), ok in zip(measured, finite.unbind(), strict=True):
        by_split[matrix.part.split].append((spans, matrix, ok))
    found = [torch.where(ok, spans.null_energy(columns), 0.0) for spans, columns, ok in _columns(by_split[None])]
    if by_split["columns"]:
        energies = [spans.null_energy(columns).where(ok, 0.0) for spans, columns, ok in _columns(by_split["columns"])]
        held = torch.stack(energies).sum(0)
        sum_over_processes_([held])
        found.append(held)
    for bucket in _buckets(by_split["rows"]):
        sum_over_processes_([coefficients for _, coefficients, _ in bucket])
        for spans, coefficients, ok in bucket:
            energy = coefficients.square().sum(-1).view(spans.null.shape[:2])
            found.append(torch.where(ok, spans.at_ranks(energy), 0.0))
    return torch.stack(found).sum(0)


def _buckets(
    measured: Iterable[tuple[Spans, Matrix, Tensor]],
) -> Iterator[list[tuple[Spans, Float[Tensor, "_ _"], Tensor]]]:
    """The coefficients of all null groups as far as the rows are here, some matrices at a time."""
    bucket: list[tuple[Spans, Tensor, Tensor]] = []
    for spans, matrix, ok in measured:
        directions = matrix.part.along_rows(spans.null.flatten(0, 1))
        bucket.append((spans, directions @ matrix.value(), ok))
        if sum(coefficients.nbytes for _, coefficients, _ in bucket) >= BUCKET_BYTES:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def _columns(
    measured: Iterable[tuple[Spans, Matrix, Tensor]],
) -> Iterator[tuple[Spans, Float[Tensor, "d_model _"], Tensor]]:
    """Matrices seen by the same spans side by side, as long as that copies little: energies of columns add up."""
    alike: dict[int, list[tuple[Spans, Tensor, Tensor]]] = defaultdict(list)
    for spans, matrix, ok in measured:
        value = matrix.value()
        if 4 * value.shape[1] <= value.shape[0]:
            alike[id(spans)].append((spans, value, ok))
        else:
            yield spans, value, ok
    for group in alike.values():
        kept = [torch.where(ok, value, 0.0) for _, value, ok in group]
        yield group[0][0], torch.cat(kept, dim=1), torch.ones((), dtype=torch.bool, device=kept[0].device)
