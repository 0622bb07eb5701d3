"""What the last examples of a run asked for: kept on the device, and brought to the host when somebody asks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interptrain.concepts.bank import ConceptBank
from interptrain.meters.token_demand import TokenDemand, TokenDemands, of_predicted
from interptrain.sites.hooks import HookPoint


@dataclass(frozen=True, eq=False)
class KeptExample:
    """What one example of a measured step asked of each concept, at the concept's last hook point in the stream.

    A token's figures are those of the position that predicts it; NaN where it is not in the loss, such as the
    prompt's. Signed figures are of the step's own loss, a mean over its batch, so that examples of one step compare.

    Args:
        step: optimizer steps done before.
        input_ids: the tokens, without padding; empty where the model's call does not show them.
        signed: `-sum_t m_c . g_t`, positive where the example asks for more of the concept.
        share: energy share in each concept's span.
        token_signed: of each token.
        token_share: likewise.
    """

    step: int
    input_ids: Int[Tensor, "_"]
    signed: Float[Tensor, "concept"]
    share: Float[Tensor, "concept"]
    token_signed: Float[Tensor, "token concept"]
    token_share: Float[Tensor, "token concept"]


class KeptExamples:
    """The token demands of the last measured steps.

    Args:
        bank: the concepts.
        steps: how many are kept; the oldest go first.
    """

    def __init__(self, bank: ConceptBank, steps: int) -> None:
        self._places = [(hook, [bank.names.index(name) for name in names]) for hook, names in last_hooks(bank).items()]
        self._concepts = len(bank.names)
        self._kept: deque[tuple[int, TokenDemands]] = deque(maxlen=steps)

    def add(self, step: int, tokens: TokenDemands) -> None:
        """Keep what the tokens of a step asked for, once; no synchronisation with the device."""
        if tokens and not (self._kept and self._kept[-1][1] is tokens):
            self._kept.append((step, tokens))

    def read(self) -> list[KeptExample]:
        """Every kept example in the order of training; one transfer from the device."""
        found = [(step, self._pass(tokens, number)) for step, tokens in self._kept for number in _passes(tokens)]
        if not found:
            return []
        flat = torch.cat([part.flatten() for _, parts in found for part in parts]).cpu()
        examples: list[KeptExample] = []
        for step, parts in found:
            taken = flat[: sum(part.numel() for part in parts)]
            flat = flat[len(taken) :]
            host = [piece.view(part.shape) for piece, part in zip(_split(taken, parts), parts, strict=True)]
            examples += _examples(step, host)
        return examples

    def _pass(self, tokens: TokenDemands, number: int) -> list[Tensor]:
        """One forward pass as tensors of one dtype, which holds token numbers exactly up to 2^24."""
        first = next(iter(tokens.values()))[number]
        batch, length = first.total.shape
        signed, share = (first.total.new_full((batch, length, self._concepts), torch.nan) for _ in range(2))
        whole, part = (first.total.new_full((batch, self._concepts), torch.nan) for _ in range(2))
        for hook, concepts in self._places:
            if hook in tokens:
                demand = tokens[hook][number]
                summed, unread = demand.per_example(), ~demand.counted[..., None]
                signed[..., concepts] = of_predicted(demand.signed.masked_fill(unread, torch.nan))[..., concepts]
                share[..., concepts] = of_predicted(demand.share().masked_fill(unread, torch.nan))[..., concepts]
                whole[:, concepts], part[:, concepts] = summed["signed"][:, concepts], summed["share"][:, concepts]
        ids = first.input_ids if first.input_ids is not None else first.total.new_full((batch, 0), 0)
        return [signed, share, whole, part, ids.float(), _attended(first).float()]


def last_hooks(bank: ConceptBank) -> dict[str, list[str]]:
    """By hook point, the concepts that have it as their last in the stream: what is nearest to the answer."""
    found: dict[str, list[str]] = {}
    for name in bank.names:
        hooks = bank.select(name).hook_points
        found.setdefault(max(hooks, key=lambda hook: HookPoint.parse(hook).position), []).append(name)
    return found


def _passes(tokens: TokenDemands) -> range:
    return range(min(len(demands) for demands in tokens.values()))


def _attended(demand: TokenDemand) -> Tensor:
    """What is no padding; where nobody says, everything up to the last token that is read."""
    if demand.attended is not None:
        return demand.attended
    later = demand.counted.flip(-1).cumsum(-1).flip(-1) > 0
    return torch.cat([later[:, :1], later[:, :-1]], dim=-1) | later


def _split(flat: Tensor, parts: Sequence[Tensor]) -> Iterator[Tensor]:
    yield from flat.split([part.numel() for part in parts])


def _examples(step: int, parts: Sequence[Tensor]) -> Iterator[KeptExample]:
    for signed, share, whole, part, ids, attended in zip(*parts, strict=True):
        kept = attended.bool()
        numbers = ids.long()[kept] if len(ids) else ids.long()
        yield KeptExample(step, numbers, whole, part, signed[kept], share[kept])
