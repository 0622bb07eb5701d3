"""TRL's SFTTrainer with a PEFT adapter: nothing is steered, every step is read.

    python examples/trl_sft.py

A first run without a rule says what the data ask for; decide then what to do about it.
"""

import tempfile
from itertools import islice

import rich
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from interptrain import observe, tiny_world
from interptrain.callbacks.transformers import ConceptSteering
from interptrain.recorders import MemoryRecorder

model, tokenizer = tiny_world.load_base(), tiny_world.load_tokenizer()  # your model
documents = islice(tiny_world.finetuning_set("mixed", batch=1), 30 * 32)
rows = [{name: document[name][0].tolist() for name in ("input_ids", "labels")} for document in documents]
data = Dataset.from_list(rows)  # your data, texts or, as here, tokens

recorder = MemoryRecorder()
probes = tiny_world.probe_batches(16)  # fixed texts: `realised` says what training makes of them
steering = ConceptSteering(tiny_world.concept_bank(), observe(), probes=probes, probe_every=5, recorders=[recorder])
cpu = {} if torch.cuda.is_available() else {"use_cpu": True, "bf16": False}
with tempfile.TemporaryDirectory() as folder:
    settings = {"max_steps": 30, "per_device_train_batch_size": 32, "learning_rate": 2e-3, "save_strategy": "no"}
    arguments = SFTConfig(folder, **settings, **cpu, report_to="none")
    adapter = LoraConfig(r=8, target_modules="all-linear")
    trainer = SFTTrainer(
        model, arguments, train_dataset=data, peft_config=adapter, processing_class=tokenizer, callbacks=[steering]
    )
    trainer.train()
rich.print(recorder, recorder.curves_table("realised/neutral/fraction"))
