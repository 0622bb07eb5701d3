"""Properties of steering a product of two factors, against dense float64 references that share no code with it."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from interptrain.projection import Factors, Frame, energies, product_change, steer_product, thin
from interptrain.projection.product import LARGEST

WIDTH, OTHER, RANK = 24, 19, 4


def step_of(seed, *, scale=1.0, step=1e-2, rank=RANK, batch=(), dtype=torch.float64):
    """Random factors and a random step of relative size `step` of both."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return scale * torch.randn(*batch, *shape, generator=random, dtype=torch.float64)

    outer, inner = draw(WIDTH, rank), draw(rank, OTHER)
    after = Factors((outer + step * draw(WIDTH, rank)).to(dtype), (inner + step * draw(rank, OTHER)).to(dtype))
    return Factors(outer.to(dtype), inner.to(dtype)), after


def frame_of(seed, count, dtype=torch.float64):
    """Exactly orthonormal directions in float64, some 60 to 90 degrees apart before that, and their factor."""
    random = torch.Generator().manual_seed(seed + 1)
    rows = torch.randn(count, WIDTH, generator=random, dtype=torch.float64)
    q, r = torch.linalg.qr(rows.T)
    return rows.to(dtype), q.T.to(dtype), r.T.to(dtype)


def mixing_of(factor, gains):
    return torch.linalg.inv(factor) @ torch.diag(gains.to(factor) - 1) @ factor


def dense_change(before, after):
    return after.outer.double() @ after.inner.double() - before.outer.double() @ before.inner.double()


def miss(before, after, steered, directions, gains):
    """How far the product's change is from `diag(gain) D dW`, relative to `D dW`."""
    asked = directions.double() @ dense_change(before, after)
    found = directions.double() @ dense_change(before, steered)
    return float((found - gains.double()[:, None] * asked).norm() / asked.norm())


def disturbance(before, after, steered, basis):
    """`||P (B'' A'' - B' A')|| / ||P (B' A' - B A)||`."""
    off = torch.eye(WIDTH, dtype=torch.float64) - basis.double().T @ basis.double()
    change, step = dense_change(after, steered), dense_change(before, after)
    return float((off @ change).norm() / (off @ step).norm())


def least_disturbance(before, after, basis, mixing):
    """The same for the best rank-r product with the wanted rows (Golub, Hoffman & Stewart 1987), by dense SVD."""
    product, step = after.outer @ after.inner, dense_change(before, after)
    wanted = basis @ product + mixing @ basis @ step
    others = product - basis.T @ basis @ product
    kept = torch.linalg.svd(wanted, full_matrices=False)[2][: len(wanted)]
    left_over = others - others @ kept.T @ kept
    more = torch.linalg.svd(left_over, full_matrices=False)[2][: RANK - len(kept)]
    rows = torch.cat([kept, more])
    lost = others @ rows.T @ rows - others
    return float(lost.norm() / (step - basis.T @ basis @ step).norm())


gains_from = st.floats(-1, 3)
seeds = st.integers(0, 2**16)


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, RANK - 1), st.lists(gains_from, min_size=RANK, max_size=RANK))
def test_the_change_of_the_product_has_the_gain_asked_for(seed, count, gains):
    before, after = step_of(seed)
    directions, basis, factor = frame_of(seed, count)
    gains = torch.tensor(gains[:count])
    mixing = mixing_of(factor, gains)
    assume(least_disturbance(before, after, basis, mixing) < 2)  # where exactness costs many steps it is given up
    steered = steer_product(before, after, basis, mixing)
    assert miss(before, after, steered, directions, gains) < 1e-3


@pytest.mark.parametrize("count", [1, 3, RANK])
@pytest.mark.parametrize("gain", [-1.0, 0.0, 0.5, 2.0, 3.0])
def test_one_gain_for_as_many_directions_as_the_rank_is_exact(count, gain):
    before, after = step_of(3)
    directions, basis, factor = frame_of(3, count)
    gains = torch.full((count,), gain)
    steered = steer_product(before, after, basis, mixing_of(factor, gains))
    # as many directions as the rank leave the inner factor no choice: a weak one may be met a little less well
    assert miss(before, after, steered, directions, gains) < (1e-6 if count < RANK else 1e-3)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 3), gains_from)
def test_the_rest_is_disturbed_hardly_more_than_it_must_be(seed, count, gain):
    before, after = step_of(seed, step=1e-3)
    _, basis, factor = frame_of(seed, count)
    mixing = mixing_of(factor, torch.full((count,), gain))
    steered = steer_product(before, after, basis, mixing)
    least = least_disturbance(before, after, basis, mixing)
    assert least * (1 - 1e-3) - 1e-6 <= disturbance(before, after, steered, basis) <= 1.1 * least + 1e-3


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, WIDTH), gains_from)
def test_a_writer_without_the_concept_is_exact_by_its_outer_factor_alone(seed, count, gain):
    before, after = step_of(seed)
    directions, basis, factor = frame_of(seed, count)
    before = Factors(torch.zeros_like(before.outer), before.inner)
    gains = torch.full((count,), gain)
    steered = steer_product(before, after, basis, mixing_of(factor, gains))
    assert torch.equal(steered.inner, after.inner)
    assert miss(before, after, steered, directions, gains) < 1e-9


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, WIDTH), st.lists(gains_from, min_size=WIDTH, max_size=WIDTH), st.booleans())
def test_a_reader_is_exact_from_zero_init_even_if_its_first_step_has_not_full_rank(seed, count, gains, deficient):
    before, after = step_of(seed)
    directions, basis, factor = frame_of(seed, count)
    first = after.inner[:1].expand(RANK, OTHER) if deficient else after.inner
    before, after = Factors(before.outer, torch.zeros_like(before.inner)), Factors(after.outer, first.contiguous())
    gains = torch.tensor(gains[:count])
    steered = steer_product(before, after, basis, mixing_of(factor, gains))
    assert miss(before, after, steered, directions, gains) < 1e-4


def test_dependent_rows_of_either_factor_cost_no_exactness():
    for twin in ("outer", "inner"):
        before, after = step_of(5)
        if twin == "outer":
            after = Factors(torch.cat([after.outer[:, :2]] * 2, -1), after.inner)
        else:
            after = Factors(after.outer, torch.cat([after.inner[:2]] * 2))
        directions, basis, factor = frame_of(5, 2)
        gains = torch.tensor([0.0, 2.0])
        steered = steer_product(before, after, basis, mixing_of(factor, gains))
        assert miss(before, after, steered, directions, gains) < 1e-3


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(2, RANK), st.floats(-15, -4))
def test_nearly_singular_concepts_move_the_rest_by_a_bounded_amount(seed, count, exponent):
    before, after = step_of(seed)
    directions, basis, factor = frame_of(seed, count)
    same = basis.T @ (basis @ before.outer - (basis @ before.outer)[:1])  # every concept row of B is the first,
    before = Factors(before.outer - (1 - 10**exponent) * same, before.inner)  # or nearly so
    after = Factors(after.outer - (1 - 10**exponent) * same, after.inner)
    after = Factors(before.outer + 1e-6 * (after.outer - before.outer), after.inner)
    gains = torch.linspace(0, 3, count)
    steered = steer_product(before, after, basis, mixing_of(factor, gains))
    assert disturbance(before, after, steered, basis) < LARGEST * RANK
    assert miss(before, after, steered, directions, gains) < 3


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, WIDTH), gains_from)
def test_the_outer_edit_lies_in_the_directions_span(seed, count, gain):
    before, after = step_of(seed)
    _, basis, factor = frame_of(seed, count)
    steered = steer_product(before, after, basis, mixing_of(factor, torch.full((count,), gain)))
    edit = steered.outer - after.outer
    torch.testing.assert_close(basis.T @ (basis @ edit), edit, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_gain_one_a_zero_step_and_zero_factors_keep_every_bit(dtype):
    before, after = step_of(6, dtype=dtype)
    _, basis, factor = frame_of(6, 3, torch.float32)
    nothing = Factors(torch.zeros_like(after.outer), torch.zeros_like(after.inner))
    removed = mixing_of(factor, torch.zeros(3))
    for old, new, mixing in (
        (before, after, mixing_of(factor, torch.ones(3))),
        (after, after, removed),
        (nothing, nothing, removed),
    ):
        steered = steer_product(old, new, basis, mixing)
        assert torch.equal(steered.outer, new.outer)
        assert torch.equal(steered.inner, new.inner)
        assert steered.outer.dtype == dtype


def test_an_inner_factor_that_did_not_move_keeps_every_bit():
    before, after = step_of(7)
    directions, basis, factor = frame_of(7, 3)
    after = Factors(after.outer, before.inner)
    gains = torch.tensor([0.0, 2.0, -1.0])
    steered = steer_product(before, after, basis, mixing_of(factor, gains))
    assert torch.equal(steered.inner, after.inner)
    assert miss(before, after, steered, directions, gains) < 1e-9


@pytest.mark.parametrize("which", ["outer", "inner"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_is_not_finite_is_given_back_and_its_neighbours_in_the_batch_are_steered(which, when, poison):
    before, after = step_of(8, batch=(2,))
    directions, basis, factor = frame_of(8, 2)
    getattr({"before": before, "after": after}[when], which)[0, 1, 2] = poison
    mixing = mixing_of(factor, torch.zeros(2)).expand(2, 2, 2)
    steered = steer_product(before, after, basis.expand(2, 2, WIDTH), mixing)
    for new, old in ((steered.outer, after.outer), (steered.inner, after.inner)):
        torch.testing.assert_close(new[0], old[0], rtol=0, atol=0, equal_nan=True)
    one = [Factors(pair.outer[1], pair.inner[1]) for pair in (before, after, steered)]
    assert miss(*one, directions, torch.zeros(2)) < 1e-6


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, 3), gains_from)
def test_steering_a_product_turns_with_the_stream(seed, count, gain):
    before, after = step_of(seed)
    _, basis, factor = frame_of(seed, count)
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64))[0]
    mixing = mixing_of(factor, torch.full((count,), gain))
    turned = steer_product(*(Factors(turn @ f.outer, f.inner) for f in (before, after)), basis @ turn.T, mixing)
    steered = steer_product(before, after, basis, mixing)
    torch.testing.assert_close(turned.outer, turn @ steered.outer, rtol=0, atol=1e-6)
    torch.testing.assert_close(turned.inner, steered.inner, rtol=0, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, 3), st.floats(0.25, 2), st.floats(0.25, 2))
def test_gains_on_one_step_multiply(seed, count, first, second):
    before, after = step_of(seed)
    directions, basis, factor = frame_of(seed, count)
    once = steer_product(before, after, basis, mixing_of(factor, torch.full((count,), first)))
    twice = steer_product(before, once, basis, mixing_of(factor, torch.full((count,), second)))
    assert miss(before, after, twice, directions, torch.full((count,), first * second)) < 1e-3


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("step", [1e-4, 1e-2, 1.0])
def test_huge_and_tiny_factors_in_float32_are_steered_alike(scale, step):
    before, after = step_of(9, scale=scale, dtype=torch.float32)
    grown = Factors(*(old + step / 1e-2 * (new - old) for old, new in zip(parts(before), parts(after), strict=True)))
    rows = frame_of(9, 3)[0].float()
    rows = rows / rows.norm(dim=-1, keepdim=True)
    frame, gains = Frame.of(rows), torch.tensor([0.0, 0.5, 2.0])
    steered = steer_product(before, grown, frame.basis, frame.mixing(gains))
    assert miss(before, grown, steered, rows, gains) < 1e-3


def parts(factors):
    return factors.outer, factors.inner


def test_a_batch_is_steered_as_its_members_are():
    before, after = step_of(10, batch=(2, 3), dtype=torch.float32)
    frames = [frame_of(seed, 3, torch.float32) for seed in range(6)]
    basis = torch.stack([basis for _, basis, _ in frames]).view(2, 3, 3, WIDTH)
    mixing = torch.stack([mixing_of(factor, torch.tensor([0.0, 2.0, 1.0])) for *_, factor in frames]).view(2, 3, 3, 3)
    together = steer_product(before, after, basis, mixing)
    for i in range(2):
        for j in range(3):
            pair = [Factors(f.outer[i, j], f.inner[i, j]) for f in (before, after)]
            alone = steer_product(*pair, basis[i, j], mixing[i, j])
            torch.testing.assert_close(together.outer[i, j], alone.outer, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(together.inner[i, j], alone.inner, rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, WIDTH), st.lists(gains_from, min_size=WIDTH, max_size=WIDTH))
def test_more_directions_than_can_be_met_are_never_worse_than_editing_the_outer_factor_alone(seed, count, gains):
    before, after = step_of(seed)
    _, basis, factor = frame_of(seed, count)
    mixing = mixing_of(factor, torch.tensor(gains[:count]))
    steered = steer_product(before, after, basis, mixing)
    asked, found = (basis @ dense_change(before, new) for new in (after, steered))
    wanted = asked + mixing @ asked
    product = basis @ after.outer @ after.inner
    best_outer = (product + mixing @ asked) @ torch.linalg.pinv(after.inner) @ after.inner - product + asked
    assert (found - wanted).norm() <= (best_outer - wanted).norm() * 1.01 + 1e-6 * wanted.norm()
    assert torch.isfinite(steered.inner).all()


def test_a_product_change_does_not_cancel():
    before, after = step_of(11, step=1e-6, dtype=torch.float32)
    left, right = product_change(before, after)
    exact = dense_change(before, after)
    assert (left.double() @ right.double() - exact).norm() < 1e-6 * exact.norm()
    naive = (after.outer @ after.inner - before.outer @ before.inner).double()
    assert (naive - exact).norm() > 1e-3 * exact.norm()


@pytest.mark.parametrize(("inside", "other"), [(8, 19), (8, 3), (1, 1)])
@pytest.mark.parametrize("singular", [False, True])
def test_a_thin_matrix_has_the_same_energy_along_every_direction(inside, other, singular):
    random = torch.Generator().manual_seed(12)
    left, right = torch.randn(2, WIDTH, inside, generator=random), torch.randn(2, inside, other, generator=random)
    if singular:
        right[:, inside // 2 :] = 0
    few = thin(left, right)
    assert few.shape == (2, WIDTH, min(inside, other))
    bases = torch.eye(WIDTH)[None]
    for one, whole in zip(few, left @ right, strict=True):
        torch.testing.assert_close(energies(one, bases), energies(whole, bases), rtol=1e-5, atol=1e-9)
