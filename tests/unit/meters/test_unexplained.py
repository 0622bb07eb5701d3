"""Unexplained: 0 inside the bank's span, 1 outside, and its null in between."""

import pytest
import torch

from interptrain.meters.probe_meter import ProbeMeter
from interptrain.meters.probes import ProbeSets
from interptrain.meters.unexplained import bank_spans, unexplained_reading
from interptrain.tiny_world import concept_bank, load_base
from tests.helpers.models import WIDTH, llama
from tests.unit.meters.test_meters import dictionary_bank
from tests.unit.meters.test_probes import FIRST, added, small_bank, small_sets, world_sets

CONTRAST = torch.ones(2, 1, WIDTH)


def outside_of(bank, vector):
    basis = torch.linalg.qr(bank.directions.double().T)[0]
    return (vector.double() - basis @ (basis.T @ vector.double())).float()


def test_a_move_inside_the_span_is_explained_and_one_outside_is_not():
    bank, spans = small_bank(), bank_spans(small_bank())
    inside = torch.randn(5) @ bank.directions
    outside = outside_of(bank, torch.randn(WIDTH))
    assert float(unexplained_reading(spans, inside[None], CONTRAST).value) < 1e-10
    assert float(unexplained_reading(spans, outside[None], CONTRAST).value) == pytest.approx(1.0, abs=1e-5)
    mixed = 3 * inside / inside.norm() + outside / outside.norm()
    assert float(unexplained_reading(spans, mixed[None], CONTRAST).value) == pytest.approx(0.1, rel=1e-4)


def test_the_same_holds_for_a_model_whose_stream_is_moved():
    bank, meter = small_bank(), ProbeMeter(small_bank(), ProbeSets.of(small_sets()))
    meter.start(llama())
    inside = meter.read(added(llama(), 1, torch.ones(5) @ bank.directions)).unexplained["neutral"]
    outside = meter.read(added(llama(), 1, outside_of(bank, torch.ones(WIDTH)))).unexplained["neutral"]
    assert float(inside.value) < 1e-6
    assert float(outside.value) == pytest.approx(1.0, abs=1e-4)


def test_redundant_directions_are_counted_once():
    bank = small_bank(again=small_bank().directions[0])
    shift = torch.randn(1, WIDTH)
    twice = unexplained_reading(bank_spans(bank), shift, torch.ones(3, 1, WIDTH))
    once = unexplained_reading(bank_spans(small_bank()), shift, CONTRAST)
    torch.testing.assert_close(twice.value, once.value)


def test_the_null_is_what_as_many_random_directions_leave():
    spans, moves = bank_spans(dictionary_bank()), torch.randn(2000, 1, WIDTH)
    assert spans[0].from_dictionary
    found = [unexplained_reading(spans, move, CONTRAST) for move in moves]
    null = torch.stack([each.null for each in found])
    assert null.shape == (2000, 64)
    assert float(null.mean()) == pytest.approx(1 - 4 / WIDTH, abs=0.01)
    z = torch.stack([each.metrics()["/z"] for each in found])
    assert abs(float(z.mean())) < 0.5


def test_in_the_tiny_world_the_concepts_explain_a_move_of_theirs_far_better_than_other_latents():
    bank, meter = concept_bank(), ProbeMeter(concept_bank(), ProbeSets.of(world_sets(8)))
    meter.start(load_base())
    found = meter.read(added(load_base(), 2, bank.directions[:8].sum(0))).unexplained["neutral"]
    assert float(found.value) < 1e-6
    assert float(found.metrics()["/z"]) < -3


def test_hooks_are_taken_together_by_their_energy():
    both = small_bank().merge(type(small_bank()).from_directions({"pirate": torch.ones(WIDTH)}, hook=FIRST))
    inside, outside = small_bank().directions[0], torch.eye(WIDTH)[0] - torch.eye(WIDTH)[1]
    found = unexplained_reading(bank_spans(both), torch.stack([2 * inside, outside]), torch.ones(2, 2, WIDTH))
    assert float(found.value) == pytest.approx(2 / 6, rel=1e-5)


def test_strength_is_the_unexplained_length_over_each_contrast():
    contrast = torch.stack([torch.full((1, WIDTH), 2.0), torch.full((1, WIDTH), torch.nan)])
    outside = outside_of(small_bank(), torch.randn(WIDTH))
    found = unexplained_reading(bank_spans(small_bank()), outside[None], contrast)
    assert float(found.strength[0]) == pytest.approx(float(outside.norm()) / (2 * WIDTH**0.5), rel=1e-5)
    assert found.strength[1].isnan()
