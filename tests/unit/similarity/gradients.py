"""Per-example gradients the slow way: one example at a time, by autograd, in full."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from interptrain.similarity import linear_layers


def batch_of(count=5, length=9, seed=0, words=24, start=1, padded=True):
    """Random texts whose first tokens are a prompt, some padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(start, words, (count, length), generator=generator)
    mask, labels = torch.ones_like(ids), ids.clone()
    labels[:, :3] = -100
    for row in range(0, count if padded else 0, 2):
        ids[row, -2:], mask[row, -2:], labels[row, -2:] = 0, 0, -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def loss_of(model, row):
    """`-sum_t log p(label_t)`."""
    logits = model(input_ids=row["input_ids"], attention_mask=row["attention_mask"]).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1), row["labels"][:, 1:].flatten(), reduction="sum")


def one_by_one(model, batch, layers=None):
    """`[example][layer] -> gradient [out, in]` of each example by itself."""
    layers = linear_layers(model) if layers is None else layers
    weights = {name: module.get_parameter("weight") for name, module in layers.items()}
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    found = []
    for weight in weights.values():
        weight.requires_grad_(True)
    for number in range(len(batch["labels"])):
        row = {key: value[number : number + 1] for key, value in batch.items()}
        gradients = torch.autograd.grad(loss_of(model, row), list(weights.values()))
        found.append({
            name: gradient if isinstance(layers[name], nn.Linear) else gradient.T
            for name, gradient in zip(weights, gradients, strict=True)
        })  # fmt: skip
    for parameter, flag in flags:
        parameter.requires_grad_(flag)
    return found
