"""The emulator itself: it computes what a device would, and it says where a kernel goes wrong."""

import ctypes
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from tests.helpers import emulator
from tests.helpers.emulator import ORDERS, Emulated, EmulationError

pytestmark = pytest.mark.emulated


def kernel(body, parameters="float *out", macros=None):
    """A kernel `k`; its body starts on line 2."""
    return Emulated(f'extern "C" __global__ void k({parameters}) {{\n{body}\n}}', macros or {}, ["k"])


def run(body, *arguments, threads=32, shared_bytes=0, order="ascending", parameters="float *out"):
    kernel(body, parameters).launch("k", 1, threads, shared_bytes, *arguments, order=order)


# ---- barriers and shuffles ---------------------------------------------------------------------------------------

REDUCTION = """
extern "C" __global__ void reduce(const float *values, float *sums, int count) {
  float *partial = host_shared();
  float sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) sum += values[i];
  for (int lane = 16; lane; lane >>= 1) sum += SHUFFLE(0xffffffffu, sum, lane);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < blockDim.x / 32; ++warp) sum += partial[warp];
    sums[blockIdx.x] = sum;
  }
}
"""


def reduced(source, values, order="ascending", *, grid=7, seed=0):
    sums = np.zeros(grid, np.float32)
    shared_bytes = 4 * 256 // 32
    Emulated(source, {}, ["reduce"]).launch(
        "reduce", grid, 256, shared_bytes, values, sums, np.int32(len(values)), order=order, seed=seed
    )
    return sums


def reduced_by_numpy(values, grid=7):
    """The same additions in the same order, in float32."""
    padded = np.zeros(-(-len(values) // (grid * 256)) * grid * 256, np.float32)
    padded[: len(values)] = values
    lanes = np.zeros((grid, 256 // 32, 32), np.float32)
    for turn in padded.reshape(-1, grid, 256 // 32, 32):
        lanes = lanes + turn
    for half in (16, 8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
    sums = np.zeros(grid, np.float32)
    for warp in range(lanes.shape[1]):
        sums = sums + lanes[:, warp, 0]
    return sums


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shuffle", ["__shfl_xor_sync", "__shfl_down_sync"])
def test_a_block_reduction_has_the_bits_of_numpy_in_every_order(order, shuffle):
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    sums = reduced(REDUCTION.replace("SHUFFLE", shuffle), values, order)
    np.testing.assert_array_equal(sums.view(np.uint32), reduced_by_numpy(values).view(np.uint32))
    assert np.abs(sums).min() > 0


def test_a_reduction_without_its_barrier_is_noticed_in_some_order():
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    source = REDUCTION.replace("SHUFFLE", "__shfl_xor_sync")
    broken = source.replace("__syncthreads();", "")
    assert broken != source
    wrong = [order for order in ORDERS if not np.array_equal(reduced(broken, values, order), reduced_by_numpy(values))]
    assert "ascending" in wrong  # thread 0 goes on before the other warps have begun


def test_every_shuffle_reads_the_lane_that_cuda_says():
    body = """
    const int lane = threadIdx.x;
    out[lane] = __shfl_sync(0xffffffffu, lane, lane * 5 + 3);
    out[32 + lane] = __shfl_xor_sync(0xffffffffu, lane, 6);
    out[64 + lane] = __shfl_down_sync(0xffffffffu, lane, 3);
    out[96 + lane] = __shfl_up_sync(0xffffffffu, lane, 3);
    out[128 + lane] = __ballot_sync(0xffffffffu, lane % 3 == 0);
    """
    lanes = np.arange(32)
    multiples = sum(1 << lane for lane in range(0, 32, 3))
    expected = [
        (lanes * 5 + 3) % 32,
        lanes ^ 6,
        np.where(lanes + 3 < 32, lanes + 3, lanes),
        np.where(lanes >= 3, lanes - 3, lanes),
        np.full(32, multiples),
    ]
    for order in ORDERS:
        out = np.zeros((5, 32), np.uint32)
        run(body, out, order=order, parameters="unsigned *out")
        np.testing.assert_array_equal(out, expected)


def test_shuffles_carry_every_type():
    body = """
    wide[threadIdx.x] = __shfl_sync(0xffffffffu, 1.0 / (1 + threadIdx.x), 7);
    whole[threadIdx.x] = __shfl_xor_sync(0xffffffffu, (long long)threadIdx.x << 40, 31);
    """
    wide, whole = np.zeros(32), np.zeros(32, np.int64)
    run(body, wide, whole, parameters="double *wide, long long *whole")
    assert (wide == 1 / 8).all()
    np.testing.assert_array_equal(whole, np.arange(32)[::-1] << 40)


def test_parts_of_a_warp_meet_apart():
    body = """
    const bool low = threadIdx.x < 8;
    int sum = threadIdx.x;
    if (low) for (int bit = 1; bit < 8; bit *= 2) sum += __shfl_xor_sync(0xffu, sum, bit);
    else sum = __shfl_sync(0xffffff00u, sum, 9);
    __syncwarp();
    out[threadIdx.x] = sum;
    """
    for order in ORDERS:
        out = np.zeros(32, np.float32)
        run(body, out, order=order)
        np.testing.assert_array_equal(out, [28] * 8 + [9] * 24)


def test_syncwarp_separates_a_write_from_a_read():
    body = "host_shared()[threadIdx.x] = threadIdx.x; {} out[threadIdx.x] = host_shared()[(threadIdx.x + 1) % 32];"
    expected = (np.arange(32) + 1) % 32
    wrong = []
    for order in ORDERS:
        with_it, without = np.zeros((2, 32), np.float32)
        run(body.format("__syncwarp();"), with_it, order=order, shared_bytes=128)
        np.testing.assert_array_equal(with_it, expected)
        run(body.format(""), without, order=order, shared_bytes=128)
        wrong.append(not np.array_equal(without, expected))
    assert all(wrong)


def test_threads_that_have_ended_are_not_waited_for():
    out = np.zeros(64, np.float32)
    run("if (threadIdx.x % 2) return; __syncthreads(); out[threadIdx.x] = 1;", out, threads=64)
    np.testing.assert_array_equal(out, np.tile([1, 0], 32))


def test_the_last_thread_to_end_opens_the_barrier():
    body = "if (threadIdx.x == 63) { __syncwarp(1u << 31); return; } __syncthreads(); out[threadIdx.x] = 1;"
    for order in ORDERS:
        out = np.zeros(64, np.float32)
        run(body, out, threads=64, order=order)
        assert out.sum() == 63


# ---- orders ------------------------------------------------------------------------------------------------------

TRACE = """
out[64 * blockIdx.x + threadIdx.x] = (*count)++;
__syncthreads();
out[64 * (gridDim.x + blockIdx.x) + threadIdx.x] = (*count)++;
"""


def trace(order, seed=0):
    """When each thread of 3 blocks of 64 ran, before and after a barrier: [round, block, thread]."""
    out, count = np.zeros((2, 3, 64), np.int32), np.zeros(1, np.int32)
    kernel(TRACE, "int *out, int *count").launch("k", 3, 64, 0, out, count, order=order, seed=seed)
    assert sorted(out.ravel()) == list(range(384))
    return out


def test_ascending_and_descending_are_each_others_reverse():
    up = trace("ascending")
    np.testing.assert_array_equal(up[0], 128 * np.arange(3)[:, None] + np.arange(64))
    np.testing.assert_array_equal(up[1], 128 * np.arange(3)[:, None] + np.arange(64) + 64)
    np.testing.assert_array_equal(trace("descending"), up[:, ::-1, ::-1])


def test_a_shuffle_differs_between_rounds_blocks_and_seeds_and_not_between_runs():
    one = trace("shuffled", seed=1)
    np.testing.assert_array_equal(one, trace("shuffled", seed=1))
    ranks = one.argsort(axis=2).reshape(6, 64)
    assert len({tuple(rank) for rank in ranks}) == 6
    assert not np.array_equal(one, trace("shuffled", seed=2))
    starts = {tuple(trace("shuffled", seed=seed)[0].min(axis=1).argsort()) for seed in range(12)}
    assert len(starts) > 3, "blocks are hardly shuffled"


# ---- memory ------------------------------------------------------------------------------------------------------


def test_dynamic_shared_memory_starts_as_nan_in_every_block():
    body = """
    float *all = host_shared();
    out[blockIdx.x * 32 + threadIdx.x] = all[threadIdx.x];
    halves[blockIdx.x * 32 + threadIdx.x] = host_from_bf16(((unsigned short *)all)[threadIdx.x]);
    __syncthreads();
    all[threadIdx.x] = 1;
    """
    out, halves = np.zeros((2, 4, 32), np.float32)
    kernel(body, "float *out, float *halves").launch("k", 4, 32, 128, out, halves)
    assert np.isnan(out).all()
    assert np.isnan(halves).all()


def test_dynamic_shared_memory_is_aligned_to_128_bytes():
    out = np.zeros(1, np.uint64)
    for shared_bytes in (0, 4, 100, 4096):
        run(
            "*out = (unsigned long long)host_shared();",
            out,
            shared_bytes=shared_bytes,
            parameters="unsigned long long *out",
        )
        assert out[0] % 128 == 0


def test_static_shared_memory_is_of_the_block():
    out = np.zeros(64, np.float32)
    run(
        "__shared__ float last; if (threadIdx.x == 5) last = 9; __syncthreads(); out[threadIdx.x] = last;",
        out,
        threads=64,
    )
    assert (out == 9).all()


def test_reads_behind_the_shared_memory_are_nan():
    out = np.zeros(2, np.float32)
    run("out[0] = host_shared()[-1]; out[1] = host_shared()[8];", out, shared_bytes=32, threads=1)
    assert np.isnan(out).all()


def test_many_blocks_and_several_launches_keep_apart():
    add = kernel("if (!threadIdx.x) out[blockIdx.x] += gridDim.x + 0.5f * blockDim.x;")
    out = np.zeros(3000, np.float32)
    for order in ORDERS:
        add.launch("k", 3000, 64, 0, out, order=order)
    add.launch("k", 10, 1024, 0, out)
    assert (out[10:] == 3 * 3032).all()
    assert (out[:10] == 3 * 3032 + 522).all()


def test_two_sources_do_not_share_what_they_name_alike():
    body = "__shared__ float kept; if (VALUE) kept = VALUE; *out = kept;"
    first, second = kernel(body, macros={"VALUE": 3}), kernel(body, macros={"VALUE": 0})
    out = np.zeros(2, np.float32)
    first.launch("k", 1, 1, 0, out[:1])
    second.launch("k", 1, 1, 0, out[1:])
    assert out.tolist() == [3, 0]


def test_two_host_threads_launch_at_once():
    values = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    source = REDUCTION.replace("SHUFFLE", "__shfl_xor_sync")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda order: reduced(source, values, order), [*ORDERS, *ORDERS]))
    assert all(np.array_equal(sums, reduced_by_numpy(values)) for sums in found)


# ---- what goes wrong ---------------------------------------------------------------------------------------------

WRONG = {
    # name: (body, from line 2; threads; what the message says)
    "different barriers": (
        "if (threadIdx.x < 16)\n__syncthreads();\nelse\n__syncthreads();",
        32,
        r"thread \d+, source.cu:(3|5) \(__syncthreads\): divergent barrier: \d+ of 32 threads wait at source.cu:(3|5)",
    ),
    "a barrier that one never reaches": (
        "if (threadIdx.x == 40)\n__syncwarp();\n__syncthreads();",
        64,
        r"thread 0, source.cu:4 \(__syncthreads\): deadlock: 63 of 64 threads wait here, "
        r"and thread 40 waits at source.cu:3 \(__syncwarp\)",
    ),
    "lanes that wait for each other": (
        "\n__syncwarp(threadIdx.x == 0 ? 0x3u : threadIdx.x == 1 ? 0x6u : 0x5u);",
        3,
        r"thread 0, source.cu:3 \(__syncwarp\): deadlock: all 3 threads wait here",
    ),
    "two collectives": (
        "if (threadIdx.x < 16)\n__syncwarp();\nelse\n__ballot_sync(0xffffffffu, 1);",
        32,
        r"thread \d+, source.cu:(3|5) \(.*\): divergent warp: lane \d+ waits for this lane at source.cu:(3|5)",
    ),
    "a lane outside its own mask": (
        "\n__syncwarp(0x7fffffffu);",
        32,
        r"thread 31, source.cu:3 \(__syncwarp\): lane 31 is not in its own mask 0x7fffffff",
    ),
    "a lane that has ended": (
        "if (threadIdx.x == 63) return;\nout[0] = __shfl_xor_sync(0xffffffffu, 1.f, 1);",
        64,
        r"source.cu:3 \(__shfl_xor_sync\): "
        r"(mask 0xffffffff names lane 31, which has ended|this thread has ended; lane \d+ waits)",
    ),
    "a lane that was never there": (
        "\n\nout[0] = __ballot_sync(0xffffffffu, 1);",
        40,
        r"thread \d+, source.cu:4 \(__ballot_sync\): mask 0xffffffff names lane 8, which .* is not in the block",
    ),
    "a read outside the mask": (
        "if (threadIdx.x < 16)\nout[0] = __shfl_sync(0xffffu, 1.f, threadIdx.x + 12);",
        32,
        r"thread 4, source.cu:3 \(__shfl_sync\): lane 4 reads lane 16, which is not in the mask 0x0000ffff",
    ),
    "a write behind the shared memory": (
        "host_shared()[threadIdx.x < 31 ? 0 : 16] = 1;\n__syncthreads();",
        32,
        r"thread 31, source.cu:3 \(__syncthreads\): before this, byte 64 of 64 bytes of .* was written",
    ),
    "a write far behind the shared memory": (
        "\n__syncthreads();\nhost_shared()[5000] = 1;",
        32,
        r"source.cu:3 \(__syncthreads\): in a block whose last barrier is this, byte 2000[0-3] of 64 bytes",
    ),
    "a write before the shared memory": (
        "if (threadIdx.x == 9) host_shared()[-1] = 2;\n__syncwarp();",
        32,
        r"thread 9, source.cu:3 \(__syncwarp\): before this, byte -\d of 64 bytes of dynamic shared memory was written",
    ),
    "a write at the end": (
        "__syncthreads();\nif (threadIdx.x == 9) host_shared()[16] = 2;",
        32,
        r"thread 9, source.cu:2 \(__syncthreads\): after this, byte 6\d of 64 bytes of .* was written",
    ),
    "an assumption that does not hold": (
        "out[0] = threadIdx.x;\n__builtin_assume(__isGlobal(host_shared() + threadIdx.x));",
        32,
        r"thread \d+, source.cu:3 \(__builtin_assume\): __isGlobal\(.*\) does not hold",
    ),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", WRONG)
def test_what_goes_wrong_is_named_with_its_line_and_a_launch_after_it_succeeds(name, order):
    body, threads, message = WRONG[name]
    broken, sound = kernel(body), kernel("__syncthreads(); out[threadIdx.x] = 1;")
    with pytest.raises(EmulationError, match=r"^k: block 0.*" + message):
        broken.launch("k", 1, threads, 64, np.zeros(64, np.float32), order=order)
    out = np.zeros(64, np.float32)
    sound.launch("k", 1, 64, 64, out, order=order)
    assert (out == 1).all()


def test_an_error_names_its_block_and_later_blocks_do_not_run():
    out = np.zeros(8, np.float32)
    with pytest.raises(EmulationError, match=r"block 5, thread 3, source.cu:2"):
        kernel("if (blockIdx.x == 5 && threadIdx.x == 3) __syncwarp(1);\nout[blockIdx.x] = 1;").launch(
            "k", 8, 32, 0, out
        )
    assert out.tolist() == [1, 1, 1, 1, 1, 1, 0, 0]


def test_a_line_directive_names_the_file():
    source = '#line 40 "part.cu"\nextern "C" __global__ void k() {\n__syncwarp(2);\n}'
    with pytest.raises(EmulationError, match=r"part.cu:41"):
        Emulated(source, {}, ["k"]).launch("k", 1, 1, 0)


def test_a_source_that_does_not_compile_is_an_error_with_its_line():
    with pytest.raises(EmulationError, match=r"source.cu:2.*'nowhere' was not declared"):
        kernel("nowhere = 1;")


def test_without_a_compiler_the_error_names_the_package(monkeypatch, tmp_path):
    emulator._compiler.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmulationError, match=r"there is no g\+\+.*Debian package g\+\+: apt-get install g\+\+"):
        kernel("out[0] = 1;")
    monkeypatch.undo()
    run("out[0] = 1;", np.zeros(1, np.float32))


MISFITS = {
    "too few": ([np.zeros(1, np.float32)], "1 arguments for 3 parameters"),
    "a float for an int": (
        [np.zeros(1, np.float32), np.float32(1), np.float64(2)],
        "argument 2 has kind 'f' and 4 bytes, its parameter 'i' and 4",
    ),
    "a wide int": (
        [np.zeros(1, np.float32), np.int64(1), np.float64(2)],
        "argument 2 has kind 'i' and 8 bytes, its parameter 'i' and 4",
    ),
    "an array for a number": (
        [np.zeros(1, np.float32), np.int32(1), np.zeros(1)],
        "argument 3 has kind 'p' and 8 bytes, its parameter 'f' and 8",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_arguments_that_do_not_fit_the_parameters_are_refused(name):
    arguments, message = MISFITS[name]
    with pytest.raises(EmulationError, match=re.escape(message)):
        run("", *arguments, parameters="float *out, int count, double factor")


def test_arguments_without_a_size_and_arrays_with_gaps_are_refused():
    with pytest.raises(TypeError, match="got int"):
        run("", 3, parameters="int count")
    with pytest.raises(ValueError, match="is not contiguous"):
        run("", np.zeros((4, 4), np.float32)[:, 1])
    with pytest.raises(ValueError, match="there is no kernel 'other' among k"):
        kernel("").launch("other", 1, 1, 0)


def test_arguments_arrive_as_they_were_given():
    body = "*whole = count + (long long)*(const float *)address; *real = half + fine + pair.x * pair.y;"
    parameters = "long long *whole, double *real, int count, const void *address, float half, double fine, float2 pair"
    whole, real, seven = np.zeros(1, np.int64), np.zeros(1), np.full(1, 7, np.float32)
    pair = np.array((2, 3), np.dtype([("x", np.float32), ("y", np.float32)]))[()]
    run(
        body, whole, real, np.int32(-3), np.uint64(seven.ctypes.data), np.float32(0.5), np.float64(1e-9), pair,
        threads=1, parameters=parameters,
    )  # fmt: skip
    assert whole[0] == 4
    assert real[0] == 0.5 + 1e-9 + 6


@pytest.mark.parametrize(("grid", "block"), [(0, 32), (1, 0), (1, 1025), (-1, 32)])
def test_a_launch_of_no_size_is_refused(grid, block):
    with pytest.raises(EmulationError, match=f"a launch of {grid} blocks of {block} threads"):
        kernel("out[0] = 1;").launch("k", grid, block, 0, np.zeros(1, np.float32))


def test_processes_that_compile_the_same_at_once_all_succeed(tmp_path):
    program = (
        "import numpy as np; from tests.helpers.emulator import Emulated;"
        'out = np.zeros(1, np.float32); Emulated("__global__ void k(float *out) { *out = 5; }", {}, ["k"])'
        '.launch("k", 1, 1, 0, out); assert out[0] == 5'
    )
    environment = {"PATH": emulator.os.environ["PATH"], "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen([sys.executable, "-c", program], env=environment) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    (folder,) = tmp_path.iterdir()
    assert [path.suffix for path in folder.iterdir()] == [".so"]


def test_a_folder_that_others_can_write_to_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(emulator.tempfile, "tempdir", str(tmp_path))
    emulator._folder().chmod(0o777)
    with pytest.raises(EmulationError, match="not a folder that only you can write to"):
        kernel("out[0] = 1;")


# ---- 16-bit numbers and the tensor core --------------------------------------------------------------------------

CONVERT = """
for (int i = threadIdx.x; i < count; i += blockDim.x) {
  stored[i] = host_to_TYPE(numbers[i]);
  back[i] = host_from_TYPE(stored[i]);
}
"""
TYPES = {"bf16": torch.bfloat16, "f16": torch.float16}


def awkward(dtype):
    """Every value of the type, the ties between neighbours, what lies just beside both, and random bits."""
    exact = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype).float().numpy()
    finite = np.unique(exact[np.isfinite(exact)]).astype(np.float64)
    ties = ((finite[:-1] + finite[1:]) / 2).astype(np.float32)
    edge = np.float32(finite[-1] + (finite[-1] - finite[-2]) / 2)  # from here on to infinity
    near = np.concatenate([exact, ties, [edge, -edge]]).astype(np.float32)
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        beside = [np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))]
    return np.concatenate([near, *beside, bits])


@pytest.mark.parametrize("name", TYPES)
def test_conversions_round_to_nearest_even_and_back(name):
    numbers = awkward(TYPES[name])
    stored, back = np.zeros(len(numbers), np.uint16), np.zeros(len(numbers), np.float32)
    parameters = "const float *numbers, unsigned short *stored, float *back, int count"
    run(CONVERT.replace("TYPE", name), numbers, stored, back, np.int32(len(numbers)), parameters=parameters)
    rounded = torch.from_numpy(numbers).to(TYPES[name])
    expected, nan = rounded.view(torch.int16).numpy().view(np.uint16), np.isnan(numbers)
    np.testing.assert_array_equal(stored[~nan], expected[~nan])
    np.testing.assert_array_equal(back.view(np.uint32)[~nan], rounded.float().numpy().view(np.uint32)[~nan])
    assert np.isnan(back[nan]).all()
    assert nan.sum() > 100
    assert np.isinf(back).sum() > np.isinf(numbers).sum()  # some overflowed


MMA = """
float sum[4];
unsigned left[4], right[2];
for (int n = 0; n < 4; ++n) sum[n] = c[4 * threadIdx.x + n];
for (int n = 0; n < 4; ++n) left[n] = a[4 * threadIdx.x + n];
for (int n = 0; n < 2; ++n) right[n] = b[2 * threadIdx.x + n];
host_mma_TYPE(sum, left, right);
for (int n = 0; n < 4; ++n) c[4 * threadIdx.x + n] = sum[n];
"""


def words(matrix, dtype):
    """Neighbours of the last axis as 16-bit numbers in one word, the first in the lower half."""
    bits = matrix.to(dtype).view(torch.int16).numpy().view(np.uint16).astype(np.uint32)
    return bits[..., 0::2] | bits[..., 1::2] << 16


def fragments(A, B, C, dtype):
    """[lane, register] of the three factors, by cutting them into quarters: lane = 4 * row + pair of columns."""
    a, b = words(A, dtype), words(B.T.contiguous(), dtype)  # [16, 8 words], [8, 8 words]
    quarters = [a[:8, :4], a[8:, :4], a[:8, 4:], a[8:, 4:]]
    c = C.numpy().reshape(2, 8, 4, 2).transpose(1, 2, 0, 3)  # [g, t, half of the rows, column of the pair]
    return (
        np.stack([quarter.ravel() for quarter in quarters], axis=1),
        np.stack([b[:, :4].ravel(), b[:, 4:].ravel()], axis=1),
        np.ascontiguousarray(c).reshape(32, 4),
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", TYPES)
def test_an_mma_is_the_float64_product_of_its_fragments_rounded_once(name, order):
    dtype, multiply = TYPES[name], kernel(MMA.replace("TYPE", name), "float *c, const unsigned *a, const unsigned *b")
    for seed in range(5):
        random = torch.Generator().manual_seed(seed)
        A, B = (torch.randn(shape, generator=random).to(dtype) for shape in ((16, 16), (16, 8)))
        C = torch.randn(16, 8, generator=random)
        a, b, c = fragments(A, B, C, dtype)
        multiply.launch("k", 1, 32, 0, c, a, b, order=order)
        got = c.reshape(8, 4, 2, 2).transpose(2, 0, 1, 3).reshape(16, 8)
        expected = C.double().numpy() + A.double().numpy() @ B.double().numpy()
        np.testing.assert_allclose(got, expected, rtol=2**-24 * 1.001, atol=1e-14)
        assert np.abs(expected - C.numpy()).min() > 1e-4  # no element of C is what it was


def test_an_mma_needs_the_whole_warp():
    body = """float c[4] = {}; unsigned a[4] = {}, b[2] = {};
    if (threadIdx.x == 9) return;
    host_mma_bf16(c, a, b);"""
    with pytest.raises(
        EmulationError, match=r"source.cu:4 \(host_mma_bf16\): (mask 0xffffffff names|this thread has ended)"
    ):
        run(body, np.zeros(1, np.float32))


def test_the_settings_are_laid_out_as_the_header_has_them():
    sizes = np.zeros(2, np.int32)
    run(
        "out[0] = sizeof(emulator::Settings); out[1] = sizeof(emulator::Argument);",
        sizes,
        threads=1,
        parameters="int *out",
    )
    assert sizes.tolist() == [ctypes.sizeof(emulator.Settings), ctypes.sizeof(emulator.Argument)]
