"""One weight that is embedding and head: a step of it changes what is written and what is read."""

import pytest
import torch
from torch.nn.functional import normalize
from transformers import LlamaConfig, LlamaForCausalLM

from interptrain import ConceptBank, find_sites
from interptrain.callbacks.torch import attach
from tests.helpers.models import WIDTH, WORDS
from tests.unit.sites.families import model_of
from tests.unit.sites.models import SMALL, bank, gpt2

HOOK = "blocks.0.hook_resid_post"


def tied_llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL | {"tie_word_embeddings": True}))


MODELS = {
    "gpt2": lambda: gpt2(tied=True), "llama": tied_llama, "gemma3": lambda: model_of("gemma3", tied=True),
    "opt": lambda: model_of("opt", tied=True), "neox": lambda: model_of("neox", tied=True),
}  # fmt: skip


def tied_site(model, **options):
    found = [site for site in find_sites(model, bank(**options)) if site.role == "tied"]
    assert len(found) == 1
    return found[0]


def uneven(model):
    """The model with the final norm's gain away from where it begins."""
    site = tied_site(model)
    with torch.no_grad():
        site.norm.weight.add_(torch.randn(WIDTH, generator=torch.Generator().manual_seed(3)), alpha=0.5)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_a_tied_weight_is_one_site_with_the_directions_of_writer_and_reader(name):
    model = uneven(MODELS[name]())
    site, rows = tied_site(model), bank().directions
    centred = rows - rows.mean(-1, keepdim=True) if site.norm.centred else rows
    read = normalize((site.norm.weight.detach() + site.norm.offset) * centred, dim=-1)
    torch.testing.assert_close(site.directions(rows), torch.cat([rows, read]))
    assert site.axis == 1
    assert site.rows(bank()) == (0, 1)
    assert "1 tied" in repr(find_sites(model, bank()))


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("even", [False, True], ids=["gains drawn", "gains one"])
@pytest.mark.parametrize("gain", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_both_uses_get_the_gain_and_the_rest_of_the_step_is_left(name, gain, even):
    """With gains of 1 a Llama's reader reads along the very direction that its writer writes along."""
    model = MODELS[name]() if even else uneven(MODELS[name]())
    site, rows = tied_site(model), bank().directions
    weight = site.parameter.grad = torch.randn(WORDS, WIDTH, generator=torch.Generator().manual_seed(4))
    before = weight.double().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with attach(model, optimizer, bank(), lambda coefficients, step: {"pirate": gain}, sites=[site], summary=False):
        optimizer.step()
    after, directions = site.parameter.grad.double(), site.directions(rows).double()
    torch.testing.assert_close(after @ directions.T, gain * before @ directions.T, atol=2e-5, rtol=0)
    span = torch.linalg.svd(directions)[2][torch.linalg.matrix_rank(directions, rtol=1e-4) :]
    torch.testing.assert_close((after - before) @ span.T, torch.zeros(WORDS, len(span)).double(), atol=2e-5, rtol=0)


@pytest.mark.usefixtures("unchecked_shapes")
def test_its_share_is_the_mean_of_what_is_written_and_what_is_read():
    model = uneven(MODELS["llama"]())
    one = ConceptBank.from_directions({"pirate": torch.ones(WIDTH)}, hook=HOOK)
    site = tied_site(model)
    gradient = site.parameter.grad = torch.randn(WORDS, WIDTH, generator=torch.Generator().manual_seed(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with attach(model, optimizer, one, sites=[site], meters=["gradient"], summary=False) as steering:
        optimizer.step()
        found = steering.metrics()["concept/pirate/gradient"]
    energies = (gradient @ site.directions(one.directions).T).square().sum(0) / gradient.square().sum()
    assert energies[0] != pytest.approx(float(energies[1]), rel=1e-3)
    assert found == pytest.approx(float(energies.mean()), rel=1e-5)


def test_a_weight_that_a_third_module_shares_is_refused_with_all_three():
    model = tied_llama()
    model.model.layers[0].mlp.down_proj.weight = torch.nn.Parameter(torch.randn(WIDTH, 48))
    model.score = torch.nn.Linear(WIDTH, WORDS, bias=False)
    model.score.weight = model.lm_head.weight
    with pytest.raises(ValueError, match=r"shared by 'model.embed_tokens' and 'lm_head' and 'score'.*untie"):
        find_sites(model, bank())


def test_readers_of_two_layers_that_share_a_weight_are_refused():
    model = gpt2()
    model.transformer.h[1].mlp.c_fc.weight = model.transformer.h[0].mlp.c_fc.weight
    with pytest.raises(ValueError, match=r"shared by 'transformer.h.0.mlp.c_fc' and 'transformer.h.1.mlp.c_fc'"):
        find_sites(model, bank())
