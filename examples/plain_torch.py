"""A loop of one's own: `attach` around it, every parameter trained, and only steps toward pirate talk are edited.

    python examples/plain_torch.py

`clip_norm` clips what is steered, in place of `clip_grad_norm_`; `metrics()` is what one would send to a logger.
"""

from itertools import islice

import rich
import torch

from interptrain import one_sided, suppress, tiny_world
from interptrain.callbacks.torch import attach
from interptrain.recorders import MemoryRecorder

device = "cuda" if torch.cuda.is_available() else "cpu"
model = tiny_world.load_base().to(device).train()  # your model
data = islice(tiny_world.finetuning_set("mixed", batch=32), 30)  # your data: batches with input_ids and labels
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
recorder = MemoryRecorder()
rule = one_sided(suppress("pirate"))
options = {"where": "update", "clip_norm": 1.0, "recorders": [recorder]}

with attach(model, optimizer, tiny_world.concept_bank(), rule, **options) as steering:
    for step, batch in enumerate(data, start=1):
        loss = model(**{name: values.to(device) for name, values in batch.items()}).loss
        loss.backward()
        optimizer.step()  # gradients are read and clipped as it begins, the update is read and steered as it ends
        optimizer.zero_grad()
        if step % 10 == 0:
            metrics = steering.metrics()  # means since the last call
            print(f"step {step}: loss {loss.item():.2f}, pirate's demand {metrics['concept/pirate/demand']:.2f}")

rich.print(recorder, recorder.curves_table("gain"))
