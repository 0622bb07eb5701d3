"""How good the directions are where a norm stands between a writer and the stream (Gemma-2, Gemma-3, OLMo-2).

    python benchmarks/families.py [--steps 400] [--out benchmarks/results/families.json]

A step `dW` of a writer moves the stream along `d` by `d^T J dW x`, `J` the Jacobian of the norm behind it at a token.
A site has `J^T d` without its data-dependent part. A model of each family, 128 wide, is trained on the tiny world's
texts, and at every token of other texts and every writer, in float64:

    cosine    between the site's direction and the exact J^T d, by autograd through the norm
    left      rms |d^T J dW' x| / rms |d^T J dW x|   over all tokens and writers, for a gradient step dW and dW', the
              same at gain 0
    naive     the same with d itself in place of the site's direction

for random directions and for the difference of the stream's means on texts in the pirate and in the plain voice. Gains
hardly leave 1 in so short a training; in checkpoints they differ, so all are read once more with theirs drawn as
`exp(.5 n)`, `n` normal.
"""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoModelForCausalLM

from interptrain import ConceptBank, find_sites, tiny_world
from interptrain.sites import HookPoint, Site
from interptrain.tiny_world.corpus import pretraining_documents
from interptrain.tiny_world.probes import probe_sets
from interptrain.tiny_world.tokens import batches, encode

WIDTH, LAYERS, HOOK, RANDOM = 128, 3, "blocks.2.hook_resid_post", 32
FAMILIES = {
    "Gemma-2": ("gemma2", {"head_dim": 32}),
    "Gemma-3": ("gemma3_text", {"head_dim": 32}),
    "OLMo-2": ("olmo2", {}),
}


def trained(kind: str, own: dict[str, int], steps: int) -> nn.Module:
    tokenizer = tiny_world.load_tokenizer()
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=384, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64, tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id, **own,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98))
    for batch in islice(batches(tokenizer, pretraining_documents(0), 32, mask_prompt=False), steps):
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.double()


def seen(model: nn.Module, modules: list[nn.Module], batch: dict[str, Tensor]) -> list[Tensor]:
    """What each module receives at the tokens that count; a backward pass has been made."""
    caught: dict[int, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda _m, args, number=number: caught.__setitem__(number, args[0].detach()))
        for number, module in enumerate(modules)
    ]
    model.zero_grad()
    model(**batch).loss.backward()
    for handle in handles:
        handle.remove()
    counted = batch["attention_mask"].bool()
    return [caught[number][counted] for number in range(len(modules))]


def voice_direction(model: nn.Module) -> Tensor:
    tokenizer, means = tiny_world.load_tokenizer(), {}
    sets = probe_sets(32)
    for name in ("pirate", "neutral"):
        batch, caught = encode(tokenizer, sets[name]), []
        handle = HookPoint.parse(HOOK).listen(model, caught.append)
        with torch.no_grad():
            model(**batch)
        handle.remove()
        means[name] = caught[0][batch["attention_mask"].bool()].mean(0)
    return normalize(means["pirate"] - means["neutral"], dim=0)[None]


def scores(site: Site, x: Tensor, y: Tensor, rows: Tensor) -> dict[str, Tensor]:
    """For every direction and token, `[direction, token]`, but `left`, `[direction]`."""
    y = y.requires_grad_()
    out = site.norm.module(y)
    exact = torch.stack([torch.autograd.grad(out, y, row.expand_as(out), retain_graph=True)[0] for row in rows])
    directions = site.directions(rows)
    step = site.parameter.grad @ x.T  # dW x, [d_model, token], up to the rate
    found = {"cosine": torch.einsum("rtd,rd->rt", normalize(exact, dim=-1), directions)}
    along = torch.einsum("rtd,dt->rt", exact, step)
    for name, used in (("left", directions), ("naive", rows)):
        edited = along - torch.einsum("rtd,rd->rt", exact, used) * (used @ step)
        found[name] = edited.square().sum(-1)
    return found | {"asked": along.square().sum(-1)}


def measure(model: nn.Module, *, drawn: bool) -> dict[str, dict[str, float]]:
    random = normalize(torch.randn(RANDOM, WIDTH, generator=torch.Generator().manual_seed(0)).double(), dim=-1)
    bank = ConceptBank.from_directions({"any": random[0]}, hook=HOOK)
    sites = [site for site in find_sites(model, bank) if site.approximate]
    if drawn:
        generator = torch.Generator().manual_seed(1)
        for weight, offset in [(site.norm.weight, site.norm.offset) for site in sites]:
            noise = torch.randn(WIDTH, generator=generator).double()
            weight.data = (weight.data + offset) * (0.5 * noise).exp() - offset
    batch = next(tiny_world.finetuning_set("mixed", seed=1, batch=32))
    received = seen(model, [module for site in sites for module in (site.module, site.norm.module)], batch)
    return {
        kind: figures([scores(*each, rows) for each in zip(sites, received[::2], received[1::2], strict=True)])
        for kind, rows in (("random", random), ("voice", voice_direction(model)))
    }


def figures(sites: list[dict[str, Tensor]]) -> dict[str, float]:
    cosine = torch.cat([each["cosine"].flatten() for each in sites])
    energy = {name: torch.stack([each[name] for each in sites]).sum(0) for name in ("left", "naive", "asked")}
    left, naive = ((energy[name] / energy["asked"]).sqrt() for name in ("left", "naive"))
    low = cosine.kthvalue(1 + len(cosine) // 100).values
    return {
        "cosine": cosine.median().item(), "cosine, lowest 1 %": low.item(), "cosine, least": cosine.min().item(),
        "left": left.median().item(), "left, most": left.max().item(), "naive": naive.median().item(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for name, of in FAMILIES.items():
        model = trained(*of, options.steps)
        states = {"untrained": measure(trained(*of, 0), drawn=False), "trained": measure(model, drawn=False)}
        found[name] = states | {"gains drawn": measure(model, drawn=True)}
    table = Table("family", "model", "direction", *next(iter(found["Gemma-2"]["trained"].values())))
    for name, states in found.items():
        for state, kinds in states.items():
            for kind, row in kinds.items():
                table.add_row(name, state, kind, *(f"{value:.3f}" for value in row.values()))
    Console(width=130).print(table)
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
