"""The linear probe: it separates texts it never saw, and sees what the SAE's directions do not."""

import pytest
import torch
from sklearn.covariance import shrunk_covariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from interptrain.concepts.contrast import TextActivations, auc
from interptrain.meters.linear_probe import LinearProbe, discriminant
from interptrain.meters.probe_meter import ProbeMeter
from interptrain.meters.probes import ProbeSets
from interptrain.tiny_world import concept_bank, load_base
from tests.unit.meters.test_probes import added, world_sets


def texts(values, tokens_each=2):
    return TextActivations(values, torch.arange(len(values)) // tokens_each)


def two_sets(seed=0, width=6, tokens=60, apart=2.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator)
    shown, other = (torch.randn(tokens, width, generator=generator) @ mixing for _ in range(2))
    return shown + apart * torch.eye(width)[0], other


def test_the_direction_is_that_of_scikit_learn_with_the_published_shrinkage():
    shown, other = two_sets()
    within = torch.cat([shown - shown.mean(0), other - other.mean(0)]).double()
    n, d = within.shape
    pooled = within.T @ within / n
    square, trace = (pooled @ pooled).trace(), pooled.trace()
    rho = float(((1 - 2 / d) * square + trace**2) / ((n + 1 - 2 / d) * (square - trace**2 / d)))
    assert 0 < rho < 1
    both, labels = torch.cat([shown, other]).double().numpy(), [1] * len(shown) + [0] * len(other)
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=rho).fit(both, labels)
    expected = torch.linalg.solve(
        torch.from_numpy(shrunk_covariance(pooled.numpy(), rho)), shown.double().mean(0) - other.double().mean(0)
    )
    found = discriminant(shown, other)
    torch.testing.assert_close(found, expected)
    cosine = torch.cosine_similarity(found, torch.from_numpy(reference.coef_[0]), dim=0)
    assert float(cosine) == pytest.approx(1.0, abs=1e-6)


def test_more_width_than_tokens_still_gives_a_direction():
    shown, other = two_sets(width=64, tokens=8, apart=8.0)
    assert discriminant(shown, other).isfinite().all()
    with pytest.raises(ValueError, match="all alike"):
        discriminant(torch.ones(4, 3), torch.zeros(4, 3))


def test_the_scale_is_where_the_sets_stood():
    shown, other = two_sets()
    probe = LinearProbe.fit(texts(shown), texts(other), zero=other.mean(0), one=shown.mean(0))
    scores = probe.score(torch.stack([other.mean(0), shown.mean(0), (shown.mean(0) + other.mean(0)) / 2]))
    torch.testing.assert_close(scores, torch.tensor([0.0, 1.0, 0.5]))


def test_the_auc_is_of_texts_that_were_not_fitted():
    shown, other = two_sets(width=200, tokens=120, apart=0.0)  # the same distribution, so there is nothing to find
    first = torch.arange(120) // 2 % 2 == 0
    weight = discriminant(shown[first], other[first]).float()
    fitted, held_out = (
        float(auc(*((texts(each[half]).means() @ weight)[:, None] for each in (shown, other)))[0])
        for half in (first, ~first)
    )
    assert fitted > 0.95
    probe = LinearProbe.fit(texts(shown), texts(other), zero=torch.zeros(200), one=weight)
    assert float(probe.auc) == held_out < 0.8


def test_sets_that_are_too_small_or_alike_are_errors():
    shown, other = two_sets()
    with pytest.raises(ValueError, match="two texts or more of each set"):
        LinearProbe.fit(texts(shown, 60), texts(other), zero=other.mean(0), one=shown.mean(0))
    with pytest.raises(ValueError, match="do not differ"):
        LinearProbe.fit(texts(other), texts(other), zero=other.mean(0), one=other.mean(0))


def test_in_the_tiny_world_it_tells_held_out_texts_apart_and_sees_what_the_directions_do_not():
    bank, meter = concept_bank(), ProbeMeter(concept_bank(), ProbeSets.of(world_sets()))
    meter.start(load_base())
    assert set(meter.auc) == {"pirate", "royal", "arithmetic"}
    assert min(meter.auc.values()) >= 0.95
    contrast = meter.contrast[0, 0]
    basis = torch.linalg.qr(bank.select("pirate").directions.T)[0]
    hidden = contrast - basis @ (basis.T @ contrast)
    assert float(hidden.norm() / contrast.norm()) > 0.1
    reading = meter.read(added(load_base(), 2, hidden))
    assert float(reading.realised["neutral"].value[0]) == pytest.approx(0.0, abs=1e-4)
    assert float(reading.fraction[0, 0]) == pytest.approx(0.0, abs=1e-3)
    assert float(reading.probe[0, 0]) > 0.2
