"""The engine on a CUDA device gives what it gives on the CPU."""

import pytest
import torch

from interptrain import ConceptBank, Steerer, amplify, find_sites
from tests.helpers.models import HOOK, WIDTH, Sentences, llama


def steered(device):
    bank = ConceptBank.from_directions(
        {"pirate": torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))}, hook=HOOK
    )
    model = llama().to(device)
    steerer = Steerer(bank, find_sites(model, bank), amplify("pirate", 2.0)).attach(model)
    batch = {k: torch.stack([item[k] for item in Sentences(count=8)]).to(device) for k in ("input_ids", "labels")}
    steerer.watch(batch["labels"])
    model(**batch).loss.backward()
    report = steerer.before_step()
    return report.scalars(), {name: p.grad.cpu() for name, p in model.named_parameters()}


@pytest.mark.gpu
def test_steering_on_cuda_equals_steering_on_the_cpu():
    metrics, gradients = steered("cuda")
    expected_metrics, expected = steered("cpu")
    assert metrics == pytest.approx(expected_metrics, rel=1e-2, abs=1e-4)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-5)
