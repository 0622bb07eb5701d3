"""The search: a few examples, a corpus that streams by, and a score for each of its documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interptrain.similarity.likeness import Likeness, whitened
from interptrain.similarity.passes import Reader, read_gradients

Batch = Mapping[str, Tensor]
Rule = Callable[[Tensor, Tensor], Likeness]


def similar(
    model: nn.Module,
    query: Iterable[Batch],
    sample: Iterable[Batch],
    corpus: Iterable[Batch],
    readers: Mapping[str, Reader[Any]],
    *,
    rule: Rule = whitened,
) -> Iterator[dict[str, Float[Tensor, "batch"]]]:
    """Score documents by how alike their gradients are to those of a few examples, batch by batch as they come.

    What is held is the sample's and the examples' features; it does not grow with the corpus.

    Args:
        model: a causal language model of a known family; left as it was.
        query: batches of the examples, with `input_ids`, `attention_mask` and `labels`.
        sample: batches of documents drawn from the corpus, some hundreds: what is usual in it.
        corpus: batches of documents.
        readers: by name, what is compared: a `Sketch`, `ConceptDemands`.
        rule: what makes scores of features.

    Raises:
        ValueError: no examples, fewer than two documents in the sample, or a gradient of theirs is not finite.

    Example:
        >>> from itertools import islice
        >>> from interptrain.similarity import Sketch, linear_layers
        >>> from interptrain.tiny_world import finetuning_set, load_base
        >>> model, few = load_base(), list(islice(finetuning_set("mixed", batch=4), 3))
        >>> readers = {"gradient": Sketch(linear_layers(model), k=16)}
        >>> [len(scores["gradient"]) for scores in similar(model, few[:1], few[1:], few, readers)]
        [4, 4, 4]
    """
    asked, usual = features(model, query, readers), features(model, sample, readers)
    if bad := [name for name in readers if not (asked[name].isfinite().all() and usual[name].isfinite().all())]:
        raise ValueError(
            f"{', '.join(bad)}: a gradient of the examples or of the sample is not finite; load the model in float32, "
            "and look whether its loss on them is finite"
        )
    scorers = {name: rule(asked[name], usual[name]) for name in readers}
    for batch in corpus:
        found = read_gradients(model, batch, list(readers.values()))
        yield {name: scorers[name](each) for name, each in zip(readers, found, strict=True)}


def features(
    model: nn.Module, batches: Iterable[Batch], readers: Mapping[str, Reader[Any]]
) -> dict[str, Float[Tensor, "example feature"]]:
    """What each reader reads of all examples.

    Raises:
        ValueError: there are no batches.
    """
    found = [read_gradients(model, batch, list(readers.values())) for batch in batches]
    if not found:
        raise ValueError("no batches to compare; expected one or more")
    return {name: torch.cat([each[place] for each in found]) for place, name in enumerate(readers)}
