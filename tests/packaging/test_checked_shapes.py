"""The test run checks the shapes that signatures promise; production does not pay for it."""

import importlib
import subprocess
import sys

import jaxtyping
import pytest
import torch

from interptrain.concepts.bank import Readout, unit_rows


def test_a_wrong_shape_raises_in_the_test_run():
    with pytest.raises(jaxtyping.TypeCheckError, match=r"row d_model"):
        unit_rows(torch.ones(3))


def test_a_wrong_dtype_in_a_dataclass_raises_in_the_test_run():
    with pytest.raises(jaxtyping.TypeCheckError, match="alive"):
        Readout(config={}, weights={}, alive=torch.ones(3))


@pytest.mark.parametrize("module", ["interptrain.steerer", "interptrain.callbacks.lightning", "interptrain.cli"])
def test_modules_are_checked_through_the_linked_folders_too(module: str):
    assert type(importlib.import_module(module).__loader__).__module__.startswith("jaxtyping")


def test_shapes_are_not_checked_outside_the_test_run():
    code = "import torch; from interptrain.concepts.bank import Readout; Readout({}, {}, torch.ones(3))"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
