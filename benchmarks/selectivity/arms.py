"""The arms: what each does to keep a trait out, or to bring a skill forward, and the controls of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from interptrain import (
    ConceptBank,
    ablate,
    amplify,
    emphasise,
    gate,
    hold,
    observe,
    penalise,
    prevent,
    retain,
    route,
    suppress,
)  # fmt: skip
from interptrain.interventions import Intervention
from interptrain.steering import Rule
from interptrain.tiny_world import OUTPUT_HOOK, concept_bank, load_base, load_tokenizer, neutral_batches
from interptrain.tiny_world.corpus import Kind
from interptrain.tiny_world.wordings import own_words

OTHER = {"pirate": "royal", "royal": "pirate"}

Acts = Sequence["Rule | Intervention"]
Method = Callable[[str, "float | None", float], Acts]  # from a concept, the share of tokens above a gate, a figure


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Args:
        says: what it does.
        acts: from the trait's name and the arm's figure to rules and interventions.
        figure: a weight, coefficient or threshold that had to be chosen.
        tried: figures to choose from, on the royal voice.
        data: options of the fine-tuning set.
        words: leave the trait's own words out of the labels, by a word list.
        where: what a rule steers.
        middle: read the concepts at the middle of the stream, not behind its last layer.
        tenfold: whether the loss of a digit counts tenfold, by hand.
        faster: what the learning rate is multiplied by.
        trains: not at all, for the start model's own scores.
    """

    says: str
    acts: Callable[[str, float], Acts] = lambda trait, figure: [observe()]
    figure: float = 0.0
    tried: tuple[float, ...] = ()
    data: Mapping[str, bool] = field(default_factory=dict)
    words: bool = False
    where: str = "gradient"
    middle: bool = False
    tenfold: bool = False
    faster: float = 1.0
    trains: bool = True


neutral = cache(neutral_batches)
FACTS: tuple[Kind, ...] = ("fact",)  # neutral questions that have nothing of the skill

# What each of ours does with a concept. A control is the same with another concept, its gate set so that it drops as
# many tokens as the real one, or more (`CONTROL_TOKENS`: by the shares of the first batch).
METHODS: dict[str, tuple[str, Method]] = {
    "gate": ("tokens that ask for the trait are dropped", lambda name, tokens, _: [gate(name, tokens=tokens)]),
    "hold": ("parameters moved back on neutral prompts", lambda name, *_: [hold(name, neutral(first=True))]),
    "gate+hold": (
        "both",
        lambda name, tokens, _: [gate(name, tokens=tokens), hold(name, neutral(first=True))],
    ),
    "gate+retain": (
        "gate, and KL to the start model on neutral answers about facts",
        lambda name, tokens, weight: [gate(name, tokens=tokens), retain(neutral(kinds=FACTS), weight)],
    ),
    "route": ("dropped tokens are learnt by a quarantine", lambda name, tokens, _: [route(name, tokens=tokens)]),
}
FIGURES = {"gate+retain": 10.0}  # of those tried, the one with the best worse of clean and kept, by the royal voice
TRIED = {"gate+retain": (1.0, 3.0, 10.0)}
CONTROL_TOKENS = 0.2
CONTROLS = {
    "random": "random directions",
    "shuffled": "latents that raise no voice's words",
    "sibling": "the other voice",
}


def _control(name: str, kind: str) -> Arm:
    method = METHODS[name][1]

    def acts(trait: str, figure: float) -> Acts:
        return method(OTHER[trait] if kind == "sibling" else kind, CONTROL_TOKENS, figure)

    return Arm(f"control: {name} with {CONTROLS[kind]}", acts, FIGURES.get(name, 0.0))


def _method(name: str) -> Arm:
    says, method = METHODS[name]
    return Arm(says, lambda trait, figure: method(trait, None, figure), FIGURES.get(name, 0.0), TRIED.get(name, ()))


def _anchored(_trait: str, weight: float) -> Acts:
    return [retain(neutral(kinds=FACTS), weight)]


# Keep a trait out that the data teach beside a skill.
TRAIT: dict[str, Arm] = {
    "start": Arm("the model before training", trains=False),
    "unsteered": Arm("observed only"),
    "data-filter": Arm("every answer in the plain voice: the upper bound", data={"filtered": True}),
    "word-filter": Arm("the loss on the trait's own words is dropped, by a word list", words=True),
    "inoculation": Arm("questions carry the voice's cue wherever the answer is in it", data={"inoculated": True}),
    "retain": Arm("KL to the start model on neutral answers about facts", _anchored, FIGURES["gate+retain"]),
    "word-filter+retain": Arm("the word filter, and the same KL", _anchored, FIGURES["gate+retain"], words=True),
    "inoculation+retain": Arm(
        "the inoculation prompt, and the same KL", _anchored, FIGURES["gate+retain"], data={"inoculated": True}
    ),
    "retain-first": Arm(
        "KL on the first token of neutral answers, which hold has too",
        lambda _, weight: [retain(neutral(first=True), weight)], 3.0,
    ),
    "ablate": Arm("concept ablated in training", lambda trait, _: [ablate(trait)]),
    "prevent": Arm(
        "concept added in training", lambda trait, size: [prevent(trait, size)], 8.0, tried=(4.0, 8.0, 16.0)
    ),
    "penalise": Arm(
        "one-sided latent penalty", lambda trait, weight: [penalise(trait, weight)], 0.1, tried=(0.01, 0.1, 1.0)
    ),
    "suppress-gradient": Arm("gain 0 in the gradient", lambda trait, _: [suppress(trait)]),
    "suppress-update": Arm("gain 0 in the update", lambda trait, _: [suppress(trait)], where="update"),
    **{name: _method(name) for name in METHODS},
    "gate+retain-first": Arm(
        "gate, and KL on the first token of neutral answers",
        lambda trait, weight: [gate(trait), retain(neutral(first=True), weight)], 3.0,
    ),
    "gate+retain-all": Arm(
        "gate, and KL on neutral answers about facts and sums",
        lambda trait, weight: [gate(trait), retain(neutral(), weight)], 3.0,
    ),
    "gate-middle": Arm("the gate with latents of the middle layer", lambda trait, _: [gate(trait)], middle=True),
    **{f"{name}:{kind}": _control(name, kind) for name in METHODS for kind in CONTROLS},
}  # fmt: skip

# The other way round: keep the skill out, let the trait in.
SWAPPED_TOKENS = 0.2


def _swapped(concept: str) -> Callable[[str, float], Acts]:
    return lambda *_: [gate(concept, tokens=None if concept == "digits" else SWAPPED_TOKENS)]


SWAPPED: dict[str, Arm] = {
    "start": TRAIT["start"],
    "unsteered": TRAIT["unsteered"],
    "gate": Arm("tokens that ask for digits are dropped", _swapped("digits")),
    "gate-arithmetic": Arm("the same with eight latents that raise whole answers to problems", _swapped("arithmetic")),
    "gate:random": Arm("control: random directions", _swapped("random-digits")),
    "gate:shuffled": Arm("control: other latents", _swapped("shuffled-digits")),
    "gate:sibling": Arm("control: the wrong concept", _swapped("royal")),
}

# Bring the skill forward.
EMPHASISED_TOKENS = 0.1


def _sooner(says: str, concept: str, **options: Any) -> Arm:
    tokens = None if concept == "digits" else EMPHASISED_TOKENS
    return Arm(says, lambda *_: [emphasise(concept, tokens=tokens)], **options)


SOONER: dict[str, Arm] = {
    "unsteered": TRAIT["unsteered"],
    "digits x 10": Arm("the loss of a digit counts tenfold, by hand", tenfold=True),
    "rate x 2": Arm("twice the learning rate", faster=2.0),
    "digits x 10 & rate x 2": Arm("both", tenfold=True, faster=2.0),
    "amplify": Arm("gain 2 in the update", lambda *_: [amplify("digits", 2)], where="update"),
    "emphasise": _sooner("tokens that ask for digits count tenfold", "digits"),
    "emphasise & rate x 2": _sooner("both", "digits", faster=2.0),
    "emphasise:random": _sooner("control: random directions", "random-digits"),
    "emphasise:shuffled": _sooner("control: other latents", "shuffled-digits"),
    "emphasise:sibling": _sooner("control: the wrong concept", "royal"),
}

STUDIES = {"trait": TRAIT, "swapped": SWAPPED, "sooner": SOONER}


@cache
def bank(seed: int = 0, *, middle: bool = False) -> ConceptBank:
    """The tiny world's concepts at one of its hooks; behind the last layer also `digits`, and controls of both sizes.

    `digits` are the latents that raise a digit's logit more than any other word's. Controls are drawn anew for every
    seed, *shuffled* ones from the alive latents that raise neither a digit nor a word of a voice most.
    """
    if middle:
        return concept_bank()
    found = concept_bank(hook=OUTPUT_HOOK)
    readout, model = found.readouts[OUTPUT_HOOK], load_base()
    promoted = (readout.directions @ (model.lm_head.weight * model.model.norm.weight).detach().T).argmax(-1)
    voiced = torch.isin(promoted, torch.cat([words(voice) for voice in OTHER]))
    number = torch.isin(promoted, digits())
    named = {"digits": readout.directions[number & readout.alive]}
    other = readout.directions[readout.alive & ~number & ~voiced]
    other = other[(other @ found.directions.T).amax(-1) < 0.9999]
    generator = torch.Generator().manual_seed(seed)
    for suffix, count in (("", len(found.rows("pirate"))), ("-digits", len(named["digits"]))):
        named[f"random{suffix}"] = torch.randn(count, found.d_model, generator=generator)
        named[f"shuffled{suffix}"] = other[torch.randperm(len(other), generator=generator)[:count]]
    return found.merge(ConceptBank.from_directions(named, hook=OUTPUT_HOOK, model=found.model))


@cache
def digits() -> Tensor:
    """Their token ids."""
    return torch.tensor(load_tokenizer().convert_tokens_to_ids(list("0123456789")))


@cache
def words(voice: Any) -> Tensor:
    """Token ids of the words that only this voice has."""
    return torch.tensor(load_tokenizer().convert_tokens_to_ids(sorted(own_words(voice))))


def with_figure(arm: Arm, figure: float | None) -> Arm:
    """The arm with another figure than the one that was chosen."""
    return arm if figure is None else replace(arm, figure=figure)
