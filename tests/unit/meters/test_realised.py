"""Realised: a known move of the stream is read as what it is."""

import pytest
import torch

from interptrain.meters import mean_directions
from interptrain.meters.probe_meter import ProbeMeter
from interptrain.meters.probes import ProbeSets
from interptrain.meters.realised import MeanDirections, Shift, realised_fraction, realised_reading
from interptrain.tiny_world import concept_bank, load_base
from tests.helpers.models import WIDTH, llama
from tests.unit.meters.test_meters import dictionary_bank
from tests.unit.meters.test_probes import FIRST, added, small_bank, small_sets, world_sets


def started(bank, sets, model):
    meter = ProbeMeter(bank, ProbeSets.of(sets))
    meter.start(model)
    return meter


def test_a_move_along_pirate_is_realised_as_its_length_and_in_royal_by_the_cosine():
    bank, sets = concept_bank(), world_sets()
    directions = mean_directions(bank, range(len(bank.directions)))[0]
    meter = started(bank, sets, load_base())
    reading = meter.read(added(load_base(), 2, 1.7 * directions[0]))
    for shift in reading.realised.values():
        torch.testing.assert_close(shift.value, 1.7 * directions @ directions[0], rtol=0, atol=1e-4)
        assert float(shift.value[0]) == pytest.approx(1.7, abs=1e-4)
        assert float(shift.value[0] / shift.null[0].std()) > 3
    assert reading.latents[0, 0] > 0.2


def test_neutral_texts_moved_by_the_contrast_have_gone_the_whole_way():
    bank, sets, model = small_bank(), small_sets(), llama()
    meter = started(bank, sets, model)
    contrast = meter.contrast[0, 0]
    reading = meter.read(added(llama(), 1, contrast))
    assert float(reading.fraction[0, 0]) == pytest.approx(1.0, abs=1e-4)
    assert reading.fraction[:, 1].isnan().all()
    half = meter.read(added(llama(), 1, contrast / 2))
    assert float(half.fraction[0, 0]) == pytest.approx(0.5, abs=1e-4)


def test_a_concept_at_two_hooks_is_the_sum_of_both():
    both = small_bank().merge(type(small_bank()).from_directions({"pirate": torch.ones(WIDTH)}, hook=FIRST))
    shift = torch.randn(2, WIDTH)
    found = realised_reading(MeanDirections.of(both), shift)
    rows = small_bank().directions[:3].double().mean(0)
    expected = shift[0].double() @ rows / rows.norm() + shift[1].double().sum() / WIDTH**0.5
    assert float(found.value[0]) == pytest.approx(float(expected), rel=1e-5)


def test_null_directions_are_signed_means_of_as_many_other_alive_latents():
    bank = dictionary_bank(latents=7)  # alive are 1, 2, 4 and 5, all in use
    assert MeanDirections.of(bank).null.shape == (2, 64, 1, WIDTH)
    bank = dictionary_bank()
    directions = MeanDirections.of(bank)
    torch.testing.assert_close(directions.null.norm(dim=-1), torch.ones(2, 64, 1))
    readout = next(iter(bank.readouts.values()))
    others = readout.directions[readout.alive & ~torch.isin(torch.arange(200), torch.tensor([1, 2, 4, 5]))]
    one_latent = (directions.null[1, :, 0] @ others.T).abs().max(-1).values
    torch.testing.assert_close(one_latent, torch.ones(64))  # sums is a single latent, so each null is one too
    signs = (directions.null[1, :, 0] @ others.T).gather(
        1, (directions.null[1, :, 0] @ others.T).abs().argmax(1)[:, None]
    )
    assert 16 < int((signs > 0).sum()) < 48
    three = torch.linalg.lstsq(others.T, directions.null[0, :, 0].T).residuals
    assert three.numel() == 0 or three.abs().max() < 1e-6  # in the latents' span


def test_directions_that_nothing_moved_along_have_no_deviations():
    shift = realised_reading(MeanDirections.of(small_bank()), torch.zeros(1, WIDTH))
    assert shift.metrics()["/z"].isnan().all()


def test_z_of_a_random_move_is_of_order_one_and_scale_free():
    directions, moves = MeanDirections.of(dictionary_bank()), torch.randn(300, 1, WIDTH)
    z = torch.stack([realised_reading(directions, move).metrics()["/z"] for move in moves])
    assert 0.7 < float(z[:, 0].std()) < 1.4
    torch.testing.assert_close(realised_reading(directions, 9 * moves[0]).metrics()["/z"], z[0])


def test_no_contrast_means_no_fraction():
    directions = MeanDirections.of(small_bank())
    contrast = torch.stack([torch.randn(1, WIDTH), torch.full((1, WIDTH), torch.nan)])
    assert realised_fraction(directions, torch.randn(1, WIDTH), contrast).isnan().tolist() == [False, True]


def test_metrics_are_value_and_z():
    shift = Shift(torch.tensor([4.0]), torch.tensor([[1.0, -1.0, 1.0, -1.0]]))
    assert shift.metrics()[""].tolist() == [4.0]
    assert float(shift.metrics()["/z"][0]) == pytest.approx(4 / (4 / 3) ** 0.5)
