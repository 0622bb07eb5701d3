"""`interptrain recipe run sft` on a model and an SAE from the hub, of each family, with LoRA and in full."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from interptrain.recorders.document import read_report
from tests.helpers.families import FAMILIES
from tests.helpers.releases import RELEASES, lay_out
from tests.helpers.sft_from_hub import STEPS, TUNINGS

DEFAULT = ("gpt2", "llama")
REST = tuple(family for family in FAMILIES if family not in DEFAULT)
LIMIT = 1200  # seconds for a process that trains several families


def marked(families):
    return [family if family in DEFAULT else pytest.param(family, marks=pytest.mark.slow) for family in families]


@pytest.fixture(scope="module")
def trained(hub, tmp_path_factory):
    """The folder that a family was trained in: the default families in one process, the rest in another."""
    found: dict[tuple[str, ...], Path] = {}

    def of(family, tuning):
        families = DEFAULT if family in DEFAULT else REST
        if families not in found:
            lay_out(hub.root, families)
            out = tmp_path_factory.mktemp("out")
            program = [sys.executable, "-m", "tests.helpers.sft_from_hub", str(out), *families]
            environment = hub.environment(tmp_path_factory.mktemp("home"), offline=False) | {"WANDB_MODE": "offline"}
            ended = subprocess.run(program, env=environment, cwd=out, capture_output=True, text=True, timeout=LIMIT)
            assert ended.returncode == 0, ended.stderr
            assert not hub.elsewhere
            found[families] = out
        return found[families] / f"{family}-{tuning}"

    return of


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("family", marked(FAMILIES))
def test_ten_steps_are_trained_and_the_concept_is_read_and_taken_out_of_every_update(trained, family, tuning):
    report = read_report(trained(family, tuning) / "report.json")
    (arm,) = report["arms"]
    (run,) = arm["runs"]
    curves = run["curves"]
    assert curves["step"] == [float(step) for step in range(STEPS)]
    assert max(map(abs, curves["concept/pirate/achieved"])) < 1e-2
    assert all(0 < share < 1 for share in curves["concept/pirate/demand"])
    assert run["scores"]["held_out_loss"] < report["before"]["scores"]["held_out_loss"]
    assert report["concepts"][0]["says"].startswith(f"sae {RELEASES[family].release} {RELEASES[family].sae_id}")


@pytest.mark.parametrize("family", marked(FAMILIES))
def test_the_weights_that_are_written_are_those_of_the_family_and_load_again(hub, trained, family):
    weights = trained(family, "lora") / "weights" / "steered-0"
    base = AutoModelForCausalLM.from_pretrained(hub.root / FAMILIES[family].model, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, weights)
    with safe_open(weights / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    assert any("lora_B" in name for name in names)
    assert any(p.abs().sum() > 0 for name, p in model.named_parameters() if "lora_B" in name)
    whole = AutoModelForCausalLM.from_pretrained(trained(family, "full") / "weights" / "steered-0")
    assert type(whole) is type(base)
