"""Lightning, Hugging Face and a loop of one's own in several processes: what one process does with the whole batch."""

import os

import pytest
import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin
from pytorch_lightning.plugins.environments import TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from interptrain import ConceptBank, suppress
from interptrain.callbacks import lightning, transformers
from interptrain.callbacks.torch import attach
from interptrain.recorders import MemoryRecorder
from tests.helpers.loops import adamw, hugging_face
from tests.helpers.models import HOOK, WIDTH, WORDS, Tuning, llama, lora, trainer
from tests.helpers.processes import in_processes

ROWS, STEPS = 8, 3
# Gradients are summed in another order, and Adam's first steps are the sign of them times the learning rate of 1e-3.
WEIGHTS, CURVES = 2e-5, 2e-3


class Even(Dataset):
    """Sentences with as many tokens in the loss each, so that a mean over processes is the mean over the batch."""

    def __init__(self):
        self.tokens = torch.randint(1, WORDS, (ROWS * STEPS, 10), generator=torch.Generator().manual_seed(2))

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


class Sharded(Tuning):
    """Shards itself as Lightning asks for it."""

    def configure_model(self):
        shard(self.model, self.device_mesh["data_parallel"])


def shard(model, mesh):
    blocks = model.get_base_model().model.layers if "peft" in type(model).__module__ else model.model.layers
    for block in (*blocks, model):
        fully_shard(block, mesh=mesh)


def loader(count):
    """Batches of this process's share, in order."""
    sampler = DistributedSampler(Even(), shuffle=False) if count > 1 else None
    return DataLoader(Even(), batch_size=ROWS // count, sampler=sampler)


def in_lightning(model, folder, wrap, count, steering, options):
    callbacks = [lightning.ConceptSteering(*steering, **options)] if steering else []
    kind, data, settings = Tuning, loader(count), {}
    if wrap == "ddp":
        settings = {"strategy": DDPStrategy(cluster_environment=TorchElasticEnvironment())}
    elif wrap == "fsdp2":
        kind, settings = Sharded, {"strategy": ModelParallelStrategy(count, 1)}
        settings["strategy"].cluster_environment = TorchElasticEnvironment()
    if wrap is not None:
        settings |= {"devices": count, "use_distributed_sampler": False}
    run = trainer(folder, *callbacks, steps=STEPS, **settings)
    run.fit(kind(model, adamw), data)


def in_hugging_face(model, folder, wrap, count, steering, options):
    callbacks = [transformers.ConceptSteering(*steering, **options)] if steering else []
    run = hugging_face(
        model, folder, *callbacks, data=Even(), max_steps=STEPS, make_optimizer=None,
        per_device_train_batch_size=ROWS // count, learning_rate=1e-3, lr_scheduler_type="constant",
    )  # fmt: skip
    if wrap == "fsdp2":
        shard_by_accelerate(run)
    run.train()


def shard_by_accelerate(run):
    """What `fsdp: true` in the arguments comes to; accelerate asks for it on GPUs only, and does it on any device."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False,
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
    )  # fmt: skip
    run.accelerator.state.distributed_type = DistributedType.FSDP
    run.accelerator.state.fsdp_plugin = plugin
    run.is_fsdp_enabled = True


def in_torch(model, folder, wrap, count, steering, options):
    wrapped = model
    if wrap == "ddp":
        wrapped = DistributedDataParallel(model)
    elif wrap == "fsdp2":
        shard(model, init_device_mesh("cpu", (count,)))
    optimizer = adamw([each for each in model.parameters() if each.requires_grad])
    handle = attach(wrapped, optimizer, *steering, **options) if steering else None
    for batch in loader(count):
        wrapped(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if handle is not None:
        handle.detach()


LOOPS = {"lightning": in_lightning, "hugging face": in_hugging_face, "torch": in_torch}


def train(loop, make, where, folder, *, wrap=None, steered=True, rank=0, count=1):
    """The weights and curves of a run; of one of several processes, its share of it."""
    if count > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "GROUP_RANK": "0"}
        os.environ |= {"LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    generator = torch.Generator().manual_seed(1)
    bank = ConceptBank.from_directions({"pirate": torch.randn(3, WIDTH, generator=generator)}, hook=HOOK)
    recorder, model = MemoryRecorder(), make()
    given = (bank, suppress("pirate", 0.3)) if steered else ()
    options = {"where": where, "recorders": [recorder], "summary": False, "null_every": 2}
    LOOPS[loop](model, folder, wrap, count, given, options if steered else {})
    sharded = any(isinstance(each, DTensor) for each in model.parameters())
    assert sharded == (wrap == "fsdp2")
    found = {name: _whole(value).detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    return found, recorder.curves()


def _whole(value):
    return value.full_tensor() if isinstance(value, DTensor) else value


def full():
    return llama()


def adapted():
    return lora(llama())


def check(loop, wrap, make, where, count, folder):
    weights, curves = train(loop, make, where, folder)
    unsteered, _ = train(loop, make, where, folder, steered=False)
    assert max(float((weights[name] - unsteered[name]).abs().max()) for name in weights) > 5e-4
    results = in_processes(
        count, lambda rank, count: train(loop, make, where, folder, wrap=wrap, rank=rank, count=count), folder / "ranks"
    )
    assert all(theirs == {"step": []} for _, theirs in results[1:]), "the first process alone records"
    for found, _ in results:
        assert found.keys() == weights.keys()
        for name, value in weights.items():
            torch.testing.assert_close(
                found[name], value, rtol=0, atol=WEIGHTS, msg=lambda m, name=name: f"{name}: {m}"
            )
    theirs = results[0][1]
    assert theirs.keys() == curves.keys()
    for key, values in curves.items():
        scale = 10 if key.endswith("/z") else 1
        assert [value is None for value in theirs[key]] == [value is None for value in values], key
        measured = [(a, b) for a, b in zip(theirs[key], values, strict=True) if b is not None]
        for here, there in measured:
            assert here == pytest.approx(there, rel=CURVES * scale, abs=2e-5 * scale), key


@pytest.mark.parametrize("wrap", ["ddp", "fsdp2"])
@pytest.mark.parametrize("loop", LOOPS)
def test_two_processes_of_a_loop_are_one(loop, wrap, tmp_path):
    check(loop, wrap, adapted, "update", 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["gradient", "update"])
@pytest.mark.parametrize("make", [full, adapted])
@pytest.mark.parametrize("wrap", ["ddp", "fsdp2"])
@pytest.mark.parametrize("loop", LOOPS)
def test_four_processes_of_a_loop_are_one(loop, wrap, make, where, tmp_path):
    check(loop, wrap, make, where, 4, tmp_path)
