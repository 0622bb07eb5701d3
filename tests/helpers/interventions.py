"""What the tests of the interventions share: models, banks, a steerer that is attached, and what it leaves behind."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from interptrain import ConceptBank, Steerer, find_sites
from interptrain.sites import HookPoint
from tests.helpers.models import HOOK, WIDTH, WORDS, gpt2, llama, lora, weights

FIRST, LATER = "blocks.0.hook_resid_post", "blocks.2.hook_resid_post"
LAYERS = {FIRST: 1, HOOK: 2}  # where `hidden_states` has them
MODELS = {"llama": llama, "gpt2": gpt2, "lora": lambda: lora(llama())}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


class Bare(nn.Module):
    """A Llama that returns its logits alone: an output without a name for them."""

    def __init__(self):
        super().__init__()
        self.inner = llama()

    def forward(self, input_ids, attention_mask=None):
        return self.inner(input_ids=input_ids, attention_mask=attention_mask).logits


def make_bank(hook=HOOK, *, rank=3, seed=3):
    """Some directions of one concept, "pirate", and a single one of another, "sums"."""
    rows = torch.randn(rank + 1, WIDTH, generator=torch.Generator().manual_seed(seed))
    return ConceptBank.from_directions({"pirate": rows[:rank], "sums": rows[rank]}, hook=hook)


def make_bank_at_two_hooks():
    """The same bank, with two directions of "pirate" at the first block as well."""
    bank = make_bank()
    return bank.merge(ConceptBank.from_directions({"pirate": bank.directions[2:]}, hook=FIRST))


def directions_of(bank, concept="pirate", hook=HOOK):
    """A concept's directions at one hook point."""
    return bank.directions[list(bank.rows(concept, hook))]


def unit_mean(bank, concept="pirate", hook=HOOK):
    """The mean of a concept's directions at one hook point, of length 1."""
    summed = directions_of(bank, concept, hook).sum(0)
    return summed / summed.norm()


def tokens(*, rows=4, length=9, seed=0):
    """Random ids, `[rows, length]`."""
    return torch.randint(1, WORDS, (rows, length), generator=torch.Generator().manual_seed(seed))


def trainable(model):
    """The parameters that are trained, in order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def sgd(model, lr=0.05):
    """Plain gradient descent on all that is trained."""
    return torch.optim.SGD(trainable(model), lr=lr)


def make_steerer(model, bank, *acts, where="update", **options):
    """A steerer of all of a model's sites that is not attached yet."""
    return Steerer(bank, find_sites(model, bank, where=where), acts, where=where, **options)


def attached(model, bank, *acts, optimizer=None, **options):
    """The same, attached to the model and to an optimizer: to one of its own where the test takes no step."""
    return make_steerer(model, bank, *acts, **options).attach(model, sgd(model) if optimizer is None else optimizer)


unmetered = partial(attached, meters=())  # where there is no gradient to read, or nothing but what is added counts


def hooks_of(model):
    """How many forward hooks a model has, in all of its modules."""
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules())


def caught(model, hook=HOOK):
    """Activations at a hook point, as they are once the hooks so far have acted, with their gradients."""
    seen = []

    def keep(activation):
        if activation.requires_grad:
            activation.retain_grad()
        seen.append(activation)

    HookPoint.parse(hook).listen(model, keep)
    return seen


def astray(model):
    """The model moved away from its start, which is returned."""
    start, generator = copy.deepcopy(model), torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in trainable(model):
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return start


def gradients(model):
    """Copies of the gradients of all that is trained, 0 where there is none."""
    return [torch.zeros_like(each) if each.grad is None else each.grad.clone() for each in trainable(model)]


def assert_alike(found, wanted, *, tolerance=1e-4):
    """Tensors are the same, to a share of the largest number in any of them."""
    largest = max(float(each.abs().max()) for each in wanted)
    assert largest > 0
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() <= tolerance * largest


def assert_identical(one, other):
    """Two models have the same weights to the last bit."""
    other = weights(other)
    for name, value in weights(one).items():
        assert torch.equal(value, other[name]), name


def two_processes(monkeypatch, all_reduce):
    """From now on there seem to be two processes, and what one asks to sum is given to a function."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
