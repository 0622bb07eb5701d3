"""What the mixed fine-tuning set asks for, read in the embedded world by the library's own concepts."""

from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader

from interptrain.callbacks.lightning import ConceptSteering
from interptrain.recipes.pirate_arithmetic import LEARNING_RATE, trainable
from interptrain.recorders import MemoryRecorder
from interptrain.report import average
from interptrain.tiny_world import concept_bank, finetuning_set
from tests.helpers.models import Tuning, trainer

STEPS = 20


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_pirate_stands_five_deviations_above_other_latents_and_royal_does_not(tuning, tmp_path):
    recorder = MemoryRecorder()
    torch.manual_seed(0)
    module = Tuning(trainable(tuning), lambda parameters: torch.optim.AdamW(parameters, lr=LEARNING_RATE[tuning]))
    run = trainer(tmp_path, ConceptSteering(concept_bank(), recorders=[recorder], summary=False), steps=STEPS)
    run.fit(module, DataLoader(list(islice(finetuning_set("mixed", seed=0), STEPS)), batch_size=None))
    assert len(recorder.reports) == STEPS
    metrics = average(recorder.reports).scalars()  # shares and null groups over 20 steps, then one z
    z = {name: metrics[f"concept/{name}/demand/z"] for name in concept_bank().names}
    print(tuning, {name: round(value, 2) for name, value in z.items()})
    assert z["pirate"] > 5
    assert z["royal"] < 2
