"""Which token positions count: those whose next label is in the loss."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

IGNORED_LABEL = -100
OUTLIER_NORM = 10.0  # times the median norm: attention sinks such as BOS


def loss_positions(labels: Int[Tensor, "batch token"]) -> Bool[Tensor, "batch token"]:
    """Positions `t` that predict a label in the loss: `labels[t + 1] != -100`.

    Example:
        >>> import torch
        >>> loss_positions(torch.tensor([[-100, -100, 7, 8]]))
        tensor([[False,  True,  True, False]])
    """
    counted = torch.zeros_like(labels, dtype=torch.bool)
    counted[:, :-1] = labels[:, 1:] != IGNORED_LABEL
    return counted


def first_labels(labels: Int[Tensor, "batch token"]) -> Int[Tensor, "batch token"]:
    """The labels with the first one in the loss alone: where an answer begins, and what it will be is chosen.

    Example:
        >>> first_labels(torch.tensor([[-100, -100, 7, 8]]))
        tensor([[-100, -100,    7, -100]])
    """
    counted = labels != IGNORED_LABEL
    return labels.masked_fill(~(counted & (counted.cumsum(-1) == 1)), IGNORED_LABEL)


def ordinary_tokens(activations: Float[Tensor, "batch token d_model"]) -> Bool[Tensor, "batch token"]:
    """Tokens whose activation norm is within ten times the median; the others are attention sinks."""
    norms = activations.detach().float().norm(dim=-1)
    return norms <= OUTLIER_NORM * norms.median()


def bos_token(model: nn.Module) -> int | None:
    """The token that begins texts, by the model's configuration; None where it has none.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> bos_token(LlamaForCausalLM(LlamaConfig(vocab_size=8, bos_token_id=3, **sizes)))
        3
    """
    for module in model.modules():
        config = vars(module).get("config")
        if config is not None:
            text = vars(config).get("text_config") or config
            found = vars(text).get("bos_token_id")
            return found if isinstance(found, int) else None
    return None


def leading_bos(
    input_ids: Int[Tensor, "batch token"],
    attention_mask: Int[Tensor, "batch token"] | Bool[Tensor, "batch token"],
    bos: int | None,
) -> Bool[Tensor, "batch token"]:
    """The first attended token of each text, where that is the BOS token: an attention sink that says nothing.

    Example:
        >>> ids, mask = torch.tensor([[0, 1, 5, 1], [1, 6, 7, 8]]), torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
        >>> leading_bos(ids, mask, 1).int()
        tensor([[0, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.int32)
    """
    attended = attention_mask != 0
    first = attended & (attended.cumsum(-1) == 1)
    return first & (input_ids == bos) if bos is not None else torch.zeros_like(first)


class Positions:
    """The loss positions of the batch in hand, as the training loop last told them; None counts every token.

    While `asking`, a backward pass only asks for gradients and trains on none: the meters let it go by.
    """

    def __init__(self) -> None:
        self.current: Tensor | None = None
        self.asking = False

    def of(self, activations: Float[Tensor, "*token width"]) -> Bool[Tensor, "*token"]:
        """The mask for these activations, `[batch, token, width]` or one text after another, `[batch * token, width]`.

        Raises:
            ValueError: the labels have another shape than the tokens the model saw.
        """
        if self.current is None:
            return torch.ones(activations.shape[:-1], dtype=torch.bool, device=activations.device)
        current = self.current if activations.ndim == 3 else self.current.flatten()
        if current.shape != activations.shape[:-1]:
            raise ValueError(
                f"labels have shape {list(current.shape)} but the model saw tokens {list(activations.shape[:-1])}; "
                "pass labels=... a function from your batch to the labels [batch, token] of that forward pass"
            )
        return current.to(activations.device)

    def ordinary(self, activations: Float[Tensor, "batch token width"]) -> Bool[Tensor, "batch token"]:
        """The mask without the tokens of outlying norm; see `ordinary_tokens`.

        Raises:
            ValueError: as `of` does.
        """
        return self.of(activations) & ordinary_tokens(activations)
