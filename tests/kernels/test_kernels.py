"""The kernels' source on the CPU against float64: every type, axis, width and order of the threads."""

import gc
import weakref

import numpy as np
import pytest
import torch

from interptrain.projection import Frame, Matrix
from interptrain.projection.grouped import TorchProjector
from interptrain.projection.kernels import PLANS, KernelProjector
from tests.helpers.emulated import EmulatedRunner
from tests.helpers.emulator import ORDERS
from tests.helpers.matrices import AXES, expected, fresh, matrix

pytestmark = pytest.mark.emulated

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HALF_ULP = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # relative, of the output's rounding
FLOAT32 = 1e-6  # of the largest element, or of the largest figure


def matrices(dtype, directions, *, difference=False, padding=0, seed=0, others=(0, 1, 5, 24, 90)):
    """Both axes, tiles that are not full, and what d_model leaves over of a block's stride."""
    word = 4 if dtype == torch.float32 else 8
    d_model = 260 if dtype == torch.float32 else 288
    return [
        matrix(
            seed + number, d_model, other if axis == "readers" else -(-other // word) * word, directions, axis=axis,
            dtype=dtype, padding=padding * word, difference=difference,
        )
        for number, other in enumerate(others)
        for axis in AXES
    ]  # fmt: skip


def check_sums(sums, found):
    for number, each in enumerate(found):
        answer, count = expected(each, rounded=True), len(each.basis)
        largest = max(answer.energy.max(initial=0.0), 1e-30)
        np.testing.assert_allclose(sums.energy[number, :count], answer.energy, rtol=0, atol=FLOAT32 * largest)
        assert not sums.energy[number, count:].any()
        # a signed sum may cancel: its rounding is that of the coefficients it adds, at most sqrt(n) times their norm
        bound = np.sqrt(max(largest, 1e-30) * max(each.columns.shape[1], 1))
        np.testing.assert_allclose(sums.signed[number, :count], answer.signed, rtol=0, atol=FLOAT32 * bound)
        assert float(sums.total[number]) == pytest.approx(answer.total, rel=FLOAT32)


def check_steered(found, answers, roundings=1):
    for each, answer in zip(found, answers, strict=True):
        got, half = each.columns.double().numpy(), HALF_ULP[each.columns.dtype]
        largest = np.abs(answer.steered).max(initial=0.0)
        # the correction is within 1e-6 of the largest element; then the output is rounded once
        allowed = FLOAT32 * largest + half * roundings * (np.abs(answer.steered) + FLOAT32 * largest)
        wrong = np.abs(got - answer.steered) > allowed
        assert not wrong.any(), f"{wrong.sum()} of {wrong.size}, worst {np.abs(got - answer.steered).max():.2e}"


@pytest.mark.parametrize("difference", [False, True])
@pytest.mark.parametrize("directions", [1, 3, 8, 16, 17, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_reading_and_steering_equal_float64(dtype, directions, difference):
    found = matrices(dtype, directions, difference=difference, padding=directions % 2)
    answers = [expected(each, rounded=True) for each in found]
    projector = KernelProjector(EmulatedRunner(), strict=True)
    before = [each.columns.clone() for each in found]
    check_sums(projector.read(found), found)
    assert all(torch.equal(each.columns, old) for each, old in zip(found, before, strict=True)), "reading wrote"
    projector.steer_(found)
    check_steered(found, answers)


@pytest.mark.parametrize("directions", [3, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_order_of_the_threads_gives_the_same_bits(dtype, directions):
    runs = []
    for order in ORDERS:
        found = matrices(dtype, directions, others=(5, 70), difference=True)
        projector = KernelProjector(EmulatedRunner(order), strict=True)
        sums = projector.read(found)
        projector.steer_(found)
        runs.append([*sums, *(each.columns for each in found)])
    for run in runs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernels_and_the_torch_path_agree(dtype):
    found = matrices(dtype, 5, others=(1, 5, 24, 90))
    others = [fresh(each) for each in found]
    KernelProjector(EmulatedRunner(), strict=True).steer_(found)
    TorchProjector().steer_(others)
    # the kernels' 16-bit directions are rounded, the torch path's are not: the two differ by that and by one output ulp
    tolerance = 1e-6 if dtype == torch.float32 else 4 * HALF_ULP[dtype]
    for one, other in zip(found, others, strict=True):
        largest = float(other.columns.float().abs().max())
        torch.testing.assert_close(one.columns.float(), other.columns.float(), rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_removed_component_is_gone_to_the_rounding_of_the_output(dtype):
    none = torch.zeros(8)
    found = [matrix(number, 288, 64, 8, axis=axis, dtype=dtype, gains=none) for number, axis in enumerate(AXES)]
    before = [np.sqrt(expected(each, rounded=True).energy.sum()) for each in found]
    KernelProjector(EmulatedRunner(), strict=True).steer_(found)
    for each, old in zip(found, before, strict=True):
        left = np.sqrt(expected(each, rounded=True).energy.sum()) / old
        assert left < max(HALF_ULP[dtype] / np.sqrt(3), FLOAT32)  # uniform rounding errors: half an ulp over root three


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_is_reported_kept_and_not_spread(dtype, bad):
    found = matrices(dtype, 3, others=(24,))
    for each in found:
        each.columns[17, 9] = bad
        each.columns[200, 2] = bad
    before = [each.columns.clone() for each in found]
    answers = [expected(each, rounded=True) for each in found]
    projector = KernelProjector(EmulatedRunner(), strict=True)
    assert not torch.isfinite(projector.read(found).total).any()
    projector.steer_(found)
    for each, old, answer in zip(found, before, answers, strict=True):
        for column in (2, 9):
            assert torch.equal(each.columns[:, column].nan_to_num(7.0), old[:, column].nan_to_num(7.0))
        kept = [column for column in range(24) if column not in (2, 9)]
        assert torch.isfinite(each.columns[:, kept]).all()
        largest = np.abs(answer.steered[:, kept]).max()
        off = np.abs(each.columns.double().numpy()[:, kept] - answer.steered[:, kept])
        assert off.max() <= (FLOAT32 + HALF_ULP[dtype]) * largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gain_one_changes_no_value(dtype):
    found = [matrix(0, 256, 24, 3, axis=axis, dtype=dtype, gains=torch.ones(3)) for axis in AXES]
    before = [each.columns.clone() for each in found]
    KernelProjector(EmulatedRunner(), strict=True).steer_(found)
    assert all(torch.equal(each.columns, old) for each, old in zip(found, before, strict=True))


@pytest.mark.parametrize("axis", AXES)
def test_nothing_beside_a_padded_view_is_written(axis):
    each = matrix(0, 64, 12, 3, axis=axis, padding=4)
    storage = each.columns.mT._base if axis == "readers" else each.columns._base
    width = 64 if axis == "readers" else 12
    outside = storage[:, width:].clone()
    KernelProjector(EmulatedRunner(), strict=True).steer_([each])
    assert torch.equal(storage[:, width:], outside)


@pytest.mark.parametrize("difference", [False, True])
def test_more_than_64_directions_are_read_and_steered_in_chunks(difference):
    found = [matrix(n, 256, 24, 150, axis=axis, difference=difference) for n, axis in enumerate(AXES)]
    answers = [expected(each) for each in found]
    projector = KernelProjector(EmulatedRunner(), strict=True)
    check_sums(projector.read(found), found)
    projector.steer_(found)
    for each, answer in zip(found, answers, strict=True):
        np.testing.assert_allclose(each.columns.double(), answer.steered, atol=1e-5 * np.abs(answer.steered).max())


def test_more_than_64_directions_under_a_ridge_go_to_torch_or_are_refused():
    rows = torch.randn(80, 256)
    frame = Frame.of(rows / rows.norm(dim=-1, keepdim=True), ridge=1e-2)
    each = matrix(0, 256, 24, 80, frame=frame)
    answer = expected(each)
    with pytest.raises(ValueError, match="80 directions under a ridge cannot be steered 64 at a time"):
        KernelProjector(EmulatedRunner(), strict=True).steer_([each])
    runner = EmulatedRunner()
    KernelProjector(runner).steer_([each])
    assert not runner.launched
    np.testing.assert_allclose(each.columns.double(), answer.steered, atol=1e-4)


def test_a_step_is_one_launch_an_axis_and_one_for_the_sums():
    runner = EmulatedRunner()
    projector = KernelProjector(runner, strict=True)
    found = matrices(torch.bfloat16, 3)
    projector.read(found)
    assert sorted(runner.launched) == ["finish", "readers_32", "writers_32"]
    runner.launched.clear()
    projector.steer_(found)
    assert sorted(runner.launched) == ["readers_32", "writers_32"]


def test_narrow_matrices_take_narrow_tiles():
    runner = EmulatedRunner()
    KernelProjector(runner, strict=True).steer_([matrix(0, 256, 16, 3, axis=a, dtype=torch.float16) for a in AXES])
    assert sorted(runner.launched) == ["readers_16", "writers_16"]


def test_tables_are_uploaded_again_only_when_an_address_has_changed():
    runner = EmulatedRunner()
    projector = KernelProjector(runner, strict=True)
    found = matrices(torch.float32, 3)
    projector.steer_(found)
    first = runner.uploads
    projector.steer_(found)
    assert runner.uploads == first
    moved = [fresh(each) for each in found]
    answers = [expected(each) for each in moved]
    projector.steer_(moved)
    assert runner.uploads == first + 1  # the addresses; tiles and directions are as they were
    check_steered(moved, answers)


def test_new_directions_and_new_gains_are_taken_up():
    projector = KernelProjector(EmulatedRunner(), strict=True)
    found = matrices(torch.float32, 3)
    projector.steer_(found)
    for seed in (1, 2):
        others = matrices(torch.float32, 3, seed=seed)
        found = [Matrix(fresh(a).columns, b.basis, b.mixing) for a, b in zip(found, others, strict=True)]
        answers = [expected(each) for each in found]
        projector.steer_(found)
        check_steered(found, answers)


UNFIT = {
    "float64": (lambda: matrix(0, 64, 8, 3, dtype=torch.float64), "torch.float64 is none of"),
    "unaligned": (lambda: matrix(0, 64, 8, 3, padding=1), "not aligned to 16 bytes"),
    "odd": (lambda: matrix(0, 64, 6, 3, padding=2), "6 columns of 4 bytes do not fill 16-byte words"),
    "narrow": (lambda: matrix(0, 40, 8, 3, dtype=torch.bfloat16), "40 is no multiple of 16"),
    "scattered": (lambda: Matrix(torch.randn(64, 16)[:, ::2], torch.eye(64)[:3], -torch.eye(3)), "neither axis"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_matrix_that_no_kernel_takes_is_named_or_left_to_torch(name):
    make, reason = UNFIT[name]
    with pytest.raises(ValueError, match=reason):
        KernelProjector(EmulatedRunner(), strict=True).steer_([make()])
    found = [make(), *matrices(torch.float32, 3, others=(8,))]
    answers = [expected(each, rounded=each.columns.dtype == torch.float32) for each in found]
    runner = EmulatedRunner()
    projector = KernelProjector(runner)
    sums = projector.read(found)
    assert float(sums.total[0]) == pytest.approx(answers[0].total, rel=1e-5)
    check_sums(type(sums)(*(each[1:] for each in sums)), found[1:])
    projector.steer_(found)
    assert any(kernel.startswith("readers") for kernel in runner.launched)
    np.testing.assert_allclose(found[0].columns.double(), answers[0].steered, atol=2e-2 if name == "narrow" else 1e-5)
    check_steered(found[1:], answers[1:])


def test_readings_of_other_matrices_in_between_cost_no_new_tables():
    runner = EmulatedRunner()
    projector = KernelProjector(runner, strict=True)
    found, tokens = matrices(torch.float32, 3), [matrix(99, 64, 50, 5, axis="readers")]
    uploads = []
    for _ in range(2):
        projector.read(tokens)
        projector.read(found)
        projector.steer_(found)
        uploads.append(runner.uploads)
    assert uploads[0] == uploads[1] > 0


def test_ever_new_numbers_of_tokens_do_not_pile_up():
    projector = KernelProjector(EmulatedRunner(), strict=True)
    for tokens in range(1, 40):
        each = matrix(tokens, 64, tokens, 2, axis="readers")
        check_sums(projector.read([each]), [each])
    assert len(projector._plans) == PLANS


def test_a_plan_keeps_no_gradient_alive():
    projector = KernelProjector(EmulatedRunner(), strict=True)
    frame = matrix(0, 64, 12, 3)
    gone = []
    for seed in range(3):
        each = Matrix(matrix(seed, 64, 12, 3, difference=True).columns, frame.basis, frame.mixing)
        projector.read([each])
        projector.steer_([each])
        gone.append(weakref.ref(each.columns))
        del each
    gc.collect()
    assert [reference() for reference in gone] == [None] * 3


def test_16_bit_chunks_round_once_each():
    for dtype in (torch.bfloat16, torch.float16):
        found = [matrix(number, 288, 24, 100, axis=axis, dtype=dtype) for number, axis in enumerate(AXES)]
        answers = [expected(each, rounded=True) for each in found]
        KernelProjector(EmulatedRunner(), strict=True).steer_(found)
        for each, answer in zip(found, answers, strict=True):
            largest = np.abs(answer.steered).max()
            assert np.abs(each.columns.double().numpy() - answer.steered).max() <= 3 * HALF_ULP[dtype] * largest


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("size", [6e3, 6e4, 1e-3, 2e-5])
def test_float16_keeps_its_range_and_its_small_numbers(axis, size):
    ones = torch.ones(1, 288) / 288**0.5
    frame = Frame.of(ones)
    each = matrix(0, 288, 24, 1, axis=axis, dtype=torch.float16, frame=frame, gains=torch.zeros(1))
    each.columns.copy_(size * (1 + 0.05 * each.columns.clamp(-1, 1)))
    answer = expected(each, rounded=True)
    KernelProjector(EmulatedRunner(), strict=True).steer_([each])
    got = each.columns.double().numpy()
    assert np.isfinite(got).all()
    smallest = 2.0**-25  # half the distance between the smallest float16 numbers
    allowed = np.maximum(HALF_ULP[torch.float16] * np.abs(answer.steered), smallest) * 1.02 + FLOAT32 * size
    assert (np.abs(got - answer.steered) <= allowed).all()
