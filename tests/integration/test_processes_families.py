"""Experts, tied weights and post-norms over two processes: steered and read as one process does it."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.integration.test_processes import EVEN, by_ddp, check_together
from tests.unit.sites.families import adapted, model_of

pytestmark = pytest.mark.filterwarnings("ignore:.*LoRA writers start with B already:UserWarning")


def experts():
    """Of three experts the first process has two, the second one."""
    return model_of("mixtral").double()


def lora_on_experts():
    model = adapted("mixtral", model_of("mixtral")).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def tied():
    """With outputs in front of the post-norms that their epsilon is nothing beside."""
    model = model_of("gemma2", tied=True).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name:
                parameter *= 10
    return model


def by_fsdp(model):
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    inner = model.get_base_model() if "peft" in type(model).__module__ else model
    for block in inner.model.layers:
        fully_shard(block, mesh=mesh)
    return (fully_shard(model, mesh=mesh),) * 2


MODELS = {"experts": experts, "lora": lora_on_experts, "tied": tied}


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("where", ["gradient", "update"])
@pytest.mark.parametrize("model", ["experts", "tied", pytest.param("lora", marks=pytest.mark.slow)])
def test_two_processes_are_one_for_experts_and_tied_weights(model, where, tmp_path):
    rules = ["norm-cap", "one-sided" if where == "gradient" else "suppress"]
    check_together(MODELS[model], by_fsdp, where, tmp_path, rules=rules, bank=EVEN)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_shapes")
def test_two_processes_with_whole_experts_are_one(tmp_path):
    check_together(lora_on_experts, by_ddp, "update", tmp_path, rules=["suppress"], bank=EVEN)
