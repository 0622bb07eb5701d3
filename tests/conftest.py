"""What every test has: checked shapes, one torch thread, fixed seeds, no network."""

import os
import random
import shutil
from collections.abc import Iterator

os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="offline", WANDB_SILENT="true", TOKENIZERS_PARALLELISM="false")

import numpy as np
import pytest
import torch
from jaxtyping import config, install_import_hook

from tests.helpers.shapes import checked

# Installed here and not by `--jaxtyping-packages`, which pytest-xdist does not hand on to its workers. Every
# module of the package that is imported from now on, doctests included, has its annotations checked.
install_import_hook("interptrain", f"{checked.__module__}.{checked.__name__}")

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """For runs of hundreds of steps, of which a third goes into checks that shorter tests make as well."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU or a compiler where there is none; in CI there must be a compiler."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if item.get_closest_marker("emulated") and shutil.which("g++") is None and "CI" not in os.environ:
        pytest.skip("needs g++ 12 or newer (Debian: apt-get install g++)")
