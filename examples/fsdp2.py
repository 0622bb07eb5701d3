"""FSDP2: parameters sharded over processes, pirate talk projected out of every update.

    torchrun --nproc-per-node 2 examples/fsdp2.py

Shard first, then make the optimizer, then attach. The curves are of all processes' tokens; the first one records them.
"""

import os
from itertools import islice

import rich
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from interptrain import suppress, tiny_world
from interptrain.callbacks.torch import attach
from interptrain.recorders import MemoryRecorder

gpu, rank = torch.cuda.is_available(), int(os.environ["RANK"])
device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
if gpu:
    torch.cuda.set_device(device)
dist.init_process_group("nccl" if gpu else "gloo")

model = tiny_world.load_base().to(device).train()  # your model
for layer in (*model.model.layers, model):
    fully_shard(layer)
data = islice(tiny_world.finetuning_set("mixed", seed=rank, batch=16), 20)  # your data, other documents in each process
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
recorder = MemoryRecorder()
options = {"where": "update", "clip_norm": 1.0, "recorders": [recorder]}
with attach(model, optimizer, tiny_world.concept_bank(), suppress("pirate"), **options):
    for batch in data:
        model(**{name: values.to(device) for name, values in batch.items()}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
if rank == 0:
    rich.print(recorder, recorder.curves_table("write"))
dist.destroy_process_group()
