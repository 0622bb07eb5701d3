"""Dictionary: which latents the gradients teach, against dense float64 computations and made-up truths."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from interptrain import ConceptBank
from interptrain.concepts import Readout
from interptrain.meters.dictionary import FLIPS, LABEL_LENGTH, DictionaryMeter, latent_demand, pursue, read_labels

HOOK, WIDTH, LATENTS = "blocks.1.hook_resid_post", 64, 300


def bank_of(decoder, alive=None, **concepts):
    """A bank whose concepts are latents of one dictionary."""
    alive = torch.ones(len(decoder), dtype=torch.bool) if alive is None else alive
    named = [(name, latent) for name, latents in (concepts or {"pirate": [0]}).items() for latent in latents]
    return ConceptBank(
        normalize(decoder[[latent for _, latent in named]], dim=-1),
        tuple(name for name, _ in named),
        (HOOK,) * len(named),
        tuple({"latent": latent} for _, latent in named),
        readouts={HOOK: Readout({}, {"W_dec": decoder}, alive)},
    )


def random_decoder(seed=99):  # conftest seeds everything else with 0
    return 3 * torch.randn(LATENTS, WIDTH, generator=torch.Generator().manual_seed(seed))


def reading(bank, *passes, **options):
    meter = DictionaryMeter(bank, **options)
    for columns in passes:
        meter.add(HOOK, columns)
    return meter.read()[HOOK]


def taught(decoder, coefficients, *, tokens=400, noise=0.0, spread=0.0):
    """Gradients that sum to `-sum_i c_i d_i` of unit rows, each token with noise of its own, and each its share."""
    directions = normalize(decoder[list(coefficients)], dim=-1)
    shares = 1 / tokens + spread * torch.randn(len(coefficients), tokens)
    columns = -(directions.T * torch.tensor(list(coefficients.values()))) @ shares
    return columns + noise * torch.randn(WIDTH, tokens)


def test_signed_demand_z_and_share_are_those_of_a_dense_computation_over_tokens():
    decoder, gradients = random_decoder(), torch.randn(WIDTH, 50) + 0.1
    found = reading(bank_of(decoder), gradients[:, :20], gradients[:, 20:], count=7)
    directions = decoder.double().numpy()
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    along = directions @ gradients.double().numpy()  # every latent, every token
    signed, energy = -along.sum(1), (along**2).sum(1)
    latents = found.latents.numpy()
    assert latents[0] == np.abs(signed).argmax()
    np.testing.assert_allclose(found.signed, signed[latents], rtol=1e-4)
    np.testing.assert_allclose(found.z, (signed / np.sqrt(energy))[latents], rtol=1e-4)
    np.testing.assert_allclose(found.share, (energy / (gradients.numpy() ** 2).sum())[latents], rtol=1e-4)
    assert int(found.tokens) == 50


def test_without_a_second_look_the_pursuit_is_greedy_least_squares():
    directions, demand = normalize(random_decoder().double(), dim=-1).numpy(), np.random.randn(WIDTH)
    picks, residual, explained = [], demand, []
    for _ in range(9):
        picks.append(int(np.abs(directions @ residual).argmax()))
        coefficients = np.linalg.lstsq(directions[picks].T, demand, rcond=None)[0]
        residual = demand - directions[picks].T @ coefficients
        explained.append(1 - (residual**2).sum() / (demand**2).sum())
    found = pursue(torch.from_numpy(directions).float(), torch.from_numpy(demand).float()[None], 9, sweeps=0)
    assert found[0][0].tolist() == picks
    np.testing.assert_allclose(found[1][0], coefficients, rtol=1e-4)
    np.testing.assert_allclose(found[2][0], explained, rtol=1e-4)


def test_a_second_look_never_explains_less_and_its_coefficients_are_least_squares():
    directions, targets = normalize(random_decoder(), dim=-1), torch.randn(50, WIDTH)
    plain, again = (pursue(directions, targets, 6, sweeps=sweeps) for sweeps in (0, 1))
    assert (again[2][:, -1] >= plain[2][:, -1] - 1e-6).all()
    assert (again[2][:, -1] > plain[2][:, -1] + 1e-3).any()
    assert (again[2].diff(dim=1) >= 0).all()
    for picks, coefficients, explained, target in zip(*again, targets.double().numpy(), strict=True):
        chosen = directions[picks].double().numpy().T
        wanted, rest = np.linalg.lstsq(chosen, target, rcond=None)[:2]
        np.testing.assert_allclose(coefficients, wanted, rtol=1e-3, atol=1e-4)
        assert float(explained[-1]) == pytest.approx(1 - float(rest[0]) / (target**2).sum(), rel=1e-4)


def test_z_is_in_units_of_the_spread_under_random_signs_of_the_tokens():
    directions, gradients = normalize(random_decoder()[:20], dim=-1), torch.randn(60, WIDTH) * torch.rand(60, 1) + 0.2
    signed, z, _ = latent_demand(directions, gradients.sum(0), gradients.T @ gradients)
    signs = torch.randint(0, 2, (20_000, 60)) * 2.0 - 1
    spread = (signs @ gradients @ directions.T).std(0)
    torch.testing.assert_close(signed / z, spread, rtol=0.03, atol=0)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("duplicates", [False, True])
def test_three_taught_latents_are_found_with_sign_and_coefficient_also_among_near_duplicates(duplicates, seed):
    torch.manual_seed(1000 + seed)
    decoder, wanted = random_decoder(seed), {7: 5.0, 11: -4.0, 200: 3.0}
    if duplicates:  # cosine .95 to what is taught
        for number, latent in enumerate(wanted):
            own = normalize(decoder[latent], dim=0)
            other = normalize(torch.randn(5, WIDTH), dim=-1)
            aside = normalize(other - (other @ own)[:, None] * own, dim=-1)
            decoder[20 + 5 * number : 25 + 5 * number] = 0.95 * own + (1 - 0.95**2) ** 0.5 * aside
    bank, noise = bank_of(decoder), 0.005  # and every token's part in each latent varies by .01 about 1 / 400
    found = reading(bank, taught(decoder, wanted, noise=noise, spread=0.01), count=3)
    assert set(found.latents.tolist()) == set(wanted)
    there = {latent: float(c) for latent, c in zip(found.latents.tolist(), found.coefficients, strict=True)}
    spread = noise * 400**0.5 + 0.01 * 400**0.5 * max(abs(c) for c in wanted.values())
    assert there == pytest.approx(wanted, abs=4 * spread)
    assert all(there[latent] * c > 0 for latent, c in wanted.items())
    assert float(found.explained[-1]) > 0.9
    exact = reading(bank, taught(decoder, wanted), count=3)
    assert dict(zip(exact.latents.tolist(), exact.coefficients.tolist(), strict=True)) == pytest.approx(
        wanted, rel=1e-3
    )
    assert float(exact.explained[-1]) == pytest.approx(1.0, abs=1e-5)


def test_a_redundant_latent_does_not_fill_the_list():
    decoder = random_decoder()
    decoder[1:40] = decoder[0] + 0.05 * torch.randn(39, WIDTH)
    wanted = {0: 5.0, 100: 1.0}
    columns = taught(decoder, wanted)
    alone = latent_demand(normalize(decoder, dim=-1), columns.sum(-1), columns @ columns.T)[0]
    assert set(alone.abs().topk(20).indices.tolist()) <= set(range(40))
    found = reading(bank_of(decoder), columns, count=2)
    assert found.latents[0] in range(40)
    assert found.latents[1] == 100


def test_pure_noise_stands_at_its_null_and_a_taught_latent_far_above():
    bank, tops, explained, zs = bank_of(random_decoder()), [], [], []
    for _ in range(40):
        found = reading(bank, torch.randn(WIDTH, 80), count=5)
        tops.append(float(found.metrics()["/top/z"]))
        explained.append(float(found.metrics()["/explained/z"]))
        zs.append(float(found.z.abs().max()))
    assert abs(np.mean(tops)) < 0.5
    assert abs(np.mean(explained)) < 0.5
    assert 0.7 < np.std(tops) < 1.5
    assert max(zs) < 5
    loud = reading(bank, torch.randn(WIDTH, 80) + taught(random_decoder(), {9: 60.0}, tokens=80), count=5)
    assert loud.latents[0] == 9
    assert float(loud.metrics()["/top/z"]) > 5


def test_the_null_draws_have_the_covariance_of_the_sign_flips():
    orthogonal = torch.eye(WIDTH)
    gradients = torch.randn(WIDTH, 2000) * torch.linspace(0.01, 1, WIDTH)[:, None]
    found = reading(bank_of(orthogonal), gradients, count=WIDTH)
    drawn = torch.stack([
        (gradients @ (torch.randint(0, 2, (2000,)) * 2.0 - 1)).abs().amax() for _ in range(400)
    ])  # fmt: skip
    assert found.null_top.shape == (FLIPS,)
    assert found.null_explained.shape == (FLIPS, WIDTH)
    assert float(found.null_top.mean()) == pytest.approx(float(drawn.mean()), abs=4 * float(drawn.std()) / FLIPS**0.5)
    torch.testing.assert_close(found.null_explained[:, -1], torch.ones(FLIPS), atol=1e-4, rtol=0)


def test_chunks_of_latents_change_nothing():
    directions, gradients = normalize(random_decoder(), dim=-1), torch.randn(70, WIDTH)
    whole = latent_demand(directions, gradients.sum(0), gradients.T @ gradients)
    for chunk in (1, 7, LATENTS - 1):
        parts = latent_demand(directions, gradients.sum(0), gradients.T @ gradients, chunk=chunk)
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


def test_several_adds_are_one_add_and_a_read_forgets():
    bank, columns = bank_of(random_decoder()), torch.randn(WIDTH, 50)
    meter = DictionaryMeter(bank)
    meter.add(HOOK, columns)
    once = meter.read()[HOOK]
    for part in columns.split(13, dim=1):
        meter.add(HOOK, part)
    parts = meter.read()[HOOK]
    assert parts.latents.tolist() == once.latents.tolist()
    for name in ("coefficients", "signed", "z", "share", "explained", "null_top", "null_explained", "tokens"):
        torch.testing.assert_close(getattr(parts, name), getattr(once, name), rtol=1e-3, atol=1e-4)
    assert meter.read() is None


def test_tokens_out_of_the_loss_count_for_nothing():
    bank, columns = bank_of(random_decoder()), torch.randn(WIDTH, 50)
    padded = torch.cat([columns, torch.zeros(WIDTH, 30)], dim=1)
    kept, with_others = reading(bank, columns), reading(bank, padded)
    assert with_others.latents.tolist() == kept.latents.tolist()
    torch.testing.assert_close(with_others.z, kept.z)
    torch.testing.assert_close(with_others.null_top, kept.null_top)
    assert int(with_others.tokens) == 50


@pytest.mark.parametrize("columns", [torch.zeros(WIDTH, 0), torch.zeros(WIDTH, 9)])
def test_without_loss_tokens_nothing_is_listed(columns):
    bank = bank_of(random_decoder())
    found = reading(bank, columns)
    assert found.latents.eq(-1).all()
    assert found.coefficients.eq(0).all()
    assert int(found.tokens) == 0
    assert found.rows(bank, HOOK) == []
    assert DictionaryMeter(bank).read() is None


def test_only_alive_latents_are_listed_and_no_more_than_there_are():
    decoder, alive = random_decoder(), torch.zeros(LATENTS, dtype=torch.bool)
    alive[[4, 50, 299]] = True
    found = reading(bank_of(decoder, alive), taught(decoder, {3: 9.0, 50: 1.0}, noise=0.01), count=10)
    assert sorted(found.latents.tolist()) == [4, 50, 299]


def test_a_demand_of_two_latents_lists_two_and_then_nothing():
    bank = bank_of(torch.eye(WIDTH))
    found = reading(bank, taught(torch.eye(WIDTH), {3: 2.0, 5: -1.0}), count=6)
    assert found.latents.tolist() == [3, 5, -1, -1, -1, -1]
    assert found.z[2:].isnan().all()
    assert len(found.rows(bank, HOOK)) == 2


def test_a_repeated_latent_is_picked_once():
    decoder = torch.cat([torch.eye(8), torch.eye(8)])
    picks, coefficients, explained = pursue(decoder, torch.arange(1.0, 9.0)[None], 16)
    assert sorted(picks[0, :8].tolist()) == list(range(8))
    assert picks[0, 8:].eq(-1).all()
    assert coefficients.isfinite().all()
    assert float(explained[0, -1]) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 65536.0])
def test_loss_scaling_is_undone(scale):
    bank, columns = bank_of(random_decoder()), torch.randn(WIDTH, 50)
    plain, meter = reading(bank, columns), DictionaryMeter(bank)
    meter.add(HOOK, columns * scale)
    scaled = meter.read(torch.tensor(scale))[HOOK]
    assert scaled.latents.tolist() == plain.latents.tolist()
    for name in ("coefficients", "signed", "z", "share", "explained", "null_top"):
        torch.testing.assert_close(getattr(scaled, name), getattr(plain, name), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_pass_that_overflowed_is_left_out(bad):
    bank, columns = bank_of(random_decoder()), torch.randn(WIDTH, 50)
    overflowed = columns.clone()
    overflowed[3, 7] = bad
    found, clean = reading(bank, columns, overflowed), reading(bank, columns)
    assert int(found.tokens) == 50
    torch.testing.assert_close(found.coefficients, clean.coefficients)
    torch.testing.assert_close(found.null_top, clean.null_top)


def test_autocast_does_not_round_the_sums():
    bank, columns = bank_of(random_decoder()), torch.randn(WIDTH, 50)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = reading(bank, columns)
    torch.testing.assert_close(found.z, reading(bank, columns).z, rtol=0, atol=0)


def test_hooks_without_a_dictionary_are_passed_over():
    other = ConceptBank.from_directions({"sums": torch.ones(WIDTH)}, hook="blocks.0.hook_resid_post")
    meter = DictionaryMeter(bank_of(random_decoder()).merge(other))
    assert meter.hooks == (HOOK,)
    meter.add("blocks.0.hook_resid_post", torch.randn(WIDTH, 5))
    assert meter.read() is None
    dead = replace(bank_of(random_decoder()), readouts={HOOK: Readout({}, {}, torch.zeros(LATENTS, dtype=torch.bool))})
    assert DictionaryMeter(dead).hooks == ()
    assert DictionaryMeter(dead).held_bytes() == 0


def test_held_bytes_are_those_of_its_tensors():
    meter = DictionaryMeter(bank_of(random_decoder()))
    promised = meter.held_bytes()
    meter.add(HOOK, torch.randn(WIDTH, 5))
    tally = meter._tallies[HOOK]
    sums = sum(each.nbytes for each in (tally.total, tally.second, tally.flipped))
    meter.read()
    assert promised == sums + sum(each.nbytes for each in meter._rows[HOOK])


def test_rows_name_the_concepts_that_asked_and_show_labels_of_any_kind_on_one_line():
    decoder = torch.eye(WIDTH)
    bank = bank_of(decoder, pirate=[3], sea=[3, 4])
    hostile = "a\n\x00\x1b[31m\u202eevil\ud800 </script><script>alert(1)</script> \"' " + "x" * 10_000
    found = reading(bank, taught(decoder, {3: 3.0, 4: -2.0, 6: 1.0}, noise=1e-4), count=3)
    rows = found.rows(bank, HOOK, {6: hostile})
    assert [row["latent"] for row in rows] == [3, 4, 6]
    assert [row["rank"] for row in rows] == [1, 2, 3]
    assert [row["concept"] for row in rows] == ["pirate, sea", "sea", ""]
    assert [row["label"] for row in rows[:2]] == ["", ""]
    assert rows[2]["label"].startswith("a [31m evil </script>")
    assert len(rows[2]["label"]) == LABEL_LENGTH
    assert rows[2]["label"].isprintable()
    assert [round(row["coefficient"]) for row in rows] == [3, -2, 1]
    assert all(tuple(row) == found.columns for row in rows)
    assert json.loads(json.dumps(rows, allow_nan=False).encode()) == rows


def test_what_is_not_finite_is_none_in_a_row():
    bank = bank_of(torch.eye(WIDTH))
    found = replace(reading(bank, torch.randn(WIDTH, 9)), z=torch.full((10,), torch.nan))
    assert {row["z"] for row in found.rows(bank, HOOK)} == {None}


@pytest.mark.parametrize(
    "document",
    [
        {"12": "pirates", "7": "sums"},
        [{"index": "12", "description": "pirates", "modelId": "m"}, {"index": 7, "description": "sums"}],
        [{"feature": 12, "label": "pirates"}, {"feature": "7", "label": "sums"}, {"feature": 7, "label": "again"}],
        [{"index": 12, "description": "pirates"}, {"index": 9, "description": None}, {"index": 7, "label": "sums"}],
    ],
)
def test_labels_are_read_from_a_mapping_or_an_export(tmp_path, document):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(document))
    assert read_labels(path) == {12: "pirates", 7: "sums"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("3", "expected an object or a list"),
        ("[3]", "entry 0 .* is a int"),
        ('[{"index": 1, "label": "a"}, {"label": "b"}]', "entry 1 .* neither 'index' nor 'feature'"),
        ('[{"index": 1}]', "neither 'description' nor 'label'"),
        ('[{"index": true, "label": "a"}]', "a latent's number"),
        ('[{"index": -1, "label": "a"}]', "a latent's number"),
        ('{"4-res-jb": "a"}', "'4-res-jb', expected a latent's number"),
        ('{"4": ["a"]}', "with a list, expected a text"),
        (
            '[{"index": 1, "label": "a", "layer": "2"}, {"index": 2, "label": "b", "layer": "3"}]',
            "several SAEs",
        ),
        ('[{"index": 1, "label": "a", "modelId": "x"}, {"index": 1, "label": "a", "modelId": "y"}]', "several SAEs"),
        ('{"index": 1, "label": "a"}\n{"index": 2, "label": "b"}', "one object a line is named .jsonl"),
    ],
)
def test_what_is_no_export_is_refused_by_what_is_wrong_with_it(tmp_path, text, says):
    path = tmp_path / "labels.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
        read_labels(path)


def test_an_export_of_one_object_a_line_is_read(tmp_path):
    path = tmp_path / "labels.jsonl"
    lines = [
        {"modelId": "gemma-2-2b", "layer": "12-res-16k", "index": str(index), "description": f"about {index}"}
        for index in (3, 12)
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert read_labels(path) == {3: "about 3", 12: "about 12"}
    path.write_text('{"index": 3, "description": "a"}\n3')
    with pytest.raises(ValueError, match=r"entry 1 .* is a int"):
        read_labels(path)


def test_a_missing_or_binary_file_of_labels_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot read labels"):
        read_labels(tmp_path / "nowhere.json")
    (tmp_path / "binary").write_bytes(b"\x80\x04\x95\xff")
    with pytest.raises(ValueError, match="not JSON"):
        read_labels(tmp_path / "binary")


def test_a_count_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1, found 0"):
        DictionaryMeter(bank_of(random_decoder()), count=0)
