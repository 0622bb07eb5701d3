"""Concept activations: by an SAE's own encoder, or along the mean direction."""

import sys

import pytest
import torch
from sae_lens import TopKSAE, TopKSAEConfig
from sae_lens.registry import SAE_CLASS_REGISTRY

from interptrain import ConceptBank
from interptrain.concepts import from_saelens
from interptrain.concepts.activation import concept_activation, measured_by_latents
from tests.unit.concepts.test_saelens import HOOK, WIDTH, dictionary

SECOND = "blocks.2.hook_resid_post"
WHOLE = sorted(name for name in SAE_CLASS_REGISTRY if "transcoder" not in name and name != "temporal")


@pytest.mark.parametrize("architecture", WHOLE)
def test_a_group_of_latents_is_as_active_as_what_the_sae_writes_for_it(architecture):
    sae = dictionary(architecture)
    bank = from_saelens(sae, {"pirate": [3, 17], "sums": [20]})
    x = 3 * torch.randn(2, 5, WIDTH)
    with torch.no_grad():
        norms = sae.W_dec.norm(dim=-1)
        acts = sae.encode(x)
    found = concept_activation(bank, HOOK)(x)
    assert found.shape == (2, 5, 2)
    assert found.abs().sum() > 0
    torch.testing.assert_close(found[..., 0], acts[..., 3] * norms[3] + acts[..., 17] * norms[17])
    torch.testing.assert_close(found[..., 1], acts[..., 20] * norms[20])


def test_decoder_norms_count_once_where_the_encoder_brings_them_already():
    torch.manual_seed(1)
    sae = TopKSAE(TopKSAEConfig(d_in=WIDTH, d_sae=40, k=8, rescale_acts_by_decoder_norm=True)).eval()
    with torch.no_grad():
        sae.W_dec.mul_(torch.linspace(0.2, 9.0, 40)[:, None])
    bank = from_saelens(sae, {"all": range(40)}, hook=HOOK)
    x = torch.randn(6, WIDTH)
    with torch.no_grad():
        acts = sae.encode(x)
        written = torch.stack([sae.decode(one) - sae.b_dec for one in torch.diag_embed(acts)])
    torch.testing.assert_close(concept_activation(bank, HOOK)(x)[:, 0], written.norm(dim=-1).sum(-1))


def test_many_tokens_are_encoded_in_parts_and_none_is_lost():
    bank = from_saelens(dictionary("topk"), {"pirate": [3, 17]})
    x = torch.randn(2500, WIDTH)
    whole = concept_activation(bank, HOOK)(x)
    torch.testing.assert_close(whole[2300:], concept_activation(bank, HOOK)(x[2300:]))


def test_without_a_read_out_it_is_the_projection_on_the_unit_mean():
    rows = torch.randn(3, WIDTH)
    bank = ConceptBank.from_directions({"pirate": rows, "sums": torch.ones(WIDTH)}, hook=HOOK)
    mean = (rows / rows.norm(dim=-1, keepdim=True)).sum(0)
    x = torch.randn(4, WIDTH)
    torch.testing.assert_close(concept_activation(bank, HOOK)(x)[:, 0], x @ mean / mean.norm())


def test_directions_beside_a_read_out_are_projected_on_and_latents_encoded():
    bank = from_saelens(dictionary("topk"), {"pirate": [3, 17]})
    both = bank.merge(ConceptBank.from_directions({"random": torch.ones(WIDTH)}, hook=HOOK))
    assert measured_by_latents(both, "pirate", HOOK)
    assert not measured_by_latents(both, "random", HOOK)
    x = torch.randn(4, WIDTH)
    found = concept_activation(both, HOOK)(x)
    torch.testing.assert_close(found[:, 0], concept_activation(bank, HOOK)(x)[:, 0])
    torch.testing.assert_close(found[:, 1], x.sum(-1) / WIDTH**0.5)


def test_a_concept_without_rows_at_a_hook_is_zero_there():
    bank = from_saelens(dictionary("topk"), {"pirate": [3, 17]})
    both = bank.merge(ConceptBank.from_directions({"sums": torch.ones(WIDTH)}, hook=SECOND))
    x = torch.randn(4, WIDTH)
    assert concept_activation(both, HOOK)(x)[:, 1].eq(0).all()
    assert concept_activation(both, SECOND)(x)[:, 0].eq(0).all()
    assert concept_activation(both, SECOND)(x)[:, 1].ne(0).all()


def test_a_hook_that_the_bank_has_not_is_an_error():
    bank = ConceptBank.from_directions({"sums": torch.ones(WIDTH)}, hook=HOOK)
    with pytest.raises(ValueError, match=f"no directions at '{SECOND}'; it has some at {HOOK}"):
        concept_activation(bank, SECOND)


def test_without_sae_lens_the_error_names_the_extra(monkeypatch):
    bank = from_saelens(dictionary("topk"), {"pirate": [3]})
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'interptrain\[sae\]'"):
        concept_activation(bank, HOOK)
