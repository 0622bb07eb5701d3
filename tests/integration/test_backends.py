"""The engine on the kernels: a training step, emulated on the CPU, against the same step on the torch path."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from interptrain import ConceptBank, Steerer, amplify, find_sites, suppress
from interptrain.projection.backend import Backend
from interptrain.projection.kernels import KernelProjector
from tests.helpers.emulated import EmulatedRunner
from tests.helpers.models import HOOK, WIDTH, Sentences, llama, lora


@pytest.fixture
def bank():
    generator = torch.Generator().manual_seed(0)
    concepts = {
        "pirate": torch.randn(3, WIDTH, generator=generator),
        "arithmetic": torch.randn(2, WIDTH, generator=generator),
    }
    return ConceptBank.from_directions(concepts, hook=HOOK)


@pytest.fixture
def emulated(monkeypatch):
    """Steerers take the emulated kernels; what was launched."""
    runner = EmulatedRunner()
    monkeypatch.setattr(Backend, "_choose", lambda self, device: (KernelProjector(runner, strict=True), "emulated"))
    return runner


def trained(bank, model, where, steps=2, **options):
    """A few AdamW steps under two rules; the weights, and every report's figures."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    rules = [suppress("pirate"), amplify("arithmetic", 2.0)]
    reports = []

    class Keep:
        def record(self, report):
            reports.append(report.scalars())

    sites = find_sites(model, bank, where=where)
    steerer = Steerer(bank, sites, rules, where=where, recorders=[Keep()], null_every=2, **options)
    batch = {k: torch.stack([item[k] for item in Sentences(count=8)]) for k in ("input_ids", "labels")}
    with steerer.attach(model, optimizer):
        for _ in range(steps):
            steerer.watch(batch["labels"])
            optimizer.zero_grad()
            model(**batch).loss.backward()
            steerer.before_step()
            optimizer.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}, reports


@pytest.mark.emulated
@pytest.mark.parametrize("where", ["gradient", "update"])
@pytest.mark.parametrize("build", [llama, lambda: lora(llama())], ids=["full", "lora"])
def test_a_run_on_the_kernels_equals_a_run_on_torch(bank, where, build, request):
    expected, figures = trained(bank, build(), where)
    runner = request.getfixturevalue("emulated")
    weights, measured = trained(bank, build(), where)
    assert {name.partition("_")[0] for name in runner.launched} >= {"writers", "finish"}
    unsteered = trained(bank, build(), where, norm_cap=1e-9)[0]
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=2e-5)
    assert any(not torch.allclose(weights[name], unsteered[name], atol=1e-4) for name in weights)
    assert len(measured) == len(figures) == 2
    for one, other in zip(measured, figures, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            if not key.endswith("/z"):  # of what was removed it is one rounding error over another
                assert one[key] == pytest.approx(other[key], rel=2e-3, abs=1e-5), key


def test_a_model_without_a_cuda_device_and_the_kernels_by_name_is_refused_at_attach(bank):
    model = llama()
    steerer = Steerer(bank, find_sites(model, bank), suppress("pirate"), backend="cuda")
    with pytest.raises(RuntimeError, match='backend="cuda" cannot run'):
        steerer.attach(model)


def test_the_steerer_says_what_projects(bank):
    model = llama()
    assert Steerer(bank, find_sites(model, bank)).projected_by == "torch, as cpu is no CUDA device"


COMPILED = """
import sys

import torch
from interptrain import ConceptBank, Steerer, find_sites, suppress
from tests.helpers.models import HOOK, WIDTH, Sentences, llama

bank = ConceptBank.from_directions({"pirate": torch.eye(WIDTH)[:3]}, hook=HOOK)
batch = {k: torch.stack([item[k] for item in Sentences(count=8)]) for k in ("input_ids", "labels")}


class Keep:
    def __init__(self):
        self.figures = []

    def record(self, report):
        self.figures.append(report.scalars())


def run(compile_model=False, compile_step=False):
    model, kept = llama(layers=2), Keep()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    forward = torch.compile(model, backend="eager") if compile_model else model
    steerer = Steerer(bank, find_sites(model, bank), suppress("pirate"), recorders=[kept])

    def step():
        steerer.watch(batch["labels"])
        optimizer.zero_grad()
        forward(**batch).loss.backward()
        steerer.before_step()
        optimizer.step()

    with steerer.attach(model, optimizer):
        (torch.compile(step, backend="eager") if compile_step else step)()
    return dict(model.named_parameters()), kept.figures


eager, figures = run()
compiled, measured = run(**{sys.argv[1]: True})
for name, weight in eager.items():
    torch.testing.assert_close(compiled[name], weight)
assert len(measured) == len(figures) == 1
for one, other in zip(measured, figures):
    for key, value in other.items():
        assert abs(one[key] - value) <= 1e-3 * abs(value) + 1e-5, (key, one[key], value)
print("the same")
"""


@pytest.mark.parametrize("what", ["compile_step", pytest.param("compile_model", marks=pytest.mark.slow)])
def test_a_compiled_step_or_model_is_steered_as_an_eager_one(what):
    # in a process of its own: what checks the shapes in this one cannot be traced
    command = [sys.executable, "-W", "ignore", "-c", COMPILED, what]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "the same"


def test_a_step_in_one_graph_is_refused_by_name(bank):
    model = llama()
    steerer = Steerer(bank, find_sites(model, bank), suppress("pirate")).attach(model)
    with pytest.raises(Exception, match="before_step"):
        torch.compile(lambda: steerer.before_step(), backend="aot_eager", fullgraph=True)()
