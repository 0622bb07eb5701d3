"""Directions in place of a word of a prompt: what a model then says, and how likely it finds what was said."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from interptrain.meters.probes import evaluating
from interptrain.sites.hooks import HookPoint


@dataclass(frozen=True, eq=False)
class Asked:
    """A prompt, some places of which are filled by a vector in the residual stream.

        h'_x = v   (or, `added`,  h'_x = h_x + v)      at the places x;      h'_t = h_t elsewhere

    What stands behind a place sees it by attention alone, what stands in front of it not at all.

    Args:
        ids: the prompt's tokens.
        places: positions of the placeholder among them.
        hook: where in the stream.
        added: add to what is there, rather than replace it.

    Raises:
        ValueError: there is no place, or one outside of the prompt.
    """

    ids: Int[Tensor, "token"]
    places: tuple[int, ...]
    hook: str
    added: bool = False

    def __post_init__(self) -> None:
        if not self.places or not all(0 <= place < len(self.ids) for place in self.places):
            raise ValueError(f"expected places among {len(self.ids)} tokens, found {list(self.places)}")

    @contextmanager
    def filled(self, model: nn.Module, vectors: Float[Tensor, "row d_model"] | None) -> Iterator[None]:
        """Fill the places in every forward pass of whole texts that begin with the prompt; None fills nothing.

        Raises:
            ValueError: the hook point is not in the model.
        """
        if vectors is None:
            yield
            return

        def fill(stream: Float[Tensor, "row token d_model"]) -> Float[Tensor, "row token d_model"]:
            given, changed = vectors.to(stream)[:, None], stream.clone()
            at = torch.tensor(self.places, device=stream.device)
            changed[:, at] = stream[:, at] + given if self.added else given.expand(-1, len(at), -1)
            return changed

        handle = HookPoint.parse(self.hook).edit(model, fill)
        try:
            yield
        finally:
            handle.remove()


def placeholder(model: nn.Module, asked: Asked) -> Float[Tensor, "place d_model"]:
    """The stream where the prompt is to be filled, before it is."""
    return _last_and_stream(model, asked, None, asked.hook)[1][0, list(asked.places)].float().cpu()


def last_token(
    model: nn.Module, asked: Asked, vectors: Float[Tensor, "row d_model"], reads: str, along: Float[Tensor, "d_model"]
) -> tuple[Float[Tensor, "row"], Float[Tensor, "row"]]:
    """How sure the model is of its first word, and how far what it is about to say lies along a direction.

        entropy    = -sum_w p(w) log p(w)      of the word that comes after the prompt
        similarity = cos(h_last, d)            of the stream at the prompt's last token

    Source: Kharlapenko, neverix, Nanda and Conmy, *Self-explaining SAE features* (2024).

    Args:
        model: a causal language model.
        asked: the prompt.
        vectors: what fills it, one a row.
        reads: the hook point of `h_last`.
        along: `d`.
    """
    logits, stream = _last_and_stream(model, asked, vectors, reads)
    log_p = logits.float().log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return entropy.cpu(), cosine_similarity(stream[:, -1].float(), along.to(stream.device)[None], dim=-1).cpu()


def say(
    model: nn.Module, asked: Asked, vectors: Float[Tensor, "row d_model"] | None, *, tokens: int, end: Collection[int]
) -> tuple[Int[Tensor, "row token"], Bool[Tensor, "row token"]]:
    """What the model says after the prompt, greedily, and which of its tokens come before an end.

    The places are filled in the pass over the prompt alone; later ones see them in its keys and values.

    Args:
        model: a causal language model that keeps keys and values (`past_key_values`).
        asked: the prompt.
        vectors: what fills it, one a row; None fills nothing, and there is one row.
        tokens: at most.
        end: token ids that end a text.

    Raises:
        ValueError: the model keeps no keys and values.
    """
    ends, found = torch.tensor(sorted(end), dtype=torch.long), []
    device = next(model.parameters()).device
    with evaluating(model):
        with asked.filled(model, vectors):
            out = model(input_ids=_rows(asked.ids, vectors).to(device), use_cache=True)
        if getattr(out, "past_key_values", None) is None:
            raise ValueError(
                "the model keeps no keys and values (past_key_values), in which the filled places are seen"
            )
        for _ in range(tokens):
            word = out.logits[:, -1].argmax(-1)
            found.append(word.cpu())
            ended = torch.isin(torch.stack(found, 1), ends).any(-1)
            if len(found) < tokens and not bool(ended.all()):
                out = model(input_ids=word[:, None], past_key_values=out.past_key_values, use_cache=True)
            else:
                break
    said = torch.stack(found, 1)
    return said, torch.isin(said, ends).cumsum(-1) == 0


def likelihood(
    model: nn.Module,
    asked: Asked,
    said: Int[Tensor, "row token"],
    counted: Bool[Tensor, "row token"],
    vectors: Float[Tensor, "row d_model"] | None,
) -> Float[Tensor, "row"]:
    """`mean_t log p(w_t | prompt, w_<t)` of texts behind the filled prompt, over their counted tokens; 0 of none.

    Args:
        model: a causal language model.
        asked: the prompt.
        said: the texts `w`.
        counted: their tokens before an end.
        vectors: what fills the prompt, one a text; None fills nothing.
    """
    device, length = next(model.parameters()).device, len(asked.ids)
    ids = torch.cat([asked.ids.expand(len(said), -1), said], 1).to(device)
    with evaluating(model), asked.filled(model, vectors):
        logits = model(input_ids=ids).logits[:, length - 1 : -1].float()
    log_p = logits.log_softmax(-1).gather(-1, said.to(device)[..., None])[..., 0].cpu()
    return (log_p * counted).sum(-1) / counted.sum(-1).clamp_min(1)


def _last_and_stream(
    model: nn.Module, asked: Asked, vectors: Float[Tensor, "row d_model"] | None, hook: str
) -> tuple[Float[Tensor, "row word"], Float[Tensor, "row token d_model"]]:
    """The logits behind the prompt, and the stream at a hook point."""
    seen: list[Tensor] = []
    with evaluating(model), asked.filled(model, vectors):
        handle = HookPoint.parse(hook).listen(model, lambda stream: seen.append(stream.detach()))
        try:
            logits = model(input_ids=_rows(asked.ids, vectors).to(next(model.parameters()).device)).logits
        finally:
            handle.remove()
    return logits[:, -1], seen[-1]


def _rows(ids: Int[Tensor, "token"], vectors: Float[Tensor, "row d_model"] | None) -> Int[Tensor, "row token"]:
    return ids.expand(1 if vectors is None else len(vectors), -1)
