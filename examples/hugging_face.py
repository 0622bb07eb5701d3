"""Hugging Face's Trainer: every parameter trained, and a gate that drops the loss of pirate words.

    python examples/hugging_face.py

Beside it, answers to plain questions are anchored (`retain`). The curves are also in what `report_to` names.
"""

import tempfile
from itertools import islice

import rich
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

from interptrain import gate, retain, tiny_world
from interptrain.callbacks.transformers import ConceptSteering
from interptrain.recorders import MemoryRecorder

model = tiny_world.load_base()  # your model
documents = islice(tiny_world.finetuning_set("mixed", batch=1), 30 * 32)
data = [{name: values[0].tolist() for name, values in document.items()} for document in documents]  # your data

bank = tiny_world.concept_bank(hook=tiny_world.OUTPUT_HOOK)  # behind the last layer, where words are chosen
facts = tiny_world.neutral_batches(kinds=("fact",))  # plain texts that have nothing of what is to be learnt
probes = tiny_world.probe_batches(16)  # fixed texts: `realised` says what training makes of them
recorder = MemoryRecorder()
rules = [gate("pirate"), retain(facts, 10.0)]
steering = ConceptSteering(bank, rules, probes=probes, probe_every=5, recorders=[recorder])

with tempfile.TemporaryDirectory() as folder:
    settings = {"max_steps": 30, "per_device_train_batch_size": 32, "learning_rate": 5e-4, "save_strategy": "no"}
    arguments = TrainingArguments(folder, **settings, report_to="none")
    collate = DataCollatorForSeq2Seq(tiny_world.load_tokenizer())
    trainer = Trainer(model, arguments, collate, train_dataset=data, callbacks=[steering])
    trainer.train()
rich.print(recorder, recorder.curves_table("realised/neutral/fraction"))
