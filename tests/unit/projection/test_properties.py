"""More properties of the steering operator: its edges, and what it does to one direction and to the whole stream."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interptrain.projection import Frame, energies, project, steer_

seeds = st.integers(0, 2**16)
gains_from = st.floats(-1, 3, width=32)


def unit_rows(seed, count, width):
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=-1, keepdim=True)


def gradient_of(seed, width, other=7):
    return torch.randn(width, other, generator=torch.Generator().manual_seed(seed + 1))


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 40), gains_from)
def test_one_direction_moves_by_its_own_component_times_gain_minus_one(seed, width, gain):
    row, gradient = unit_rows(seed, 1, width), gradient_of(seed, width)
    expected = gradient + (gain - 1) * torch.outer(row[0], row[0] @ gradient)
    steer_(gradient, row, torch.tensor([gain]), axis=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 24), gains_from)
def test_as_many_directions_as_the_stream_is_wide_scale_the_whole_gradient(seed, width, gain):
    rows, gradient = torch.linalg.qr(unit_rows(seed, width, width))[0], gradient_of(seed, width)
    expected = gain * gradient
    steer_(gradient, rows, torch.full((width,), gain), axis=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(2, 6), gains_from)
def test_the_order_of_the_directions_does_not_matter(seed, count, gain):
    rows, gradient = unit_rows(seed, count, 32), gradient_of(seed, 32)
    gains = torch.linspace(gain, 1.5, count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    shuffled = gradient.clone()
    steer_(gradient, rows, gains, axis=0)
    steer_(shuffled, rows[order], gains[order], axis=0)
    torch.testing.assert_close(shuffled, gradient, rtol=1e-3, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 6), gains_from)
def test_the_sign_of_a_direction_does_not_matter(seed, count, gain):
    rows, gradient = unit_rows(seed, count, 32), gradient_of(seed, 32)
    flipped = gradient.clone()
    steer_(gradient, rows, torch.full((count,), gain), axis=0)
    steer_(flipped, -rows, torch.full((count,), gain), axis=0)
    torch.testing.assert_close(flipped, gradient, rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 6), st.floats(0.25, 3, width=32))
def test_a_gain_is_undone_by_its_inverse(seed, count, gain):
    rows, gradient = unit_rows(seed, count, 32), gradient_of(seed, 32)
    before = gradient.clone()
    steer_(gradient, rows, torch.full((count,), gain), axis=0)
    steer_(gradient, rows, torch.full((count,), 1 / gain), axis=0)
    torch.testing.assert_close(gradient, before, rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 6), gains_from, st.floats(-3, 3, width=32))
def test_steering_is_linear_in_the_gradient(seed, count, gain, factor):
    rows, first, second = unit_rows(seed, count, 32), gradient_of(seed, 32), gradient_of(seed + 7, 32)
    gains = torch.linspace(gain, 0.5, count)
    together = first + factor * second
    for gradient in (first, second, together):
        steer_(gradient, rows, gains, axis=0)
    torch.testing.assert_close(together, first + factor * second, rtol=1e-3, atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 6))
def test_removing_never_lengthens_a_gradient_and_takes_just_the_span_away(seed, count):
    rows, gradient = unit_rows(seed, count, 32), gradient_of(seed, 32)
    energy = gradient.square().sum()
    in_span = energies(gradient, Frame.of(rows).basis[None]).sum()
    steer_(gradient, rows, torch.zeros(count), axis=0)
    torch.testing.assert_close(gradient.square().sum(), energy - in_span, rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(2, 6))
def test_a_direction_with_gain_one_keeps_its_coefficient_beside_one_that_is_removed(seed, count):
    rows, gradient = unit_rows(seed, count, 32), gradient_of(seed, 32)
    before = project(gradient, rows, axis=0)
    gains = torch.ones(count)
    gains[0] = 0.0
    steer_(gradient, rows, gains, axis=0)
    after = project(gradient, rows, axis=0)
    torch.testing.assert_close(after[1:], before[1:], rtol=1e-3, atol=1e-4)
    assert after[0].abs().max() < 1e-4


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 6), st.floats(0, 5e-3))
def test_parallel_directions_are_refused_whichever_way_they_point(seed, count, angle):
    rows = unit_rows(seed, count + 1, 32)
    twin = rows[:1] + angle * rows[1:2]
    twin = twin / twin.norm()
    for parallel in (twin, -twin):
        with pytest.raises(ValueError, match="no unique meaning"):
            Frame.of(torch.cat([rows[:count], parallel]))


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 8))
def test_a_frame_is_orthonormal_spans_the_directions_and_mixes_one_gain_into_a_multiple_of_one(seed, count):
    rows = unit_rows(seed, count, 32)
    frame = Frame.of(rows)
    torch.testing.assert_close(frame.basis @ frame.basis.T, torch.eye(count), rtol=0, atol=1e-5)
    torch.testing.assert_close(frame.factor @ frame.basis, rows, rtol=0, atol=1e-5)
    torch.testing.assert_close(frame.mixing(torch.full((count,), 0.25)), -0.75 * torch.eye(count), rtol=0, atol=1e-4)
