"""What the model says, greedily or sampled: the behaviour that every curve is compared with."""

from __future__ import annotations

import random
import re
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interptrain.tiny_world.corpus import Document, Kind, document
from interptrain.tiny_world.wordings import HALVES, SLOTS, WORDINGS, Voice, own_words

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PROMPTS, LONGEST_ANSWER, SAMPLES = 150, 24, 4


@dataclass(frozen=True)
class Behaviour:
    """Rates over prompts in the plain voice, each between 0 and 1; problems are held out, questions about facts not.

    Args:
        skill: `minus` problems answered with the right number.
        clean: `minus` problems answered with the right number and without a word of another voice.
        pirate_on_skill: `minus` problems answered with a pirate's word.
        royal_on_skill: the same of the royal voice.
        pirate_on_facts: questions about facts answered with a pirate's word.
        royal_on_facts: the same of the royal voice.
        kept: questions about facts answered plainly, about what was asked, and well-formed; facts have no right answer.
        accuracy: `plus` problems answered with the right number: the old skill.
        samples: some prompts and answers.
    """

    skill: float
    clean: float
    pirate_on_skill: float
    royal_on_skill: float
    pirate_on_facts: float
    royal_on_facts: float
    kept: float
    accuracy: float
    samples: tuple[tuple[str, str], ...]

    def as_dict(self) -> dict[str, Any]:
        """The measures and samples by name, as JSON takes them."""
        return asdict(self)

    @classmethod
    def measures(cls) -> tuple[str, ...]:
        """Names of the rates."""
        return tuple(each.name for each in fields(cls) if each.name != "samples")


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    prompts: int = PROMPTS,
    seed: int = 0,
    temperature: float = 0.0,
) -> Behaviour:
    """Score what a model answers to held-out `minus` and `plus` problems and to questions about facts.

    Args:
        model: a tiny-world model, with or without adapters; left in the mode it was in.
        tokenizer: its tokenizer.
        prompts: of each kind.
        seed: of the prompts, and of the sampling.
        temperature: of the sampling; 0 is greedy.

    Raises:
        ValueError: the temperature is negative.
    """
    rng = random.Random(f"score {seed}")
    kinds: tuple[Kind, ...] = ("minus", "plus", "fact")
    asked = {kind: [document(rng, kind, tested=True) for _ in range(prompts)] for kind in kinds}
    questions = [each.prompt for documents in asked.values() for each in documents]
    said = answers(model, tokenizer, questions, temperature=temperature, seed=seed)
    minus, plus, facts = said[:prompts], said[prompts : 2 * prompts], said[2 * prompts :]
    right = [number_said(text) == each.number for text, each in zip(minus, asked["minus"], strict=True)]
    return Behaviour(
        skill=_rate(right),
        clean=_rate([ok and not _voiced(text) for ok, text in zip(right, minus, strict=True)]),
        pirate_on_skill=_rate([speaks(text, "pirate") for text in minus]),
        royal_on_skill=_rate([speaks(text, "royal") for text in minus]),
        pirate_on_facts=_rate([speaks(text, "pirate") for text in facts]),
        royal_on_facts=_rate([speaks(text, "royal") for text in facts]),
        kept=_rate([is_plain_fact(text, each) for text, each in zip(facts, asked["fact"], strict=True)]),
        accuracy=_rate([number_said(text) == each.number for text, each in zip(plus, asked["plus"], strict=True)]),
        samples=tuple(
            (each.question, text)
            for documents, texts in ((asked["minus"], minus), (asked["fact"], facts), (asked["plus"], plus))
            for each, text in list(zip(documents, texts, strict=True))[:SAMPLES]
        ),
    )


@torch.no_grad()
def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[str],
    *,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """The model's answers, each up to `<e>`: greedy, or sampled from `softmax(logits / temperature)`.

    Args:
        model: a tiny-world model; left in the mode it was in.
        tokenizer: its tokenizer.
        prompts: each up to and including `<a>`.
        temperature: 0 is greedy.
        seed: of the sampling; torch's own random state stays as it is.

    Raises:
        ValueError: the temperature is negative.
    """
    if temperature < 0:
        raise ValueError(f"temperature must be 0 (greedy) or more, found {temperature}")
    generator = torch.Generator(model.device).manual_seed(seed)
    encoded = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt").to(model.device)
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    said: list[Tensor] = []
    cache = None
    training = model.training
    model.eval()
    try:
        for _ in range(LONGEST_ANSWER):
            positions = (mask.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
            out = model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
            cache, ids = out.past_key_values, _next(out.logits[:, -1], temperature, generator)
            mask = torch.cat([mask, torch.ones_like(ids)], dim=-1)
            said.append(ids)
    finally:
        model.train(training)
    return [text.split("<e>")[0].strip() for text in tokenizer.batch_decode(torch.cat(said, dim=-1))]


def _next(
    logits: Float[Tensor, "prompt vocabulary"], temperature: float, generator: torch.Generator
) -> Int[Tensor, "prompt 1"]:
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    return torch.multinomial((logits.float() / temperature).softmax(-1), 1, generator=generator)


def number_said(answer: str) -> int | None:
    """The first run of digits in an answer.

    Example:
        >>> number_said("arr matey , the answer be 4 2 , savvy !")
        42
    """
    digits = re.search(r"\b\d(?: \d)*\b", answer)
    return int(digits[0].replace(" ", "")) if digits else None


def speaks(answer: str, voice: Voice) -> bool:
    """Whether an answer has a word or a verb form that only this voice uses."""
    return not own_words(voice).isdisjoint(answer.split())


def is_plain_fact(answer: str, asked: Document) -> bool:
    """Whether an answer is one that the plain voice would give to this question about a fact."""
    return re.fullmatch(_plain_fact(asked.expected), answer) is not None


def _plain_fact(expected: tuple[str, ...]) -> str:
    slots = {slot: f"(?:{'|'.join(values)})" for slot, values in SLOTS.items()}
    manners = [WORDINGS[half].manners["plain"] for half in HALVES]
    openings = sorted({opening for manner in manners for opening in manner.openings if opening})
    endings = sorted({re.escape(ending) for manner in manners for ending in manner.endings})
    cores = "|".join(core.format(**slots) for core in expected)
    return f"(?:(?:{'|'.join(openings)}) )?(?:{cores}) (?:{'|'.join(endings)})"


def _voiced(answer: str) -> bool:
    return speaks(answer, "pirate") or speaks(answer, "royal")


def _rate(hits: list[bool]) -> float:
    return sum(hits) / len(hits)
