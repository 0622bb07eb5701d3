"""Which tokens a direction makes more and less likely, read through the unembedding."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interptrain.sites.layer import bare
from interptrain.sites.norm import Norm
from interptrain.sites.parts import HEAD, parts
from interptrain.sites.stack import find_stack


@torch.no_grad()
def logit_lens(model: nn.Module, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocabulary"]:
    r"""What directions add to each token's logit, to first order and past all layers between.

        l = W_U (gain * (d - mean(d)))        less its mean over the vocabulary

    `gain` is the final norm's (`1 + weight` in Gemma); the mean of `d` is taken out where that norm is a LayerNorm.
    The norm's division by `spread(h)` scales all tokens alike and is left out, so that the order of tokens means
    something and the size of a logit does not. The layers between the hook and the end are passed over: of an early
    hook, read it as a hint.

    Source: nostalgebraist, *interpreting GPT: the logit lens* (2020); the gain as in `Norm.in_front`.

    Args:
        model: holds a causal language model of a known family.
        rows: directions in the residual stream.

    Raises:
        ValueError: the model is of no known family, its final norm is not understood, or it has no head.

    Example:
        >>> from interptrain import tiny_world
        >>> model, bank = tiny_world.load_base(), tiny_world.concept_bank(hook=tiny_world.OUTPUT_HOOK)
        >>> logits = logit_lens(model, bank.select("arithmetic").directions.sum(0, keepdim=True))
        >>> tiny_world.load_tokenizer().decode(logits[0].argmax()).isdecimal()
        True
    """
    stack = find_stack(model)
    heads = [part for part in parts(stack) if part.position == HEAD and part.kind == "reader"]
    if not heads or heads[0].norm is None:
        raise ValueError(
            f"found no head behind a final norm around '{stack.name}' ({stack.family.title}), which tokens are read "
            "through; give the whole causal language model"
        )
    norm = Norm.of(heads[0].norm.name, heads[0].norm.module, width=rows.shape[1])
    unembedding = bare(heads[0].module).get_parameter("weight")
    logits = norm.in_front(rows.to(unembedding.device).float()).to(unembedding) @ unembedding.T
    return (logits.float() - logits.float().mean(-1, keepdim=True)).cpu()
