"""Two sets of texts as a classifier takes them: one numbering, a label a text, weights that even out the classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interptrain.concepts.contrast import TextActivations
from interptrain.concepts.segments import segment_lengths


@dataclass(frozen=True, eq=False)
class Labelled:
    """Texts of both classes under one numbering.

    Args:
        values: one row a token.
        text: which text each token belongs to, counted from 0.
        positive: of each text, whether it shows the concept.
    """

    values: Float[Tensor, "token width"]
    text: Int[Tensor, "token"]
    positive: Bool[Tensor, "text"]

    @classmethod
    def of(cls, positive: TextActivations, negative: TextActivations) -> Labelled:
        """Put two sets together, in float32.

        Raises:
            ValueError: a set has fewer than two texts or one without tokens, or widths differ.

        Example:
            >>> one = TextActivations(torch.ones(3, 2), torch.tensor([0, 0, 1]))
            >>> both = Labelled.of(one, one)
            >>> both.text, both.positive
            (tensor([0, 0, 1, 2, 2, 3]), tensor([ True,  True, False, False]))
        """
        if positive.values.shape[1] != negative.values.shape[1]:
            raise ValueError(
                f"the two sets of texts have activations of width {positive.values.shape[1]} and "
                f"{negative.values.shape[1]}; read both at one hook point of one model"
            )
        counts = [checked_texts(each, f"the {name} set") for name, each in _named(positive, negative)]
        labels = torch.arange(sum(counts), device=positive.text.device) < counts[0]
        values = torch.cat([positive.values.float(), negative.values.float()])
        return cls(values, torch.cat([positive.text, negative.text + counts[0]]), labels)

    def __len__(self) -> int:
        return len(self.positive)

    def token_weights(self, weights: Float[Tensor, "text"]) -> Float[Tensor, "token"]:
        """Each text's weight, spread evenly over its tokens."""
        return (weights / segment_lengths(self.text, len(self)).to(weights))[self.text]

    def shuffled(self, seed: int) -> Labelled:
        """The same texts with their labels dealt out anew: what a probe finds where there is nothing to find."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return Labelled(self.values, self.text, self.positive[order.to(self.positive.device)])


def class_weights(positive: Bool[Tensor, "text"], among: Bool[Tensor, "text"] | None = None) -> Float[Tensor, "text"]:
    """Weights that give both classes half of the whole, whatever their sizes.

        c_i = 1 / (2 n_class(i))

    Args:
        positive: of each text, its class.
        among: the texts that count; the others weigh nothing.

    Example:
        >>> class_weights(torch.tensor([True, False, False]))
        tensor([0.5000, 0.2500, 0.2500])
    """
    counted = torch.ones_like(positive) if among is None else among
    first, second = positive & counted, ~positive & counted
    return first / (2 * first.sum()) + second / (2 * second.sum())


def folds(positive: Bool[Tensor, "text"], count: int, seed: int) -> Int[Tensor, "text"]:
    """Deal the texts of each class out evenly: the number of the fold that each is held out in.

    There are as many folds as asked for, or as texts in the smaller class where that is less.

    Example:
        >>> folds(torch.tensor([True, True, False, False]), 5, seed=0).sort().values
        tensor([0, 0, 1, 1])
    """
    smaller = min(int(positive.sum()), int((~positive).sum()))
    generator, found = torch.Generator().manual_seed(seed), torch.zeros(len(positive), dtype=torch.long)
    for label in (True, False):
        members = (positive.cpu() == label).nonzero()[:, 0]
        order = torch.randperm(len(members), generator=generator)
        found[members[order]] = torch.arange(len(members)) % min(count, smaller)
    return found.to(positive.device)


def checked_texts(texts: TextActivations, what: str) -> int:
    """How many texts there are.

    Raises:
        ValueError: fewer than two, or one without tokens.
    """
    count = int(texts.text.max()) + 1 if len(texts.text) else 0
    if count < 2:
        raise ValueError(f"{what} has {count} texts, expected two or more: some to fit and some to validate")
    lengths = segment_lengths(texts.text, count)
    if not lengths.all():
        raise ValueError(f"text {int((lengths == 0).nonzero()[0])} of {what} has no counted tokens")
    return count


def _named(positive: TextActivations, negative: TextActivations) -> list[tuple[str, TextActivations]]:
    return [("positive", positive), ("negative", negative)]
