"""Self-explanation: a model is asked what one of its own directions means, and believed only against controls.

A direction takes the place of a word in a question to the model itself, "what is the meaning of X?", and the answer is
read (SelfIE: Chen, Vondrick and Mao, 2024; Patchscopes: Ghandeharioun et al., 2024; of SAE latents: Kharlapenko,
neverix, Nanda and Conmy, 2024). A model always answers something. So random directions of the same length are asked the
same, and a direction says something only where its answer is its own by more than each of theirs.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interptrain.concepts.bank import unit_rows
from interptrain.concepts.injection import Asked, last_token, likelihood, placeholder, say

AT_ONCE = 32  # rows that are run through the model together
MARGIN = 0.1  # nats a token; below it two prompts make an answer as likely


@dataclass(frozen=True)
class Sweep:
    """How a direction is asked for.

    Args:
        scales: lengths of what fills the placeholder, in units of the stream's own length there; rising.
        tokens: of an answer at most.
        controls: random directions that are asked the same.
        seed: of theirs.

    Raises:
        ValueError: fewer than two scales, or they do not rise from above 0; no token or no control.
    """

    scales: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)
    tokens: int = 16
    controls: int = 19
    seed: int = 0

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in zip((0.0, *self.scales), self.scales, strict=False))
        if len(self.scales) < 2 or not rising:
            raise ValueError(f"expected two scales or more that rise from above 0, found {list(self.scales)}")
        if self.tokens < 1 or self.controls < 1:
            raise ValueError(f"expected a token and a control or more, found {self.tokens} and {self.controls}")


@dataclass(frozen=True, eq=False)
class Answer:
    """What was said of one direction.

    Args:
        words: tokens before an end, at the scale that was chosen.
        scale: which of the sweep's.
        entropy: of the first word, at every scale.
        similarity: of the stream at the prompt's end to the direction, at every scale.
        advantage: `mean_t log p` of the answer under its own direction less the most under any other, in nats.
        uninjected: the same less that of the prompt as it is.
        agreement: the least of the same at the scales next to it.
    """

    words: tuple[int, ...]
    scale: int
    entropy: Float[Tensor, "scale"]
    similarity: Float[Tensor, "scale"]
    advantage: float
    uninjected: float
    agreement: float


class SelfExplainer:
    """Asks a model what directions mean, and what random ones do.

        A(d) = l_d(E_d) - max_r l_r(E_d)        l_v(E) = mean_t log p(E_t | prompt filled by v, E_<t)

    `E_d` is the greedy answer of the prompt filled by `d`, at the scale `s` where its entropy is low and its similarity
    high (`best_scale`); `r` runs over the controls, filled in at the same length, and the prompt as it is. Every
    control is treated as the direction is, with a scale and an answer of its own, against the others. A greedy answer
    is likeliest under what it was made with, so `A > 0` alone says nothing: it is compared with the controls' own.

    A direction **says something** where all of these hold:

        E_d is not the answer of the prompt as it is
        A(d) > .1 nats a token                        no control, nor the prompt as it is, makes it as likely
        A(d) > max_r A(r)                             no control's answer is as much its own
        A(d) > .1 at the scales next to s             a longer and a shorter one say the same

    Of random directions at most one in `controls` + 1 would, and so of as many latents.

    Args:
        model: a causal language model; left as it was.
        asked: the prompt.
        sweep: of scales and controls.
        end: token ids that end an answer.
        reads: the hook point whose stream is compared with the direction.

    Source: the entropy and the similarity are those of *Self-explaining SAE features* (2024); the controls and the rule
    are this library's.
    """

    def __init__(self, model: nn.Module, asked: Asked, sweep: Sweep, *, end: Collection[int], reads: str) -> None:
        self._model, self._asked, self._sweep, self._end, self._reads = model, asked, sweep, tuple(end), reads
        there = placeholder(model, asked)
        self.norm = float(there.norm(dim=-1).mean())
        generator = torch.Generator().manual_seed(sweep.seed)
        self.controls = unit_rows(torch.randn(sweep.controls, there.shape[1], generator=generator))
        others = [torch.cat([self.controls[:row], self.controls[row + 1 :]]) for row in range(sweep.controls)]
        self.null = tuple(self._answer(*each) for each in zip(self.controls, others, strict=True))
        self.bare = counted_tokens(*say(model, asked, None, tokens=sweep.tokens, end=self._end))

    def explain(self, direction: Float[Tensor, "d_model"]) -> Answer:
        """The answer to one unit direction."""
        return self._answer(direction, self.controls)

    def verdict(self, answer: Answer) -> str:
        """Why a direction says nothing; empty where it says something."""
        return verdict(answer, [each.advantage for each in self.null], self.bare)

    def _answer(self, direction: Float[Tensor, "d_model"], others: Float[Tensor, "other d_model"]) -> Answer:
        lengths = self.norm * torch.tensor(self._sweep.scales)
        vectors = lengths[:, None] * direction
        entropy, similarity = last_token(self._model, self._asked, vectors, self._reads, direction)
        at = best_scale(entropy, similarity)
        said, counted = say(self._model, self._asked, vectors[[at]], tokens=self._sweep.tokens, end=self._end)
        next_to = [each for each in (at - 1, at + 1) if 0 <= each < len(lengths)]
        own, *near = (self._margins(said, counted, direction, others, float(lengths[each])) for each in (at, *next_to))
        return Answer(
            counted_tokens(said, counted), at, entropy, similarity, advantage=min(own), uninjected=own[1],
            agreement=min(min(each) for each in near),
        )  # fmt: skip

    def _margins(
        self, said: Int[Tensor, "1 token"], counted: Bool[Tensor, "1 token"], direction: Float[Tensor, "d_model"],
        others: Float[Tensor, "other d_model"], length: float,
    ) -> tuple[float, float]:  # fmt: skip
        """How much likelier an answer is under its direction than under the others, and than without any."""
        under = torch.cat([
            likelihood(self._model, self._asked, said.expand(len(part), -1), counted.expand(len(part), -1), part)
            for part in (length * torch.cat([direction[None], others])).split(AT_ONCE)
        ])  # fmt: skip
        bare = likelihood(self._model, self._asked, said, counted, None)[0]
        return float(under[0] - torch.cat([under[1:], bare[None]]).max()), float(under[0] - bare)


def best_scale(entropy: Float[Tensor, "scale"], similarity: Float[Tensor, "scale"]) -> int:
    """The scale at which the model is surest of its word while what it is about to say is most like the direction.

        argmax_s  from01(similarity_s) - from01(entropy_s),      from01(x) = (x - min x) / (max x - min x)

    Too short a vector is passed over, and too long a one drowns the prompt.

    Example:
        >>> best_scale(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0.0, 0.4, 0.5]))
        1
    """
    return int((_from_0_to_1(similarity) - _from_0_to_1(entropy)).argmax())


def counted_tokens(said: Int[Tensor, "1 token"], counted: Bool[Tensor, "1 token"]) -> tuple[int, ...]:
    """The tokens of an answer before its end."""
    return tuple(said[counted].tolist())


def verdict(answer: Answer, null: Sequence[float], bare: tuple[int, ...]) -> str:
    """Why an answer is none, by the rule of `SelfExplainer`; empty where it is one.

    Args:
        answer: of a direction.
        null: the controls' advantages.
        bare: the answer of the prompt as it is.
    """
    if not answer.words:
        return "the model ends its answer before the first word"
    if answer.words == bare:
        return "the prompt without the direction is answered the same"
    if answer.uninjected <= MARGIN:
        return "the prompt without the direction makes the same answer as likely"
    if answer.advantage <= MARGIN:
        return "a random direction makes the same answer as likely"
    if (as_much := sum(each >= answer.advantage for each in null)) > 0:
        return f"of {len(null)} random directions {as_much} have an answer that is as much their own"
    if answer.agreement <= MARGIN:
        return "a little longer or shorter, the direction no longer says it"
    return ""


def _from_0_to_1(values: Float[Tensor, "scale"]) -> Float[Tensor, "scale"]:
    return (values - values.min()) / (values.max() - values.min()).clamp_min(1e-9)
