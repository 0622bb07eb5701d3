"""What an SAE does to its input before it encodes is done wherever it encodes; a BOS token is encoded nowhere."""

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.registry import SAE_CLASS_REGISTRY
from sae_lens.saes.sae import SAEMetadata

from interptrain.concepts import collect, from_saelens, load_sae_readout
from interptrain.concepts.activation import concept_activation
from interptrain.meters.explained import ExplainedVariance, add_reconstruction
from interptrain.meters.probes import ProbeSets
from tests.helpers.models import HOOK, WIDTH, gpt2, llama
from tests.unit.concepts.test_places import seen, texts

SCALE = 0.37


def sae_with(scaling, *, bias=0.5):
    torch.manual_seed(2)
    metadata = SAEMetadata(hook_name=HOOK)
    sae = StandardSAE(StandardSAEConfig(d_in=WIDTH, d_sae=48, normalize_activations=scaling, metadata=metadata))
    sae.b_dec.data = bias * torch.randn(WIDTH)
    sae.b_enc.data = 0.1 * torch.randn(48)
    return sae.eval().requires_grad_(False)


@pytest.mark.parametrize("scaling", ["none", "layer_norm", "constant_norm_rescale"])
def test_an_sae_that_scales_its_input_is_read_as_it_reconstructs(scaling):
    sae = sae_with(scaling)
    bank = from_saelens(sae, {f"{latent}": [latent] for latent in range(48)})
    x = 3 * torch.randn(7, WIDTH) + 1
    found = concept_activation(bank, HOOK)(x)
    written = found @ bank.directions + sae.b_dec  # what the latents write, in the units of the scaled input
    mean = x.mean(-1, keepdim=True) * (scaling == "layer_norm")
    spread = {
        "none": torch.ones(7, 1),
        "layer_norm": x.std(-1, keepdim=True) + 1e-5,
        "constant_norm_rescale": x.norm(dim=-1, keepdim=True) / WIDTH**0.5,
    }[scaling]
    torch.testing.assert_close(written * spread + mean, sae(x), rtol=1e-4, atol=1e-4)
    rebuilt = load_sae_readout(bank.readouts[HOOK])
    assert torch.equal(rebuilt(x), sae(x))
    explained = ExplainedVariance()
    add_reconstruction(explained, rebuilt, x, x)
    lost = (x - sae(x)).double().square().sum() / (x - x.mean(0)).double().square().sum()
    torch.testing.assert_close(explained.value().double(), 1 - lost, rtol=1e-4, atol=1e-5)


def test_an_average_scaling_that_is_folded_in_is_read_and_one_that_is_not_is_refused():
    scaled, x = sae_with("expected_average_only_in"), torch.randn(7, WIDTH)
    with pytest.raises(ValueError, match=r"'expected_average_only_in'.*fold_activation_norm_scaling_factor"):
        from_saelens(scaled, {"pirate": [3]})
    expected = scaled(SCALE * x) / SCALE  # its weights are for inputs that were scaled
    assert not torch.allclose(scaled(x), expected, rtol=1e-2)
    scaled.fold_activation_norm_scaling_factor(SCALE)
    bank = from_saelens(scaled, {f"{latent}": [latent] for latent in range(48)})
    written = concept_activation(bank, HOOK)(x) @ bank.directions + scaled.b_dec
    torch.testing.assert_close(written, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [llama, gpt2])
def test_a_bos_token_in_front_of_a_text_is_collected_nowhere(build):
    model = build()
    model.config.bos_token_id = 1
    given = texts(rows=3, length=6, bos=True)
    given["input_ids"][1, 3] = 1  # one within a text is a token like others
    given["attention_mask"][2, :2] = 0  # padded on the left: no BOS there, since the text begins with another token
    (stream,) = seen(model.eval(), given, HOOK)
    expected = torch.cat([stream[0, 1:], stream[1, 1:], stream[2, 2:]])
    found = collect(model, HOOK, [given])
    torch.testing.assert_close(found.values, expected)
    assert found.text.tolist() == [0] * 5 + [1] * 5 + [2] * 4
    bank = from_saelens(sae_with("none"), {"pirate": [3]})
    means = ProbeSets.of({"a": [given]}).means(model, {HOOK: concept_activation(bank, HOOK)})
    torch.testing.assert_close(means.residual[0, 0], expected.mean(0), rtol=1e-4, atol=1e-6)


def test_a_model_without_a_bos_token_counts_every_token():
    model = llama()
    model.config.bos_token_id = None
    assert len(collect(model, HOOK, [texts(rows=2, length=6, bos=True)]).values) == 12


def test_a_probe_set_of_nothing_but_bos_tokens_is_an_error():
    model, given = llama(), texts(rows=2, length=1, bos=True)
    with pytest.raises(ValueError, match="'a' has no counted tokens but the BOS token in front of its texts"):
        ProbeSets.of({"a": [given]}).means(model, {HOOK: lambda h: h[..., :1]})


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu"])
@pytest.mark.parametrize("subtracts", [True, False])
def test_an_sae_of_a_centred_stream_reads_the_stream_without_its_mean(architecture, subtracts):
    sae_class, config_class = SAE_CLASS_REGISTRY[architecture]
    metadata = SAEMetadata(hook_name=HOOK, model_from_pretrained_kwargs={"center_writing_weights": True})
    more = {"k": 4} if architecture == "topk" else {}
    sae = sae_class(config_class(d_in=16, d_sae=40, metadata=metadata, apply_b_dec_to_input=subtracts, **more)).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    x = torch.randn(7, 16, generator=generator) + 3.0
    rebuilt = load_sae_readout(from_saelens(sae, {"pirate": [3]}).readouts[HOOK])
    expected = sae.encode(x - x.mean(-1, keepdim=True)).detach()
    torch.testing.assert_close(rebuilt.encode(x), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, sae.encode(x), atol=0.1)


def test_a_centred_sae_with_more_than_one_encoder_is_refused():
    sae_class, config_class = SAE_CLASS_REGISTRY["gated"]
    metadata = SAEMetadata(hook_name=HOOK, model_from_pretrained_kwargs={"center_writing_weights": True})
    with pytest.raises(ValueError, match=r"centred stream \(center_writing_weights\) and has b_gate, b_mag, r_mag"):
        from_saelens(sae_class(config_class(d_in=16, d_sae=40, metadata=metadata)), {"pirate": [3]})
