"""Rules: from coefficients in concept space and the step to a gain for each concept.

A rule never sees a parameter. It is any callable `(coefficients, step) -> {concept: gain}`; what it does not
name is left alone, and when rules are chained their gains multiply.

    gain 1 leaves, 0 removes, 2 doubles, -1 reverses
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

Coefficients: TypeAlias = Mapping[str, Float[Tensor, ""]]
Gains: TypeAlias = Mapping[str, "float | Float[Tensor, '']"]
Strength: TypeAlias = Callable[[int], float]


@runtime_checkable
class Rule(Protocol):
    """Anything that gives gains; a lambda is a legal rule."""

    def __call__(self, coefficients: Coefficients, step: int) -> Gains:
        """Gains for this step.

        Args:
            coefficients: for every concept of the bank, how far the step moves the residual stream toward it, to
                first order. Where the gradient is steered, up to the learning rate: `-sum_writers s d^T G x_mean`
                with `d` the concept's mean direction and `s` the LoRA scaling (1 without); where the update is,
                what the optimizer did: `sum_writers d^T dW x_mean`. Positive: toward the concept. On the device;
                reading one as a Python number synchronises.
            step: optimizer steps before this one.
        """
        ...


@dataclass(frozen=True)
class Observe:
    """The rule that changes nothing."""

    def __call__(self, coefficients: Coefficients, step: int) -> Gains:
        return {}


@dataclass(frozen=True)
class Constant:
    """The same gain for one concept at every step."""

    concept: str
    gain: float

    def __call__(self, coefficients: Coefficients, step: int) -> Gains:
        return {self.concept: self.gain}


@dataclass(frozen=True)
class KeepOnly:
    """Gain 0 for every concept of the bank but these, which keep their share of what overlaps."""

    concepts: tuple[str, ...]

    def __call__(self, coefficients: Coefficients, step: int) -> Gains:
        unknown = [concept for concept in self.concepts if concept not in coefficients]
        if unknown:
            raise ValueError(f"keep_only names {unknown}, the bank has {', '.join(coefficients)}")
        return {concept: float(concept in self.concepts) for concept in coefficients}


@dataclass(frozen=True)
class Scheduled:
    """`gain_t = 1 + strength(t) (gain - 1)`."""

    rule: Rule
    strength: Strength

    def __call__(self, coefficients: Coefficients, step: int) -> Gains:
        strength = self.strength(step)
        return {name: 1 + strength * (gain - 1) for name, gain in self.rule(coefficients, step).items()}


@dataclass(frozen=True)
class OneSided:
    """The rule's gain while the step moves toward the concept, 1 while it moves away."""

    rule: Rule

    def __call__(self, coefficients: Coefficients, step: int) -> Gains:
        return {
            name: torch.where(coefficients[name] > 0, gain, 1.0) for name, gain in self.rule(coefficients, step).items()
        }


@dataclass(frozen=True)
class Chain:
    """Several rules at once; gains multiply."""

    rules: tuple[Rule, ...]

    def __call__(self, coefficients: Coefficients, step: int) -> Gains:
        gains: dict[str, float | Tensor] = {}
        for rule in self.rules:
            for name, gain in rule(coefficients, step).items():
                gains[name] = gains[name] * gain if name in gains else gain
        return gains


def observe() -> Rule:
    """Measure and change nothing: the losses and weights of the run stay the same bit for bit."""
    return Observe()


def suppress(concept: str, gain: float = 0.0) -> Rule:
    """Multiply a concept's component by `gain` < 1; 0 removes it.

    A suppressed gradient is not a suppressed behaviour: see the meters.

    Raises:
        ValueError: the gain is 1 or more, or not finite.

    Example:
        >>> suppress("pirate")({}, 0)
        {'pirate': 0.0}
    """
    if not (math.isfinite(gain) and gain < 1):
        raise ValueError(f"suppress needs a finite gain below 1, found {gain}; amplify raises a concept")
    return Constant(concept, float(gain))


def amplify(concept: str, gain: float) -> Rule:
    """Multiply a concept's component by `gain` > 1.

    Raises:
        ValueError: the gain is 1 or less, or not finite.
    """
    if not (math.isfinite(gain) and gain > 1):
        raise ValueError(f"amplify needs a finite gain above 1, found {gain}; suppress lowers a concept")
    return Constant(concept, float(gain))


def keep_only(*concepts: str) -> Rule:
    """Remove every concept of the bank but these; what no concept of the bank spans is left alone.

    Raises:
        ValueError: no concept named.
    """
    if not concepts:
        raise ValueError("keep_only needs at least one concept to keep")
    return KeepOnly(concepts)


def scheduled(rule: Rule, strength: Strength) -> Rule:
    """Scale a rule over the run: `gain_t = 1 + strength(step) (gain - 1)`.

    Args:
        rule: what full strength does.
        strength: from optimizer step to a number; 0 observes, 1 is the rule itself.

    Example:
        >>> warm_up = scheduled(suppress("pirate"), lambda step: min(1.0, step / 100))
        >>> warm_up({}, 50)
        {'pirate': 0.5}
    """
    return Scheduled(rule, strength)


def one_sided(rule: Rule) -> Rule:
    """Apply a rule only while the step moves *toward* the concept.

    The sign is that of `-sum_writers d^T G x_mean`, or of `sum_writers d^T dW x_mean` where the update is steered,
    with `x_mean` the writer's mean input over the loss tokens; readers and embeddings have no such sign and do not
    vote.
    """
    return OneSided(rule)


def chain(rules: Rule | Iterable[Rule]) -> Rule:
    """One rule from several; gains multiply. A single rule is returned as it is.

    Raises:
        TypeError: something is not callable.
    """
    several: Sequence[Rule] = tuple(rules) if isinstance(rules, Iterable) else (rules,)
    if not several:
        return observe()
    for rule in several:
        if not callable(rule):
            raise TypeError(f"a rule is a callable (coefficients, step) -> gains, found {type(rule).__name__}")
    return several[0] if len(several) == 1 else Chain(tuple(several))


def reads_coefficients(rule: Rule) -> bool:
    """Whether a rule may look at the coefficients, which cost a forward hook on every writer."""
    match rule:
        case Observe() | Constant() | KeepOnly():
            return False
        case Scheduled(rule=inner):
            return reads_coefficients(inner)
        case Chain(rules=several):
            return any(reads_coefficients(inner) for inner in several)
        case _:
            return True
