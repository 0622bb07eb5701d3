"""Properties of the steering operator, against float64 references that share no code with it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interptrain.projection import Frame, Matrix, as_columns, capped, correct_, energies, project, steer_


def random_case(seed, directions, width, other, axis):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(directions, width, generator=generator)
    rows = rows / rows.norm(dim=-1, keepdim=True)
    shape = (width, other) if axis == 0 else (other, width)
    return rows, torch.randn(shape, generator=generator), torch.randn(directions, generator=generator)


def dense_reference(gradient, rows, gains, axis):
    """G' = G + D^T (D D^T)^-1 diag(gain - 1) D G in float64 NumPy, with an explicit inverse."""
    g, d, s = (np.asarray(t.double()) for t in (gradient, rows, gains))
    g = g if axis == 0 else g.T
    steered = g + d.T @ np.linalg.inv(d @ d.T) @ np.diag(s - 1) @ d @ g
    return torch.from_numpy(steered if axis == 0 else steered.T)


cases = st.tuples(
    st.integers(0, 2**16),
    st.sampled_from([1, 2, 5, 16]),
    st.sampled_from([16, 33, 64]),
    st.sampled_from([1, 3, 40]),
    st.sampled_from([0, 1]),
)


@settings(max_examples=60, deadline=None)
@given(cases)
def test_steering_equals_the_dense_formula(case):
    seed, directions, width, other, axis = case
    rows, gradient, gains = random_case(seed, min(directions, width // 2), width, other, axis)
    expected = dense_reference(gradient, rows, gains, axis)
    steer_(gradient, rows, gains, axis=axis)
    # fp32 against float64: rounding grows with the condition of the random rows, at most a few hundred here
    torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@settings(max_examples=40, deadline=None)
@given(cases)
def test_each_coefficient_is_multiplied_by_its_gain_and_nothing_outside_the_span_moves(case):
    seed, directions, width, other, axis = case
    rows, gradient, gains = random_case(seed, min(directions, width // 2), width, other, axis)
    before = gradient.clone()
    steer_(gradient, rows, gains, axis=axis)
    wanted = gains[:, None] * project(before, rows, axis=axis)
    torch.testing.assert_close(project(gradient, rows, axis=axis), wanted, rtol=1e-3, atol=1e-4)
    change = as_columns(gradient - before, axis)
    basis = torch.linalg.qr(rows.T)[0]
    torch.testing.assert_close(basis @ (basis.T @ change), change, rtol=1e-3, atol=1e-4)


def test_gain_one_is_bit_identical():
    rows, gradient, _ = random_case(0, 5, 33, 7, 0)
    before = gradient.clone()
    steer_(gradient, rows, torch.ones(5), axis=0)
    assert torch.equal(gradient, before)


def test_gain_zero_is_idempotent_and_gains_compose():
    rows, gradient, _ = random_case(1, 4, 32, 9, 1)
    once = gradient.clone()
    steer_(once, rows, torch.zeros(4), axis=1)
    twice = once.clone()
    steer_(twice, rows, torch.zeros(4), axis=1)
    torch.testing.assert_close(once, twice, rtol=0, atol=1e-5)
    first, second = torch.tensor([2.0, 0.5, 1.0, -1.0]), torch.tensor([3.0, 1.0, 0.0, 2.0])
    in_turn, at_once = gradient.clone(), gradient.clone()
    steer_(in_turn, rows, first, axis=1)
    steer_(in_turn, rows, second, axis=1)
    steer_(at_once, rows, first * second, axis=1)
    torch.testing.assert_close(in_turn, at_once, rtol=1e-4, atol=1e-4)


def test_steering_turns_with_the_stream():
    rows, gradient, gains = random_case(2, 3, 16, 5, 0)
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(3)))[0]
    turned = rotation @ gradient
    steer_(turned, rows @ rotation.T, gains, axis=0)
    steer_(gradient, rows, gains, axis=0)
    torch.testing.assert_close(turned, rotation @ gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_scale_of_a_gradient_does_not_matter(scale):
    rows, gradient, gains = random_case(4, 3, 16, 5, 0)
    scaled = gradient * scale
    steer_(scaled, rows, gains, axis=0)
    steer_(gradient, rows, gains, axis=0)
    torch.testing.assert_close(scaled / scale, gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_half_precision_is_off_by_its_own_rounding_only(dtype, tolerance):
    rows, gradient, _ = random_case(5, 3, 64, 40, 0)
    half = gradient.to(dtype)
    expected = dense_reference(half, rows, torch.zeros(3), 0)
    steer_(half, rows, torch.zeros(3), axis=0)
    assert half.dtype == dtype
    torch.testing.assert_close(half.double(), expected, rtol=tolerance, atol=tolerance)


def test_a_bias_and_an_empty_gradient_are_gradients_too():
    rows = torch.eye(4)[:1]
    bias = torch.arange(4.0) + 1
    steer_(bias, rows, torch.zeros(1), axis=0)
    assert bias.tolist() == [0.0, 2.0, 3.0, 4.0]
    empty = torch.zeros(4, 0)
    steer_(empty, rows, torch.zeros(1), axis=0)
    assert empty.shape == (4, 0)


def test_padded_strides_are_written_in_place():
    storage = torch.randn(8, 10, generator=torch.Generator().manual_seed(6))
    view, outside = storage[:, :7], storage[:, 7:].clone()
    rows = torch.eye(8)[:2]
    steer_(view, rows, torch.zeros(2), axis=0)
    assert torch.equal(storage[:2, :7], torch.zeros(2, 7))
    assert torch.equal(storage[:, 7:], outside)


def test_nearly_parallel_directions_are_refused_and_a_ridge_allows_them():
    rows = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1e-3, 0.0]])
    rows = rows / rows.norm(dim=-1, keepdim=True)
    with pytest.raises(ValueError, match=r"rows 0 and 1 have cosine .* ridge"):
        steer_(torch.randn(3, 2), rows, torch.tensor([0.0, 2.0]), axis=0)
    gradient = torch.ones(3, 2)
    steer_(gradient, rows, torch.zeros(2), axis=0, ridge=1e-3)
    assert gradient[0].abs().max() < 1e-2
    assert torch.equal(gradient[2], torch.ones(2))


def test_one_gain_for_redundant_directions_is_exact():
    generator = torch.Generator().manual_seed(7)
    shared = torch.randn(1, 64, generator=generator)
    rows = shared + 0.3 * torch.randn(24, 64, generator=generator)
    rows = rows / rows.norm(dim=-1, keepdim=True)
    gradient = torch.randn(64, 50, generator=generator)
    steer_(gradient, rows, torch.zeros(24), axis=0)
    assert project(gradient, rows, axis=0).abs().max() < 2e-6


def test_wrong_widths_name_both_sides():
    with pytest.raises(ValueError, match="directions have width 8 but the gradient has 6 on axis 1"):
        project(torch.zeros(3, 6), torch.eye(8)[:1], axis=1)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_column_that_is_not_finite_keeps_its_bits_and_the_others_are_steered(bad):
    rows, gradient, _ = random_case(8, 2, 8, 4, 0)
    gradient[3, 1] = bad
    before = gradient.clone()
    frame = Frame.of(rows)
    correct_(gradient, frame.basis, frame.mixing(torch.zeros(2)))
    assert torch.equal(gradient[:, 1].nan_to_num(7.0), before[:, 1].nan_to_num(7.0))
    others = [0, 2, 3]
    torch.testing.assert_close(gradient[:, others], before[:, others] - frame.basis.T @ frame.basis @ before[:, others])


def test_the_norm_cap_looks_at_finite_columns_only():
    rows, gradient, _ = random_case(8, 2, 8, 4, 0)
    spoilt = torch.cat([gradient, torch.full((8, 1), torch.nan)], dim=1)
    frame = Frame.of(rows)
    amplified = frame.mixing(torch.full((2,), 50.0))
    _, clean = capped([Matrix(gradient, frame.basis, amplified)], 0.1)
    _, factor = capped([Matrix(spoilt, frame.basis, amplified)], 0.1)
    assert 0 < float(factor) < 1
    assert float(factor) == pytest.approx(float(clean), rel=1e-6)


def test_the_norm_cap_binds_and_says_how_much():
    rows, gradient, _ = random_case(9, 2, 8, 4, 0)
    before = gradient.clone()
    frame = Frame.of(rows)
    matrices, factor = capped([Matrix(gradient, frame.basis, frame.mixing(torch.full((2,), 50.0)))], 0.1)
    correct_(gradient, frame.basis, matrices[0].mixing)
    assert float(factor) < 1
    assert float((gradient - before).norm() / before.norm()) == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize("other", [2, 300])
def test_energies_agree_between_their_two_ways(other):
    generator = torch.Generator().manual_seed(10)
    bases = torch.linalg.qr(torch.randn(5, 32, 4, generator=generator))[0].mT.contiguous()
    columns = torch.randn(32, other, generator=generator)
    expected = np.square(np.einsum("gkd,dn->gkn", bases.double(), columns.double())).sum(-1)
    np.testing.assert_allclose(energies(columns, bases), expected, rtol=1e-4)


def test_a_frame_that_nobody_is_asked_about_steers_nothing_where_its_rows_cannot_be_steered_apart():
    apart = torch.eye(4)[:2]
    parallel = torch.stack([apart[0], apart[0] + 1e-6 * apart[1]])
    unknown = apart.clone()
    unknown[0, 0] = torch.nan
    gains = torch.tensor([0.0, 2.0])
    assert Frame.of(apart, ask=False).mixing(gains).equal(Frame.of(apart).mixing(gains))
    assert Frame.of(apart).mixing(gains).abs().max() > 0.5
    for rows in (parallel, unknown):
        gradient = torch.ones(4, 3)
        frame = Frame.of(rows, ask=False)
        correct_(gradient, frame.basis, frame.mixing(gains))
        assert gradient.equal(torch.ones(4, 3))
    with pytest.raises(ValueError, match="directions hold NaN or infinity"):
        Frame.of(unknown)
