"""Products are taken in full float32 for the time of a reading or an edit, and the loop's settings stay its own."""

import subprocess
import sys

import pytest
import torch

from interptrain import ConceptBank, Steerer, find_sites, suppress
from interptrain.projection.grouped import TorchProjector
from interptrain.projection.precision import full_precision
from tests.helpers.models import HOOK, WIDTH, Sentences, llama

BACKENDS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)


def settings():
    return [backend.fp32_precision for backend in BACKENDS]


@pytest.fixture(autouse=True)
def _restored():
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("allowed", ["highest", "high", "medium"])
def test_inside_products_are_exact_and_outside_the_setting_is_the_loops(allowed):
    torch.set_float32_matmul_precision(allowed)
    before = settings()
    with full_precision():
        assert torch.get_float32_matmul_precision() == "highest"
        assert settings() == ["ieee", "ieee"]
    assert torch.get_float32_matmul_precision() == allowed
    assert settings() == before


def test_an_error_inside_leaves_the_setting_as_it_was():
    torch.set_float32_matmul_precision("high")
    with pytest.raises(ZeroDivisionError), full_precision():
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == "high"


NEWER = """
import torch
from interptrain.projection.precision import full_precision
backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
{setting} = "tf32"
before = [backend.fp32_precision for backend in backends]
assert "tf32" in before
with full_precision():
    assert [backend.fp32_precision for backend in backends] == ["ieee", "ieee"]
assert [backend.fp32_precision for backend in backends] == before
"""


@pytest.mark.parametrize("setting", ["torch.backends.cuda.matmul.fp32_precision", "torch.backends.fp32_precision"])
def test_the_newer_settings_are_kept_too(setting):
    subprocess.run([sys.executable, "-c", NEWER.format(setting=setting)], check=True)


def test_a_step_reads_and_steers_in_full_precision(monkeypatch):
    seen = []
    for name in ("read", "steer_"):
        method = getattr(TorchProjector, name)

        def spied(self, matrices, method=method):
            seen.append(torch.get_float32_matmul_precision())
            return method(self, matrices)

        monkeypatch.setattr(TorchProjector, name, spied)
    torch.set_float32_matmul_precision("medium")
    bank = ConceptBank.from_directions({"pirate": torch.eye(WIDTH)[:2]}, hook=HOOK)
    for where in ("gradient", "update"):
        model = llama()
        optimizer = torch.optim.AdamW(model.parameters())
        batch = {k: torch.stack([item[k] for item in Sentences(count=4)]) for k in ("input_ids", "labels")}
        with Steerer(bank, find_sites(model, bank, where=where), suppress("pirate"), where=where).attach(
            model, optimizer
        ) as s:
            model(**batch).loss.backward()
            s.before_step()
            optimizer.step()
    assert len(seen) >= 6  # demand, gradient, write and an edit, twice
    assert set(seen) == {"highest"}
    assert torch.get_float32_matmul_precision() == "medium"
