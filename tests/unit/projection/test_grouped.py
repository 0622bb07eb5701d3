"""The torch projector against float64: whatever is stacked with whatever."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interptrain.projection import Backend, Frame, Matrix, correct_
from interptrain.projection.grouped import SMALL, TorchProjector, workspace_bytes
from tests.helpers.matrices import AXES, expected, fresh, matrix

HALF_ULP = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}

shapes = st.tuples(
    st.integers(0, 2**16),
    st.sampled_from([8, 33]),
    st.sampled_from([0, 1, 3, 8]),
    st.sampled_from([1, 2, 5]),
    st.sampled_from(AXES),
    st.sampled_from(list(HALF_ULP)),
    st.sampled_from([0, 3]),
    st.booleans(),
)


def made(shape):
    seed, d_model, other, directions, axis, dtype, padding, difference = shape
    return matrix(seed, d_model, other, directions, axis=axis, dtype=dtype, padding=padding, difference=difference)


@settings(max_examples=60, deadline=None)
@given(st.lists(shapes, min_size=1, max_size=8))
def test_reading_and_steering_many_matrices_equals_float64_on_each(shapes):
    matrices = [made(shape) for shape in shapes for _ in range(2)]  # two of a kind, so that some are stacked
    answers = [expected(each) for each in matrices]
    projector = TorchProjector()
    sums = projector.read(matrices)
    for number, (each, answer) in enumerate(zip(matrices, answers, strict=True)):
        count, scale = len(each.basis), max(answer.total, 1e-12)
        np.testing.assert_allclose(sums.energy[number, :count].double(), answer.energy, rtol=1e-5, atol=1e-6 * scale)
        np.testing.assert_allclose(sums.signed[number, :count].double(), answer.signed, rtol=1e-4, atol=1e-5)
        assert not sums.energy[number, count:].any()
        assert float(sums.total[number]) == pytest.approx(answer.total, rel=1e-5)
    projector.steer_(matrices)
    for each, answer in zip(matrices, answers, strict=True):
        largest = np.abs(answer.steered).max(initial=1.0)
        tolerance = HALF_ULP[each.columns.dtype]
        np.testing.assert_allclose(each.columns.double(), answer.steered, rtol=tolerance, atol=4e-6 * largest)


def test_what_lies_between_the_rows_is_not_touched():
    storage = torch.randn(2, 16, 10)
    outside = storage[..., 7:].clone()
    frame = Frame.of(torch.eye(16)[:2])
    remove = frame.mixing(torch.zeros(2))
    TorchProjector().steer_([Matrix(each[:, :7], frame.basis, remove) for each in storage])
    assert not storage[:, :2, :7].any()
    assert torch.equal(storage[..., 7:], outside)


def test_stacked_and_single_matrices_are_steered_alike():
    many = [matrix(seed, 32, 4, 3) for seed in range(5)]
    single = [fresh(each) for each in many]
    TorchProjector().steer_(many)
    for each, alone in zip(many, single, strict=True):
        correct_(alone.columns, alone.basis, alone.mixing)
        torch.testing.assert_close(each.columns, alone.columns)


def test_large_and_float64_matrices_go_by_themselves_and_are_steered_all_the_same():
    wide = matrix(0, 64, SMALL // 64 + 1, 2)
    exact = matrix(1, 16, 3, 2, dtype=torch.float64)
    answers = [expected(wide), expected(exact)]
    TorchProjector().steer_([wide, exact])
    np.testing.assert_allclose(wide.columns.double(), answers[0].steered, atol=1e-4)
    np.testing.assert_allclose(exact.columns, answers[1].steered, atol=1e-5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("axis", AXES)
def test_one_column_that_is_not_finite_costs_no_other_its_edit(bad, axis):
    matrices = [matrix(seed, 16, 4, 3, axis=axis) for seed in range(3)]
    matrices[1].columns[5, 2] = bad
    before, answers = matrices[1].columns.clone(), [expected(each) for each in matrices]
    sums = TorchProjector().read(matrices)
    assert torch.isfinite(sums.total).tolist() == [True, False, True]
    TorchProjector().steer_(matrices)
    assert torch.equal(matrices[1].columns[:, 2].nan_to_num(7.0), before[:, 2].nan_to_num(7.0))
    for each, answer in zip(matrices, answers, strict=True):
        np.testing.assert_allclose(each.columns.double(), answer.steered, atol=1e-5)


def test_gain_one_changes_no_value():
    matrices = [matrix(seed, 16, 4, 3, gains=torch.ones(3), dtype=torch.bfloat16) for seed in range(3)]
    before = [each.columns.clone() for each in matrices]
    TorchProjector().steer_(matrices)
    assert all(torch.equal(each.columns, old) for each, old in zip(matrices, before, strict=True))


def test_a_projector_follows_new_directions_gains_and_gradients():
    projector = TorchProjector()
    for seed in range(3):
        matrices = [matrix(10 * seed + number, 16, 4, 3) for number in range(3)]
        answers = [expected(each) for each in matrices]
        projector.steer_(matrices)
        for each, answer in zip(matrices, answers, strict=True):
            np.testing.assert_allclose(each.columns.double(), answer.steered, atol=1e-5)


def test_matrices_without_a_mixing_are_only_read():
    each = matrix(0, 16, 4, 3)
    before = each.columns.clone()
    TorchProjector().steer_([Matrix(each.columns, each.basis)])
    assert torch.equal(each.columns, before)


def test_nothing_to_read_is_nothing():
    sums = TorchProjector().read([])
    assert sums.energy.shape == (0, 0)
    assert sums.total.shape == (0,)


def test_an_unknown_backend_names_the_known_ones():
    with pytest.raises(ValueError, match="one of auto, torch, cuda, found 'triton'"):
        Backend("triton")


def test_the_kernels_by_name_on_a_device_without_them_are_an_error_that_says_why():
    with pytest.raises(RuntimeError, match='backend="cuda" cannot run: cpu is no CUDA device'):
        Backend("cuda").on(torch.device("cpu"))


def test_auto_takes_torch_on_the_cpu_and_says_why():
    backend = Backend("auto")
    assert isinstance(backend.on(torch.device("cpu")), TorchProjector)
    assert backend.on(torch.device("cpu")) is backend.on(torch.device("cpu"))
    assert backend.explained(torch.device("cpu")) == "torch, as cpu is no CUDA device"


def test_the_workspace_is_one_and_as_large_as_was_said():
    projector = TorchProjector()
    matrices = [matrix(seed, 16, other, 3, difference=True) for other in (4, 8) for seed in range(3)]
    for _ in range(2):
        projector.read(matrices)
        projector.steer_(matrices)
    held = [workspace.nbytes for workspace in projector._workspaces.values()]
    assert held == [workspace_bytes([each.columns for each in matrices])] == [2 * 3 * 16 * 8 * 4]
