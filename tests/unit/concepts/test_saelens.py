"""Banks from real SAELens dictionaries, one of every architecture."""

import pytest
import sae_lens
import torch
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
from sae_lens.saes.sae import SAEMetadata
from transformer_lens.supported_models import MODEL_ALIASES

from interptrain.concepts import ConceptBank, from_saelens, load_sae_readout
from interptrain.sites import find_sites
from tests.helpers.models import llama

WIDTH, LATENTS, HOOK = 16, 40, "blocks.1.hook_resid_post"
OPTIONS = {
    "topk": {"k": 4},
    "abstopk": {"k": 4},
    "batchtopk": {"k": 4},
    "matryoshka_batchtopk": {"k": 4, "matryoshka_widths": [20, 40]},
    "temporal": {"n_heads": 2, "bottleneck_factor": 4},
    "matching_pursuit": {"max_iterations": 5},
}


def dictionary(architecture, registry=SAE_CLASS_REGISTRY, *, hook=HOOK, **options):
    """An SAE with random weights whose decoder rows have all sorts of lengths."""
    sae_class, config_class = registry[architecture]
    torch.manual_seed(1)
    out = {"hook_name_out": hook} if hook and "transcoder" in architecture else {}
    metadata = SAEMetadata(model_name="tiny", **({"hook_name": hook} if hook else {}), **out)
    shape = {"d_in": WIDTH, "d_sae": LATENTS, "metadata": metadata, **OPTIONS.get(architecture, {}), **options}
    if "transcoder" in architecture:
        shape = {"d_out": WIDTH, "apply_b_dec_to_input": False, **shape}
    sae = sae_class(config_class(**shape)).eval()
    with torch.no_grad():
        sae.W_dec.mul_(torch.linspace(0.2, 9.0, LATENTS)[:, None])
    return sae


def unit(rows):
    return rows / rows.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("architecture", sorted(SAE_CLASS_REGISTRY))
def test_every_architecture_gives_unit_decoder_rows_and_a_readout_that_encodes_alike(architecture):
    sae = dictionary(architecture)
    bank = from_saelens(sae, {"pirate": [3, 17], "sums": [20]})
    assert bank.concepts == ("pirate", "pirate", "sums")
    torch.testing.assert_close(bank.directions, unit(sae.W_dec.detach()[[3, 17, 20]]))
    assert bank.hooks == (HOOK,) * 3
    assert bank.model == "tiny"
    assert bank.sources[1] == {"kind": "sae", "architecture": architecture, "latent": 17}
    x = torch.randn(2, 6, WIDTH)
    with torch.no_grad():
        torch.testing.assert_close(load_sae_readout(bank.readouts[HOOK]).encode(x), sae.encode(x))


@pytest.mark.parametrize("architecture", sorted(SAE_TRAINING_CLASS_REGISTRY))
def test_an_sae_in_training_is_kept_as_sae_lens_itself_would_save_it(architecture, tmp_path):
    sae = dictionary(architecture, SAE_TRAINING_CLASS_REGISTRY)
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    bank = from_saelens(sae, {"pirate": [3]})
    assert all(torch.equal(tensor, before[name]) for name, tensor in sae.state_dict().items())
    sae.save_inference_model(tmp_path)
    saved = sae_lens.SAE.load_from_disk(tmp_path).eval()
    x = 3 * torch.randn(7, WIDTH)
    with torch.no_grad():
        torch.testing.assert_close(load_sae_readout(bank.readouts[HOOK]).encode(x), saved.encode(x))


def test_the_readout_survives_a_bank_on_disk(tmp_path):
    sae = dictionary("topk")
    bank = ConceptBank.load(from_saelens(sae, {"pirate": [3]}).save(tmp_path / "bank"))
    x = torch.randn(5, WIDTH)
    assert torch.equal(load_sae_readout(bank.readouts[HOOK]).encode(x), sae.encode(x))


def test_a_transcoder_s_directions_lie_where_it_writes():
    sae = dictionary("transcoder", hook="blocks.1.ln2.hook_normalized", d_out=24)
    sae.cfg.metadata.hook_name_out = "blocks.1.hook_mlp_out"
    bank = from_saelens(sae, {"pirate": [3]})
    assert bank.hooks == ("blocks.1.hook_mlp_out",)
    assert bank.d_model == 24


def test_the_hugging_face_hook_name_serves_where_the_other_is_no_place_in_the_stream():
    sae = dictionary("standard", hook="custom")
    sae.cfg.metadata.hf_hook_name = "model.layers.1"
    assert from_saelens(sae, {"pirate": [3]}).hooks == ("model.layers.1",)


def test_alive_latents_are_kept_for_the_null():
    alive = torch.arange(LATENTS) % 2 == 0
    assert torch.equal(from_saelens(dictionary("standard"), {"a": [0]}, alive=alive).readouts[HOOK].alive, alive)


@pytest.mark.parametrize(
    ("concepts", "said"),
    [
        ({"pirate": [3, 40]}, "concept 'pirate' asks for latent 40 but the SAE has 40, numbered 0 to 39"),
        ({"pirate": [-1]}, "concept 'pirate' asks for latent -1 but the SAE has 40"),
        ({"pirate": [3, 3]}, "concept 'pirate' names a latent twice"),
        ({"pirate": []}, "concept 'pirate' names no latents"),
        ({}, "a bank needs at least one concept"),
    ],
)
def test_latents_that_do_not_exist_or_repeat_are_an_error_that_names_both_sides(concepts, said):
    with pytest.raises(ValueError, match=said):
        from_saelens(dictionary("standard"), concepts)


def test_a_decoder_row_of_zeros_is_an_error_that_names_the_concept():
    sae = dictionary("standard")
    with torch.no_grad():
        sae.W_dec[3] = 0
    with pytest.raises(ValueError, match="concept 'pirate': row 0 is zero"):
        from_saelens(sae, {"pirate": [3]})


def test_no_hook_or_one_outside_the_stream_is_an_error():
    with pytest.raises(ValueError, match="names no hook point; say where it was trained"):
        from_saelens(dictionary("standard", hook=None), {"a": [0]})
    with pytest.raises(ValueError, match=r"'blocks\.1\.attn\.hook_q' is not a place in the residual stream"):
        from_saelens(dictionary("standard", hook="blocks.1.attn.hook_q"), {"a": [0]})
    with pytest.raises(ValueError, match=r"trained at 'blocks\.1\.attn\.hook_z' on the heads' outputs"):
        from_saelens(dictionary("standard", hook="blocks.1.attn.hook_z", reshape_activations="hook_z"), {"a": [0]})


def test_what_is_no_sae_or_has_no_decoder_matrix_is_an_error():
    with pytest.raises(TypeError, match="needs a SAELens SAE, found Linear"):
        from_saelens(torch.nn.Linear(2, 2), {"a": [0]})
    sae = dictionary("standard")
    del sae.W_dec
    with pytest.raises(ValueError, match=r"must have a W_dec of shape \[latent, d_model\] .* found none"):
        from_saelens(sae, {"a": [0]})


def test_an_alive_mask_of_another_length_is_an_error():
    with pytest.raises(ValueError, match=r"alive has shape \[3\] but the SAE has 40 latents"):
        from_saelens(dictionary("standard"), {"a": [0]}, alive=torch.ones(3, dtype=torch.bool))


def test_an_architecture_that_sae_lens_does_not_know_is_an_error():
    readout = from_saelens(dictionary("standard"), {"a": [0]}).readouts[HOOK]
    stranger = type(readout)({**readout.config, "architecture": "origami"}, readout.weights, readout.alive)
    with pytest.raises(ValueError, match="has architecture 'origami', the installed SAELens knows standard"):
        load_sae_readout(stranger)


def test_a_model_that_a_release_calls_by_its_short_name_is_the_one_on_the_hub():
    on_the_hub = {short: name for name, all_short in MODEL_ALIASES.items() for short in all_short}
    released = {release.model for release in get_pretrained_saes_directory().values()}
    assert {"gpt2-small", "mistral-7b", "gemma-2-2b"} <= released & on_the_hub.keys()
    model = llama()
    for short in released & on_the_hub.keys():
        model.config.name_or_path = on_the_hub[short]
        direction = {"pirate": torch.eye(32)[0]}
        assert len(find_sites(model, ConceptBank.from_directions(direction, hook=HOOK, model=short)))
