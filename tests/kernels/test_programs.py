"""Every program that ships compiles for every architecture and keeps its accumulators in registers."""

import sys

import pytest
import torch

from interptrain.projection import nvrtc
from interptrain.projection.tables import PADDED, Program

pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="there is no NVRTC for macOS")

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
slow = pytest.mark.slow
PROGRAMS = [
    Program(dtype, directions, difference)
    for dtype, sizes in PADDED.items()
    for directions in sizes
    for difference in (False, True)
]
COMPILED = [  # of each type the program with the most registers on every architecture; all others on one, or slow
    pytest.param(program, arch, id="-".join(map(str, [*program.macros().values(), arch])), marks=() if fast else slow)
    for program in PROGRAMS
    for arch in ARCHITECTURES
    for fast in [arch == "sm_90" or (program.directions == max(PADDED[program.dtype]) and program.difference)]
]


@pytest.mark.parametrize(("program", "arch"), COMPILED)
def test_a_program_compiles_without_spilling_a_register(program, arch):
    source = nvrtc.kernel_source(*program.sources)
    compiled = nvrtc.compile_cubin(source, arch=arch, macros=program.macros(), cache=None, verbose=True)
    use = nvrtc.resource_use(compiled.log)
    assert compiled.cubin.startswith(b"\x7fELF")
    assert set(use) == set(program.kernels)
    for name, used in use.items():
        assert (used.spill_stores, used.spill_loads, used.stack) == (0, 0, 0), f"{name}: {used}"


def test_no_source_needs_a_header():
    for name in ("common.cuh", "float32.cu", "half.cu", "finish.cu"):
        assert "#include" not in nvrtc.kernel_source(name).replace("No #include", "")


@pytest.mark.parametrize("dtype", PADDED)
def test_the_tiles_fit_the_shared_memory_that_needs_no_asking(dtype):
    for directions in PADDED[dtype]:
        program = Program(dtype, directions, False)
        for axis in ("readers", "writers"):
            assert max(program.shared_bytes(extent) for extent in program.extents(axis)) <= 48 * 1024


def test_a_program_is_the_smallest_that_holds_the_directions():
    assert [Program.of(torch.float32, directions=n, difference=False).directions for n in (1, 5, 16, 17, 64, 65)] == [
        4, 8, 16, 32, 64, 64,
    ]  # fmt: skip
