"""SAEs that were trained on a stream without its mean, as TransformerLens keeps GPT-2's (`center_writing_weights`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

_KNOWN = {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}


def trained_centred(metadata: Mapping[str, Any]) -> bool:
    """Whether an SAE's metadata say that it was trained on a model whose writers are centred.

    Example:
        >>> trained_centred({"model_from_pretrained_kwargs": {"center_writing_weights": True}}), trained_centred({})
        (True, False)
    """
    return bool((metadata.get("model_from_pretrained_kwargs") or {}).get("center_writing_weights"))


def take_out_mean(weights: Mapping[str, Tensor], *, subtracts_bias: bool) -> dict[str, Float[Tensor, "..."]]:
    r"""An encoder that takes the mean out of the stream first, as the training of the SAE did:

        W_enc' = C W_enc,   b_enc' = b_enc - b_dec (I - C) W_enc,   C = I - 1 1^T / d

    so that `h W_enc' + ...` is the SAE's own encoding of `h - mean(h)`, for the model as Hugging Face has it. What it
    reconstructs is `h - mean(h)` too. The second term is there where the SAE subtracts `b_dec` from its input.

    Args:
        weights: of a SAELens SAE with one encoder.
        subtracts_bias: the SAE's `apply_b_dec_to_input`.

    Raises:
        ValueError: the SAE has other weights, of which this is not known.
    """
    if other := sorted(set(weights) - _KNOWN):
        raise ValueError(
            f"the SAE was trained on a centred stream (center_writing_weights) and has {', '.join(other)}; how to "
            "centre what it reads is known of SAEs with one encoder"
        )
    encoder = weights["W_enc"]
    centred = {**weights, "W_enc": encoder - encoder.mean(0)}
    if subtracts_bias:
        centred["b_enc"] = weights["b_enc"] - weights["b_dec"].mean() * encoder.sum(0)
    return centred
