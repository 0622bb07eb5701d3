"""The kernels on a CUDA device: what only a device shows. Run with `make test-gpu`."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from interptrain import ConceptBank, suppress
from interptrain.callbacks.lightning import ConceptSteering
from interptrain.projection import Backend
from interptrain.projection.cuda import CudaRunner
from interptrain.projection.kernels import KernelProjector
from tests.helpers.matrices import AXES, expected, matrix
from tests.helpers.models import HOOK, WIDTH, Tuning, llama, loader, lora, weights
from tests.helpers.models import trainer as quiet_trainer

pytestmark = pytest.mark.gpu

HALF_ULP = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
# The tensor cores' sums are not rounded to nearest at every addition: up to a few 1e-6 of the largest coefficient.
SUMS = {torch.float32: 1e-6, torch.bfloat16: 1e-5, torch.float16: 1e-5}


@pytest.fixture
def projector():
    return KernelProjector(CudaRunner(torch.device("cuda")), strict=True)


def on_device(each):
    """The same matrix on the device, lying there as it does here."""

    def moved(view):
        if view is None:
            return None
        storage = torch.empty_strided(view.shape, view.stride(), dtype=view.dtype, device="cuda")
        return storage.copy_(view)

    mixing = None if each.mixing is None else each.mixing.cuda()
    return replace(each, columns=moved(each.columns), basis=each.basis.cuda(), mixing=mixing, before=moved(each.before))


def cases(dtype, directions, difference=False):
    return [
        matrix(number, 4096, other, directions, axis=axis, dtype=dtype, difference=difference, padding=8)
        for number, other in enumerate((16, 40, 1000))
        for axis in AXES
    ]


@pytest.mark.parametrize("difference", [False, True])
@pytest.mark.parametrize("directions", [1, 3, 8, 16, 17, 64, 100])
@pytest.mark.parametrize("dtype", HALF_ULP)
def test_reading_and_steering_equal_float64(projector, dtype, directions, difference):
    here = cases(dtype, directions, difference)
    answers = [expected(each, rounded=True) for each in here]
    there = [on_device(each) for each in here]
    sums = projector.read(there)
    for number, answer in enumerate(answers):
        largest = answer.energy.max()
        got = sums.energy[number, :directions].cpu().double()
        np.testing.assert_allclose(got, answer.energy, rtol=0, atol=SUMS[dtype] * largest)
        assert float(sums.total[number]) == pytest.approx(answer.total, rel=1e-6)
    projector.steer_(there)
    stages = 1 if directions <= 64 else 3  # each rounds the output, at sizes in between that the end does not show
    for each, answer in zip(there, answers, strict=True):
        largest, size = np.abs(answer.steered).max(), np.abs(answer.steered)
        rounded = HALF_ULP[dtype] * (1.01 * size if stages == 1 else stages * largest)
        assert (np.abs(each.columns.cpu().double().numpy() - answer.steered) <= SUMS[dtype] * largest + rounded).all()


@pytest.mark.parametrize("dtype", HALF_ULP)
def test_twice_the_same_gives_the_same_bits(projector, dtype):
    runs = []
    for _ in range(2):
        there = [on_device(each) for each in cases(dtype, 16)]
        sums = projector.read(there)
        projector.steer_(there)
        runs.append([*sums, *(each.columns for each in there)])
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", HALF_ULP)
def test_what_is_not_finite_stays_in_its_column(projector, dtype, bad):
    each = on_device(matrix(0, 4096, 64, 5, dtype=dtype))
    each.columns[100, 7] = bad
    before = each.columns.clone()
    projector.steer_([each])
    assert torch.equal(each.columns[:, 7].nan_to_num(3.0), before[:, 7].nan_to_num(3.0))
    others = [column for column in range(64) if column != 7]
    assert torch.isfinite(each.columns[:, others]).all()
    assert not torch.equal(each.columns[:, others], before[:, others])


def test_work_is_ordered_on_the_side_stream_that_is_current(projector):
    here = matrix(0, 4096, 4096, 16, gains=torch.zeros(16))
    answer = expected(here)
    there = on_device(here)
    source = there.columns.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        projector.steer_([on_device(here)])  # compiles and plans, which would outlast the sleep
        there.columns.zero_()
        torch.cuda._sleep(50_000_000)  # what comes next must wait for this stream, not for the default one
        there.columns.copy_(source)
        projector.steer_([there])
    torch.cuda.current_stream().wait_stream(stream)
    np.testing.assert_allclose(there.columns.cpu().double(), answer.steered, atol=1e-5)


def test_a_captured_step_is_replayed_and_an_unprepared_one_is_refused(projector):
    fixed = [on_device(matrix(number, 4096, 64, 8, axis=axis)) for number, axis in enumerate(AXES)]
    start = [each.columns.clone() for each in fixed]
    projector.steer_(fixed)  # compiles, loads, uploads the tables
    once = [each.columns.clone() for each in fixed]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        projector.steer_(fixed)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        projector.steer_(fixed)
    for each, begun in zip(fixed, start, strict=True):
        each.columns.copy_(begun)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(each.columns, wanted) for each, wanted in zip(fixed, once, strict=True))
    fresh = KernelProjector(CudaRunner(torch.device("cuda")))
    with (
        pytest.raises(RuntimeError, match="Run the same step once before the capture"),
        torch.cuda.graph(torch.cuda.CUDAGraph(), stream=side),
    ):
        fresh.steer_(fixed)


def test_gradients_that_move_every_step_are_followed(projector):
    here = [matrix(number, 4096, 16, 8, axis=axis) for number, axis in enumerate(AXES)]
    kept = []
    for _ in range(20):
        there = [on_device(each) for each in here]
        kept.append(there)  # so that every round has other addresses
        projector.steer_(there)
    for there in kept:
        for each, original in zip(there, here, strict=True):
            np.testing.assert_allclose(each.columns.cpu().double(), expected(original).steered, atol=1e-5)


@pytest.mark.parametrize("where", ["gradient", "update"])
@pytest.mark.parametrize("build", [llama, lambda: lora(llama())], ids=["full", "lora"])
def test_a_lightning_run_on_the_kernels_equals_one_on_torch(where, build, tmp_path):
    generator = torch.Generator().manual_seed(0)
    bank = ConceptBank.from_directions({"pirate": torch.randn(3, WIDTH, generator=generator)}, hook=HOOK)
    ends = {}
    for backend in ("cuda", "torch"):
        module = Tuning(build())
        callback = ConceptSteering(bank, suppress("pirate"), where=where, backend=backend, summary=False)
        quiet_trainer(tmp_path, callback, accelerator="gpu").fit(module, loader())
        ends[backend] = weights(module.cpu())
    for name, weight in ends["torch"].items():
        torch.testing.assert_close(ends["cuda"][name], weight, rtol=1e-3, atol=1e-4)


def test_a_thread_that_has_done_nothing_on_the_device_can_steer(projector):
    here = matrix(0, 4096, 16, 8)
    there = [on_device(here), on_device(here)]
    projector.steer_(there[:1])
    with ThreadPoolExecutor(1) as pool:
        pool.submit(projector.steer_, there[1:]).result()
    assert torch.equal(there[0].columns, there[1].columns)


def test_auto_takes_the_kernels_and_says_so():
    backend = Backend("auto")
    assert isinstance(backend.on(torch.device("cuda")), KernelProjector)
    assert backend.explained(torch.device("cuda")) == "the CUDA kernels"
