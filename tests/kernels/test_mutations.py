"""Every barrier is needed: without it, some check of the emulated kernels fails."""

import re

import numpy as np
import pytest
import torch

from interptrain.projection.kernels import KernelProjector
from interptrain.projection.nvrtc import kernel_source
from interptrain.projection.tables import Program
from tests.helpers.emulated import EmulatedRunner
from tests.helpers.emulator import ORDERS, EmulationError
from tests.helpers.matrices import AXES, expected, matrix

pytestmark = pytest.mark.emulated

BARRIER = re.compile(r"__sync(threads|warp)\([^)]*\);")
FILES = ("common.cuh", "float32.cu", "half.cu", "finish.cu")
BARRIERS = [(file, number) for file in FILES for number in range(len(BARRIER.findall(kernel_source(file))))]


def without(file, number):
    """An edit that deletes one barrier of one file, wherever that file is in a program's source."""
    text = kernel_source(file)
    found = list(BARRIER.finditer(text))[number]
    deleted = text[: found.start()] + text[found.end() :]
    return lambda source: source.replace(text, deleted)


def reads_right(dtype, runner):
    found = [matrix(number, 288, 40, 3, axis=axis, dtype=dtype) for number, axis in enumerate(AXES)]
    sums = KernelProjector(runner, strict=True).read(found)
    answers = [expected(each, rounded=True) for each in found]
    return all(
        np.allclose(sums.energy[number, :3], answer.energy, rtol=1e-5)
        and np.isclose(float(sums.total[number]), answer.total, rtol=1e-5)
        for number, answer in enumerate(answers)
    )


def steers_right(dtype, runner):
    found = [matrix(number, 288, 40, 3, axis=axis, dtype=dtype) for number, axis in enumerate(AXES)]
    answers = [expected(each, rounded=True) for each in found]
    KernelProjector(runner, strict=True).steer_(found)
    tolerance = 1e-5 if dtype == torch.float32 else 2.0**-7
    return all(
        np.allclose(each.columns.double(), answer.steered, rtol=tolerance, atol=1e-4)
        for each, answer in zip(found, answers, strict=True)
    )


CHECKS = {
    f"{what.__name__} {str(dtype).removeprefix('torch.')} {order}": (what, dtype, order)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for what in (reads_right, steers_right)
    for order in ORDERS
}


def noticed_by(edit):
    """The first check that an edited source does not pass; None if it passes all."""
    for name, (check, dtype, order) in CHECKS.items():
        try:
            if not check(dtype, EmulatedRunner(order, edit)):
                return name
        except EmulationError:
            return name
    return None


def test_the_source_as_it_is_passes_every_check():
    assert noticed_by(str) is None


@pytest.mark.parametrize(("file", "number"), BARRIERS)
def test_a_deleted_barrier_is_noticed(file, number, record_property, capsys):
    check = noticed_by(without(file, number))
    assert check is not None, f"barrier {number} of {file} can be deleted and nothing fails"
    record_property("noticed_by", check)
    with capsys.disabled():
        print(f"\n{file} barrier {number}: noticed by '{check}'")


def test_there_are_barriers_to_delete():
    assert {file for file, _ in BARRIERS} == {"common.cuh", "half.cu", "finish.cu"}
    programs = (Program(torch.float32, 4, False), Program(torch.bfloat16, 16, False))
    assert {name for program in programs for name in program.sources} == set(FILES)
