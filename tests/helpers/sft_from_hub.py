"""What a process fine-tunes from the hub by the command that a user types.

    python -m tests.helpers.sft_from_hub FOLDER FAMILY...

Each family, with LoRA and in full, ten steps, two of its released SAE's latents as a concept that is suppressed.
"""

import json
import sys
from pathlib import Path

import torch

from interptrain import cli
from tests.helpers.families import FAMILIES
from tests.helpers.releases import RELEASES
from tests.helpers.words import TEXTS

TUNINGS = ("lora", "full")
STEPS = 10


def write_data(file: Path, count: int = 24) -> Path:
    """Questions and answers in the words that the tokenizers know."""
    pairs = [(TEXTS[n % len(TEXTS)], TEXTS[(n + 1) % len(TEXTS)]) for n in range(count)]
    file.write_text("\n".join(json.dumps({"prompt": asked, "completion": f" {said}"}) for asked, said in pairs))
    return file


def fine_tune(family: str, tuning: str, folder: Path, data: Path) -> None:
    """Run the recipe, writing to `FAMILY-TUNING`."""
    release = RELEASES[family]
    latents = next(iter(release.concepts.values()))
    status = cli.main([
        "recipe", "run", "sft", "--model", FAMILIES[family].model, "--data", str(data), "--tuning", tuning,
        "--sae", release.release, "--sae-id", release.sae_id, "--latents", f"pirate={','.join(map(str, latents))}",
        "--suppress", "pirate", "--steps", str(STEPS), "--batch", "4", "--rank", "4", "--max-length", "48",
        "--learning-rate", "1e-3", "--held-out", "0.2", "--precision", "32", "--no-sae-check",
        "--out", str(folder / f"{family}-{tuning}"),
    ])  # fmt: skip
    assert status == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    written = write_data(out / "data.jsonl")
    for each in sys.argv[2:]:
        for kind in TUNINGS:
            fine_tune(each, kind, out, written)
