"""SAEs that read elsewhere than they write: transcoders and SAEs of the heads' outputs; and several SAEs in a bank."""

from functools import partial

import pytest
import torch
from sae_lens.registry import SAE_CLASS_REGISTRY
from sae_lens.saes.sae import SAEMetadata

from interptrain import ConceptBank, find_sites
from interptrain.concepts import from_saelens, from_several_saes
from interptrain.concepts.activation import activation_elsewhere, concept_activations
from interptrain.meters import DemandMeter
from interptrain.meters.probe_meter import ProbeMeter
from interptrain.meters.probes import ProbeSets
from interptrain.sites import HookPoint
from interptrain.sites.reading import reading_point
from tests.helpers.models import WIDTH, WORDS, gpt2, llama
from tests.unit.concepts.test_saelens import LATENTS, OPTIONS

Z, ATTN_OUT = "blocks.1.attn.hook_z", "blocks.1.hook_attn_out"
GIVEN = "blocks.1.hook_mlp_in"
MLP_IN, MLP_OUT, POST = "blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out", "blocks.0.hook_resid_post"


def sae_at(hook, architecture="topk", *, seed=1, out=None, **options):
    """A random SAE of a small model's place whose decoder rows differ in length."""
    sae_class, config_class = SAE_CLASS_REGISTRY[architecture]
    torch.manual_seed(seed)
    metadata = SAEMetadata(hook_name=hook, **({"hook_name_out": out} if out else {}))
    shape = {"d_in": WIDTH, "d_sae": LATENTS, "metadata": metadata, **OPTIONS.get(architecture, {}), **options}
    if "transcoder" in architecture:
        shape = {"d_out": WIDTH, "apply_b_dec_to_input": False, **shape}
    sae = sae_class(config_class(**shape)).eval().requires_grad_(False)
    sae.W_dec.mul_(torch.linspace(0.2, 3.0, LATENTS)[:, None])
    return sae


def texts(*, rows=4, length=9, seed=0, bos=False):
    ids = torch.randint(2, WORDS, (rows, length), generator=torch.Generator().manual_seed(seed))
    if bos:
        ids[:, 0] = 1
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def seen(model, batch, *names):
    found = {}
    handles = [reading_point(n).listen(model, lambda h, n=n: found.__setitem__(n, h.detach())) for n in names]
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    return [found[name] for name in names]


def keep_gradients(model, *hooks):
    """The activations at these hooks in the passes to come, with their gradients."""
    kept = {}

    def keep(hook, activation):
        activation.retain_grad()
        kept[hook] = activation

    for hook in hooks:
        HookPoint.parse(hook).listen(model, partial(keep, hook))
    return kept


def unit(rows):
    return rows / rows.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("build", [llama, gpt2])
def test_a_direction_of_the_heads_outputs_is_what_a_step_along_its_decoder_row_adds_to_the_stream(build):
    model, sae = build().eval(), sae_at(Z)
    bank = from_saelens(sae, {"pirate": [3, 17]}, model=model)
    writer = (model.transformer.h[1].attn.c_proj if build is gpt2 else model.model.layers[1].self_attn.o_proj).double()
    z = torch.randn(WIDTH, dtype=torch.float64)
    with torch.no_grad():
        moved = torch.stack([writer(z + row.double()) - writer(z) for row in sae.W_dec[[3, 17]]])
    torch.testing.assert_close(bank.directions.double(), unit(moved), rtol=1e-4, atol=1e-5)
    assert bank.hooks == (ATTN_OUT,) * 2
    assert bank.readouts[ATTN_OUT].reads == Z
    torch.testing.assert_close(bank.readouts[ATTN_OUT].directions[[3, 17]], bank.directions)
    torch.testing.assert_close(bank.readouts[ATTN_OUT].rows(torch.tensor([3, 17])), bank.directions)


@pytest.mark.parametrize(
    ("sae", "place", "hook"),
    [
        (lambda: sae_at(Z), Z, ATTN_OUT),
        (lambda: sae_at(Z, "standard", reshape_activations="hook_z"), Z, ATTN_OUT),
        (lambda: sae_at(MLP_IN, "transcoder", out=MLP_OUT), MLP_IN, MLP_OUT),
        (lambda: sae_at(GIVEN, "jumprelu_skip_transcoder", out=MLP_OUT), GIVEN, MLP_OUT),
    ],
)  # fmt: skip
def test_latents_are_encoded_where_the_sae_reads_and_weigh_what_they_write(sae, place, hook, tmp_path):
    model, batch, sae = llama().eval(), texts(), sae()
    made = from_saelens(sae, {"pirate": [3, 17], "sums": [5]}, model=model)
    bank = ConceptBank.load(made.save(tmp_path / "bank"))
    (given,) = seen(model, batch, place)
    flat = given.unflatten(-1, (4, 8)) if sae.cfg.reshape_activations == "hook_z" else given
    acts = sae.encode(flat)
    norms = made.readouts[hook].decoder.norm(dim=-1)
    expected = torch.stack([acts[..., 3] * norms[3] + acts[..., 17] * norms[17], acts[..., 5] * norms[5]], dim=-1)
    found = concept_activations(bank)
    assert list(found) == [hook, place]
    torch.testing.assert_close(found[place](given), expected)
    assert expected.abs().sum() > 0
    assert not found[hook](torch.randn(3, WIDTH)).any()
    means = ProbeSets.of({"a": [batch]}).means(model, found, hooks=bank.hook_points)
    torch.testing.assert_close(means.activation[0], expected.flatten(0, 1).mean(0))


def test_reinforced_demand_weighs_the_gradient_where_it_is_written_by_what_was_encoded_before():
    model, batch = llama(), texts()
    sae = sae_at(MLP_IN, "transcoder", out=MLP_OUT)
    bank = from_saelens(sae, {"pirate": [3]})
    meter = DemandMeter(bank, {MLP_OUT: HookPoint.parse(MLP_OUT)}, reinforced=True)
    meter.attach(model)
    (given,) = seen(model, batch, MLP_IN)
    written = keep_gradients(model, MLP_OUT)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    on = sae.encode(given)[..., 3] * sae.W_dec[3].norm()
    expected = -(on[..., None] * written[MLP_OUT].grad * unit(sae.W_dec[3])).double().sum()
    assert abs(expected) > 1e-6
    torch.testing.assert_close(meter.read()["reinforced"].value[0].double(), expected, rtol=1e-4, atol=1e-7)
    meter.detach()
    assert not any(
        m._forward_hooks or m._forward_pre_hooks for m in model.modules() if m is not model.model.layers[1].mlp
    )


def three_saes(model):
    saes = [sae_at(POST), sae_at(MLP_IN, "transcoder", seed=2, out=MLP_OUT), sae_at("blocks.2.attn.hook_z", seed=3)]
    concepts = {"pirate": {POST: [3, 17], MLP_OUT: [5]}, "sums": {"blocks.2.attn.hook_z": [9], MLP_IN: [20]}}
    return saes, from_several_saes(saes, concepts, model=model)


def test_several_saes_are_one_bank_with_one_read_out_a_hook():
    model = llama()
    saes, bank = three_saes(model)
    assert bank.names == ("pirate", "sums")
    assert bank.hook_points == (POST, MLP_OUT, "blocks.2.hook_attn_out")
    assert [bank.rows(name) for name in bank.names] == [(0, 1, 2), (3, 4)]
    assert set(bank.readouts) == set(bank.hook_points)
    torch.testing.assert_close(bank.directions[:2], unit(saes[0].W_dec[[3, 17]]))
    torch.testing.assert_close(bank.directions[[2, 3]], unit(saes[1].W_dec[[5, 20]]))
    o_proj = model.model.layers[2].self_attn.o_proj.weight.detach()
    torch.testing.assert_close(bank.directions[4], unit(o_proj @ saes[2].W_dec[9]), rtol=1e-4, atol=1e-5)


def test_sites_of_several_saes_touch_the_rows_that_come_after_writers_and_before_readers():
    model = llama()
    _, bank = three_saes(model)
    rows = {site.name.removesuffix(".weight"): site.rows(bank) for site in find_sites(model, bank)}
    layer = "model.layers.{}.{}".format
    assert rows[layer(0, "mlp.down_proj")] == (0, 1, 2, 3, 4)
    assert rows[layer(1, "self_attn.o_proj")] == (2, 3, 4)
    assert rows[layer(1, "mlp.down_proj")] == (2, 3, 4)
    assert rows[layer(2, "self_attn.o_proj")] == (4,)
    assert layer(2, "mlp.down_proj") not in rows
    assert rows[layer(1, "mlp.up_proj")] == (0, 1)
    assert rows["lm_head"] == (0, 1, 2, 3, 4)


def test_demand_of_several_saes_is_the_share_of_the_gradients_at_all_their_hooks():
    model, batch = llama(), texts()
    _, bank = three_saes(model)
    meter = DemandMeter(bank, {hook: HookPoint.parse(hook) for hook in bank.hook_points})
    meter.attach(model)
    written = keep_gradients(model, *bank.hook_points)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    inside, total = 0.0, 0.0
    for hook in bank.hook_points[:2]:
        gradient = written[hook].grad.double().flatten(0, 1)
        basis = torch.linalg.qr(bank.concept_at("pirate", hook).directions.double().T)[0]
        inside, total = inside + (gradient @ basis).square().sum(), total + gradient.square().sum()
    torch.testing.assert_close(meter.read()["demand"].share[0].double(), inside / total, rtol=1e-4, atol=1e-6)


def test_realised_latents_of_several_saes_are_the_change_of_what_each_encodes_at_its_place():
    model, batch = llama().eval(), texts(seed=4)
    saes, bank = three_saes(model)
    meter = ProbeMeter(bank, ProbeSets.of({"neutral": [batch]}))
    places = POST, MLP_IN, "blocks.2.attn.hook_z"
    weights = [bank.readouts[hook].decoder.norm(dim=-1) for hook in bank.hook_points]

    def activations():
        post, mlp_in, z = (
            (sae.encode(h) * norms).flatten(0, 1).double().mean(0)
            for sae, h, norms in zip(saes, seen(model, batch, *places), weights, strict=True)
        )
        return torch.stack([post[3] + post[17] + mlp_in[5], mlp_in[20] + z[9]])

    before = activations()
    meter.start(model)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.add_(torch.randn(WIDTH, 48) * 0.1)
    found = meter.read(model).latents[0].double()
    expected = activations() - before
    assert expected.abs().min() > 1e-4
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_what_does_not_belong_together_is_refused_by_name():
    saes = [sae_at(POST), sae_at(POST, seed=2)]
    with pytest.raises(ValueError, match=f"several SAEs are at {POST}; a bank has one read-out a hook point"):
        from_several_saes(saes, {"pirate": {POST: [1]}})
    with pytest.raises(ValueError, match=f"no SAE is at {MLP_OUT}; there are SAEs at {POST}"):
        from_several_saes(saes[:1], {"pirate": {MLP_OUT: [1]}})
    with pytest.raises(ValueError, match=f"no concept has latents of the SAE at {MLP_OUT}; leave it out"):
        from_several_saes([saes[0], sae_at(MLP_OUT)], {"pirate": {POST: [1]}})
    with pytest.raises(ValueError, match=r"so give the model: from_saelens\(sae, concepts, model=model\)"):
        from_saelens(sae_at(Z), {"pirate": [3]}, model="tiny")
    with pytest.raises(ValueError, match="is 24 wide but the heads there 32 together"):
        from_saelens(sae_at(Z, d_in=24), {"pirate": [3]}, model=llama())
    with pytest.raises(ValueError, match=r"of a transcoder: where it writes\), hook='blocks"):
        from_saelens(sae_at(MLP_IN, "transcoder"), {"pirate": [3]})
    with pytest.raises(ValueError, match=f"trained at '{MLP_IN}', behind a norm: its decoder rows are no directions"):
        from_saelens(sae_at(MLP_IN), {"pirate": [3]})


def test_an_sae_that_reads_where_it_writes_is_read_nowhere_else():
    bank = from_saelens(sae_at(POST), {"pirate": [3]})
    assert activation_elsewhere(bank, POST) is None
    assert list(concept_activations(bank)) == [POST]


def test_alive_latents_go_with_their_own_sae():
    alive = torch.arange(LATENTS) % 2 == 0
    saes = [sae_at(POST), sae_at(MLP_OUT)]
    bank = from_several_saes(saes, {"pirate": {POST: [1], MLP_OUT: [2]}}, alive={MLP_OUT: alive})
    assert torch.equal(bank.readouts[MLP_OUT].alive, alive)
    assert bank.readouts[POST].alive.all()
