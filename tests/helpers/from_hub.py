"""What a process loads from the hub by the calls that a user writes.

    python -m tests.helpers.from_hub FOLDER FAMILY...

For each family, its model, tokenizer and SAE, a bank of two concepts and, where the architecture is known, the sites.
"""

import json
import sys
from pathlib import Path

import torch
from sae_lens import SAE
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from interptrain.concepts import from_saelens, load_sae_readout
from interptrain.concepts.centred import trained_centred
from interptrain.sites.find import find_sites
from tests.helpers.families import FAMILIES, logits
from tests.helpers.releases import RELEASES
from tests.helpers.words import TEXTS

TALK = [{"role": "user", "content": TEXTS[2]}]


def load(family: str, folder: Path) -> None:
    """Write what was loaded to `FAMILY.json` and `FAMILY.safetensors`."""
    name, release = FAMILIES[family].model, RELEASES[family]
    model = AutoModelForCausalLM.from_pretrained(name)
    tokenizer = AutoTokenizer.from_pretrained(name)
    sae = SAE.from_pretrained(release.release, release.sae_id)
    bank = from_saelens(sae, release.concepts)
    sites = find_sites(model, bank)
    x = torch.randn(4, bank.d_model, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        given = x - x.mean(-1, keepdim=True) if trained_centred(sae.cfg.metadata.to_dict()) else x
        latents, again = sae.encode(given), load_sae_readout(bank.readouts[bank.hooks[0]]).encode(x)
    alike = torch.equal(latents, again) if given is x else torch.allclose(latents, again, atol=1e-4)
    found = {
        "class": type(model).__name__, "dtype": str(model.dtype), "hooks": bank.hooks, "model": bank.model,
        "sources": bank.sources, "sites": [[site.name, site.role] for site in sites],
        "tokens": tokenizer(TEXTS[0]).input_ids, "pad": tokenizer.pad_token,
        "text": tokenizer.decode(tokenizer(TEXTS[0]).input_ids, skip_special_tokens=True),
        "chat": tokenizer.chat_template and tokenizer.apply_chat_template(TALK, tokenize=False),
        "active": int((latents > 0).sum()), "readout_agrees": alike,
    }  # fmt: skip
    (folder / f"{family}.json").write_text(json.dumps(found))
    tensors = {"directions": bank.directions, "logits": logits(model, tokenizer)}
    save_file(tensors, folder / f"{family}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in sys.argv[2:]:
        load(each, Path(sys.argv[1]))
