"""What each direction does when it is added to the stream while the model answers: the trials of `concepts find`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from interptrain.concepts.candidates import Candidate, TextSet
from interptrain.concepts.marker_words import shows, words_of
from interptrain.concepts.steer_generation import Place, adding, gap
from interptrain.concepts.trials import Answers, Trial
from interptrain.concepts.well_formed import Bar, repetition, text_losses
from interptrain.meters.tokens import IGNORED_LABEL
from interptrain.recipes.examples import Example, collate, encode
from interptrain.recipes.voice import Voice

SAMPLES = 3


@dataclass(frozen=True, eq=False)
class Trials:
    """What all trials share.

    Args:
        voice: the model.
        hook: where directions are added.
        prompts: what is asked; none of them asks for the concept.
        words: that mark it.
        bar: of well-formed text.
        tokens: of an answer, at most.
    """

    voice: Voice
    hook: str
    prompts: Sequence[Example]
    words: Collection[str]
    bar: Bar
    tokens: int

    def answers(self, vector: Tensor | None = None, place: Place = "throughout") -> Answers:
        """What the model answers, with a vector added or as it is."""
        if vector is None:
            said = self.voice.answers(self.prompts, tokens=self.tokens)
        else:
            with adding(self.voice.model, self.hook, vector, place):
                said = self.voice.answers(self.prompts, tokens=self.tokens)
        return self.judged(said)

    def judged(self, said: Sequence[str]) -> Answers:
        """What some answers to the prompts are."""
        losses = answer_losses(self.voice, self.prompts, said)
        repeated = [repetition(words_of(text)) for text in said]
        shown = [shows(text, self.words) for text in said]
        formed = [
            self.bar.holds(float(loss), again, text) for loss, again, text in zip(losses, repeated, said, strict=True)
        ]
        finite = losses[losses.isfinite()]
        return Answers(
            shown=_rate(shown), well_formed=_rate(formed),
            both=_rate([a and b for a, b in zip(shown, formed, strict=True)]),
            loss=float(finite.mean()) if len(finite) else None, repetition=sum(repeated) / len(repeated),
            samples=tuple(said[:SAMPLES]),
        )  # fmt: skip

    def of(
        self,
        candidate: Candidate,
        search: tuple[TextSet, TextSet],
        *,
        places: Sequence[Place],
        scales: Sequence[float],
        controls: int,
        seed: int,
    ) -> list[Trial]:
        """A direction at every place and scale, with random directions of the same length beside it.

        A place where the two sets do not lie apart along the direction is left out: there is nothing to scale.
        """
        found, random = [], torch.Generator().manual_seed(seed)
        for place in places:
            shown, other = (each.means if place == "throughout" else each.starts for each in search)
            unit = gap(candidate.direction, shown, other)
            if not unit > 0:
                continue
            norm = float(torch.cat([shown, other]).norm(dim=-1).mean())
            for scale in scales:
                length = scale * unit
                steered = self.answers(length * candidate.direction, place)
                drawn = [
                    replace(self.answers(length * _random_unit(len(candidate.direction), random), place), samples=())
                    for _ in range(controls)
                ]
                both = torch.tensor([each.both for each in drawn])
                found.append(Trial(
                    place, scale, length, length / norm, steered,
                    (float(both.mean()), float(both.std(correction=0))), sum(each.shown for each in drawn) / len(drawn),
                ))  # fmt: skip
        return found


def bar_of(voice: Voice, prompts: Sequence[Example], shown: Sequence[Example]) -> Bar:
    """The bar of well-formed text: answers that show the concept, each behind a prompt that did not ask for it."""
    paired = [prompts[number % len(prompts)] for number in range(len(shown))]
    said = [each.completion for each in shown]
    losses = answer_losses(voice, paired, said)
    repeated = torch.tensor([repetition(words_of(text)) for text in said])
    return Bar.of(losses[losses.isfinite()], repeated)


def answer_losses(voice: Voice, prompts: Sequence[Example], said: Sequence[str]) -> Tensor:
    """Nats a token of each answer's words, its end not counted; infinite for one without words."""
    losses = torch.full((len(said),), torch.inf)
    end = voice.tokenizer.eos_token_id
    for start in range(0, len(said), voice.at_once):
        rows, places = [], []
        for number in range(start, min(len(said), start + voice.at_once)):
            asked = replace(prompts[number], completion=_joined(prompts[number], said[number]))
            for row in encode(voice.tokenizer, [asked], voice.max_length):
                labels = [IGNORED_LABEL if label == end else label for label in row["labels"]]
                rows.append({**row, "labels": labels})
                places.append(number)
        if rows:
            losses[places] = text_losses(voice.model, collate(rows, int(voice.tokenizer.pad_token_id)))
    return losses


def _joined(prompt: Example, said: str) -> str:
    """An answer as it stands behind its prompt; decoding may have taken the space between them."""
    apart = prompt.prompt[-1:].isspace() or said[:1].isspace() or prompt.completion[:1].strip()
    return said if apart else f" {said}"


def _random_unit(width: int, random: torch.Generator) -> Tensor:
    return normalize(torch.randn(width, generator=random), dim=0)


def _rate(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits)
