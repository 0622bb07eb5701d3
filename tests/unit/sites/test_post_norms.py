"""Writers behind which a norm stands: their directions are its Jacobian transposed, but for what the data decide."""

import pytest
import torch
from rich.console import Console
from torch.nn.functional import cosine_similarity, normalize

from interptrain import Steerer, observe
from interptrain.callbacks.torch import attach
from interptrain.plan import Plan
from interptrain.recorders import MemoryRecorder
from interptrain.sites import find_sites
from tests.helpers.models import WIDTH, WORDS
from tests.unit.sites.families import APPROXIMATE, adapted, model_of
from tests.unit.sites.models import bank, shaken

TOKENS = torch.randint(1, WORDS, (4, 9), generator=torch.Generator().manual_seed(2))
LAST = "blocks.1.hook_resid_post"


def writers(model):
    return [site for site in find_sites(model, bank(hook=LAST), where="update") if site.approximate]


def loud(model):
    """The model with norms' gains away from 1 and outputs in front of which the norms' epsilon is nothing."""
    for name, parameter in shaken(model).named_parameters():
        if "proj" in name and "lora_A" not in name:
            parameter.data *= 100
    return model


def caught(model, modules):
    """What each module receives, a token a row."""
    found = {}
    handles = [
        module.register_forward_pre_hook(
            lambda m, args: found.__setitem__(m, args[0].detach().reshape(-1, args[0].shape[-1]))
        )
        for module in modules
    ]
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    for handle in handles:
        handle.remove()
    return [found[module] for module in modules]


def exact(norm, y, d):
    """`J^T d` at every token, by autograd."""
    y = y.clone().requires_grad_()
    out = norm.module(y)
    return torch.autograd.grad(out, y, d.expand_as(out))[0]


@pytest.mark.parametrize("with_lora", [False, True])
@pytest.mark.parametrize("family", APPROXIMATE)
def test_a_direction_misses_the_jacobian_by_what_of_the_output_lies_along_it_and_by_no_more(family, with_lora):
    model = loud(adapted(family, model_of(family)) if with_lora else model_of(family))
    d = normalize(torch.randn(WIDTH, generator=torch.Generator().manual_seed(5)).double(), dim=0)
    sites = writers(model)
    assert len(sites) == 4
    for site, y in zip(sites, caught(model, [site.norm.module for site in sites]), strict=True):
        direction = site.directions(d[None])[0]
        cosine = cosine_similarity(exact(site.norm, y, d), direction, dim=-1)
        expected = (1 - cosine_similarity(y, direction, dim=-1).square()).sqrt()
        assert (cosine - expected).abs().max() < 1e-4, site.name
        assert cosine.median() > 0.97, site.name
        assert cosine_similarity(exact(site.norm, y, d), d, dim=-1).median() < 0.97, site.name


@pytest.mark.parametrize("family", APPROXIMATE)
def test_what_is_approximate_is_said_in_the_plan(family):
    model = model_of(family)
    steerer = Steerer(bank(hook=LAST), find_sites(model, bank(hook=LAST)), observe())
    console = Console(record=True, width=160)
    console.print(Plan.of(steerer, model))
    said = console.export_text()
    assert said.count("writer, approximate") == 4
    assert "a norm stands between these writers and the stream" in " ".join(said.split())


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("family", APPROXIMATE)
def test_the_signed_write_is_what_the_stream_gets_behind_the_norm(family):
    model = loud(model_of(family)).float()
    concept = bank(hook=LAST, rows=1)
    for site in writers(model):
        before = site.parameter.detach().clone()
        x, y = (each.view(4, 9, -1)[:, :-1].flatten(0, 1) for each in caught(model, [site.module, site.norm.module]))
        model.zero_grad()
        optimizer, recorder = torch.optim.SGD([site.parameter], lr=10.0), MemoryRecorder()
        with attach(model, optimizer, concept, sites=[site], recorders=[recorder], meters=["write"], summary=False):
            model(input_ids=TOKENS, labels=TOKENS).loss.backward()
            optimizer.step()
        out = (x / y.square().mean(-1, keepdim=True).sqrt()).mean(0) @ (site.parameter.detach() - before).T
        expected = concept.directions[0] @ (out * (site.norm.weight.detach() + site.norm.offset))
        assert recorder.curves()["concept/pirate/write/signed"][0] == pytest.approx(float(expected), rel=1e-3)
        model.zero_grad()
