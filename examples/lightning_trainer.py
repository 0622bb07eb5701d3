"""PyTorch Lightning: LoRA, with pirate talk projected out of every update.

    python examples/lightning_trainer.py

A projection measures well and blocks badly: `write` is nothing, and fixed texts turn pirate all the same (`realised`).
"""

from itertools import islice

import rich
import torch
from peft import LoraConfig, get_peft_model
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from interptrain import suppress, tiny_world
from interptrain.callbacks.lightning import ConceptSteering
from interptrain.recorders import MemoryRecorder


class FineTuner(LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch, _):
        return self.model(**batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=2e-3, weight_decay=0.0)


model = get_peft_model(tiny_world.load_base(), LoraConfig(r=8, target_modules="all-linear"))  # your model
data = DataLoader(list(islice(tiny_world.finetuning_set("mixed", batch=32), 30)), batch_size=None)  # your data
recorder = MemoryRecorder()
options = {"where": "update", "probes": tiny_world.probe_batches(16), "probe_every": 5, "recorders": [recorder]}
steering = ConceptSteering(tiny_world.concept_bank(), suppress("pirate"), **options)
trainer = Trainer(max_steps=30, callbacks=[steering], logger=False, enable_checkpointing=False)
trainer.fit(FineTuner(model.train()), data)
rich.print(recorder, recorder.curves_table("write"), recorder.curves_table("realised/neutral/fraction"))
