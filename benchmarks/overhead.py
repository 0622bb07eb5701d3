"""What observing and steering cost: seconds a step with and without, side by side in one run.

    python benchmarks/overhead.py [--layers 4] [--width 384] [--rounds 20] [--out benchmarks/results/overhead.json]

Every round runs one training step of each arm, in turn, on the same batch; the figure is the median over rounds
of the arm's time divided by the plain step's time in the same round.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from interptrain import ConceptBank, Steerer, __version__, find_sites, observe, suppress
from interptrain.concepts import Readout

ARMS = {
    "plain": None,
    "observe, every step": (observe(), 1),
    "observe, every 10th": (observe(), 10),
    "suppress, every step": (suppress("a"), 1),
    "suppress, every 10th": (suppress("a"), 10),
}


def make_model(layers: int, width: int, tuning: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=4096, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
            num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=512, tie_word_embeddings=False,
        )
    )  # fmt: skip
    if tuning == "full":
        return model
    return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))


def make_bank(layers: int, width: int, directions: int) -> ConceptBank:
    hook = f"blocks.{layers // 2}.hook_resid_post"
    decoder = torch.randn(8 * width, width, generator=torch.Generator().manual_seed(1))
    latents = {"a": decoder[:directions], "b": decoder[directions : 2 * directions]}
    bank = ConceptBank.from_directions(latents, hook=hook)
    readout = Readout({}, {"W_dec": decoder}, torch.ones(len(decoder), dtype=torch.bool))
    return ConceptBank(bank.directions, bank.concepts, bank.hooks, bank.sources, readouts={hook: readout})


class Arm:
    def __init__(self, arguments: argparse.Namespace, tuning: str, setting: tuple | None) -> None:
        self.model = make_model(arguments.layers, arguments.width, tuning)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)
        self.steerer = None
        if setting is not None:
            bank = make_bank(arguments.layers, arguments.width, arguments.directions)
            rule, every = setting
            self.steerer = Steerer(bank, find_sites(self.model, bank), rule, every=every).attach(self.model)

    def step(self, tokens: torch.Tensor) -> float:
        start = time.perf_counter()
        self.model(input_ids=tokens, labels=tokens).loss.backward()
        if self.steerer is not None:
            self.steerer.before_step()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - start


def measure(arguments: argparse.Namespace, tuning: str) -> dict[str, dict[str, float]]:
    arms = {name: Arm(arguments, tuning, setting) for name, setting in ARMS.items()}
    random = torch.Generator().manual_seed(2)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(arguments.rounds + 1):
        tokens = torch.randint(0, 4096, (arguments.batch, arguments.tokens), generator=random)
        for name, arm in arms.items():
            seconds[name].append(arm.step(tokens))
    kept = {name: times[1:] for name, times in seconds.items()}  # the first round warms up
    return {
        name: {
            "seconds": statistics.median(times),
            # a mean over rounds: every tenth step costs more than the nine between
            "ratio": statistics.fmean(times) / statistics.fmean(kept["plain"]),
        }
        for name, times in kept.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in (("layers", 4), ("width", 384), ("batch", 4), ("tokens", 128), ("directions", 24)):
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/overhead.json"))
    arguments = parser.parse_args()

    results = {tuning: measure(arguments, tuning) for tuning in ("lora", "full")}
    table = Table(title="time of a step, as a multiple of the plain step of the same round")
    table.add_column("arm")
    for tuning in results:
        table.add_column(tuning, justify="right")
    for name in ARMS:
        table.add_row(name, *(f"{result[name]['ratio']:.3f}" for result in results.values()))
    Console().print(table)
    document = {
        "settings": {**vars(arguments), "out": str(arguments.out)},
        "versions": {"interptrain": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "device": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "results": results,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
