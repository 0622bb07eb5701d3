"""Sets of texts as activations, drawn to be told apart or not."""

import torch

from interptrain.concepts.contrast import TextActivations


def texts(count, *, width=6, apart=0.0, seed=0, lengths=(1, 9), dtype=torch.float32):
    """Texts of random length whose tokens lie `apart` along the first axis."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(*lengths, (count,), generator=generator)
    values = torch.randn(int(sizes.sum()), width, generator=generator, dtype=dtype)
    values[:, 0] += apart
    return TextActivations(values, torch.arange(count).repeat_interleave(sizes))


def two_sets(count=20, *, apart=1.0, seed=0, **more):
    """Texts that show something, and texts that do not."""
    return texts(count, apart=apart, seed=seed, **more), texts(count, seed=seed + 1, **more)


def permuted(given, seed=0):
    """The same tokens in another order, texts mingled."""
    order = torch.randperm(len(given.text), generator=torch.Generator().manual_seed(seed))
    return TextActivations(given.values[order], given.text[order])


def twice(given):
    """Every text two times."""
    count = int(given.text.max()) + 1
    return TextActivations(torch.cat([given.values] * 2), torch.cat([given.text, given.text + count]))
