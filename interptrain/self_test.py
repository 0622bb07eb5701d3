"""Does what is installed do what it says? A few steps on the CPU: observed, steered, written and read back."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interptrain.concepts import ConceptBank
from interptrain.recorders.jsonl import JSONLRecorder, read_curves
from interptrain.recorders.memory import MemoryRecorder
from interptrain.sites import find_sites
from interptrain.steerer import Steerer
from interptrain.steering import observe, suppress

STEPS = 3
ROUNDING = 1e-3  # gain left by float32 parameters that round the edit
CONCEPT, WIDTH, WORDS = "pirate", 16, 32


class Outcome(NamedTuple):
    """One thing that was tried, whether it is so, and what was found."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True)
class World:
    """What the test trains.

    Args:
        title: what it is.
        model: makes one, the same each time.
        batches: `input_ids` and `labels`.
        bank: with the concept `pirate`.
    """

    title: str
    model: Callable[[], nn.Module]
    batches: Sequence[Mapping[str, Tensor]]
    bank: ConceptBank


def self_test(world: World | None = None) -> Iterator[Outcome]:
    """Train a few steps without steering, observed, and with the updates of a concept suppressed.

    Args:
        world: what to train; None takes `world_at_hand()`.

    Example:
        >>> [outcome.passed for outcome in self_test(torch_world())]
        [True, True, True]
    """
    world = world_at_hand() if world is None else world
    plain = train(world)
    observed = train(world, lambda model: _steerer(world, model, observe()))
    same = all(torch.equal(observed[name], plain[name]) for name in plain)
    yield Outcome("observing changes nothing", same, f"{len(plain)} parameters, bit for bit, on {world.title}")
    with tempfile.TemporaryDirectory() as folder:
        written, kept = JSONLRecorder(Path(folder) / "curves.jsonl"), MemoryRecorder()
        train(world, lambda model: _steerer(world, model, suppress(CONCEPT), written, kept))
        read = read_curves(written.path)
    achieved = [value for value in read.get(f"concept/{CONCEPT}/achieved", []) if value is not None]
    largest = max(map(abs, achieved), default=float("nan"))
    steered = len(achieved) == STEPS and largest < ROUNDING
    yield Outcome("suppressed updates have gain 0", steered, f"at most {largest:.1e} in {len(achieved)} steps")
    yield Outcome("curves are written and read back", read == kept.curves(), f"{len(read)} curves as JSON lines")


def train(world: World, steered_by: Callable[[nn.Module], Steerer] | None = None) -> dict[str, Tensor]:
    """The parameters after a few steps of AdamW, with or without a steerer."""
    torch.manual_seed(0)
    model = world.model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    steerer = None if steered_by is None else steered_by(model).attach(model, optimizer)
    for batch in world.batches:
        if steerer is not None:
            steerer.watch(batch["labels"])
        model(**batch).loss.backward()
        if steerer is not None:
            steerer.before_step(optimizer)
        optimizer.step()
        optimizer.zero_grad()
    if steerer is not None:
        steerer.detach()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def world_at_hand() -> World:
    """The embedded world where what it is made of is installed, else one of torch alone."""
    try:
        return tiny_world()
    except ImportError:
        return torch_world()


def tiny_world() -> World:
    """The embedded model, its SAE and its fine-tuning set."""
    from interptrain.tiny_world import concept_bank, finetuning_set, load_base

    batches = list(islice(finetuning_set("mixed", batch=8), STEPS))
    return World("the embedded world", load_base, batches, concept_bank())


def torch_world() -> World:
    """A transformer of two blocks, random tokens and a random direction."""
    drawn = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, WORDS, (STEPS, 4, 8), generator=drawn)
    bank = ConceptBank.from_directions(
        {CONCEPT: torch.randn(2, WIDTH, generator=drawn)}, hook="blocks.0.hook_resid_post"
    )
    batches = [{"input_ids": each, "labels": each} for each in tokens]
    return World("a model of torch alone", Transformer, batches, bank)


def _steerer(world: World, model: nn.Module, rule: object, *recorders: JSONLRecorder | MemoryRecorder) -> Steerer:
    sites = find_sites(model, world.bank, where="update")
    return Steerer(world.bank, sites, rule, where="update", recorders=recorders)  # type: ignore[arg-type]


class Transformer(nn.Module):
    """Two Llama-like blocks, with the names that sites are found by."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens, self.layers = nn.Embedding(WORDS, WIDTH), nn.ModuleList([Block(), Block()])
        self.norm, self.lm_head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, input_ids: Int[Tensor, "batch token"], labels: Int[Tensor, "batch token"]) -> SimpleNamespace:
        """The loss of the next tokens."""
        h = self.embed_tokens(input_ids)
        for block in self.layers:
            h = block(h)
        logits = self.lm_head(self.norm(h))
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return SimpleNamespace(loss=loss)


class Block(nn.Module):
    """`h <- h + attention(norm(h))`, then `h <- h + mlp(norm(h))`."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.self_attn = nn.RMSNorm(WIDTH), Attention()
        self.post_attention_layernorm, self.mlp = nn.RMSNorm(WIDTH), Mlp()

    def forward(self, h: Float[Tensor, "batch token d_model"]) -> Float[Tensor, "batch token d_model"]:
        """Both halves."""
        h = h + self.self_attn(self.input_layernorm(h))
        return h + self.mlp(self.post_attention_layernorm(h))


class Attention(nn.Module):
    """One head."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.v_proj, self.o_proj = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Float[Tensor, "batch token d_model"]) -> Float[Tensor, "batch token d_model"]:
        """Causal."""
        mixed = nn.functional.scaled_dot_product_attention(
            self.q_proj(x), self.k_proj(x), self.v_proj(x), is_causal=True
        )
        return self.o_proj(mixed)


class Mlp(nn.Module):
    """Gated."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(WIDTH, 2 * WIDTH, bias=False), nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.down_proj = nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Float[Tensor, "batch token d_model"]) -> Float[Tensor, "batch token d_model"]:
        """`W_down (silu(W_gate x) * W_up x)`."""
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))
