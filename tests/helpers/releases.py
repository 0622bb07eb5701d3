"""A small SAE for every family, in the files of the release that a user would name, and the whole hub's folder.

Each format below is what one of SAELens's loaders reads. All dictionaries are tied and made of one random sequence,

    W_dec[i, j] = W_enc[j, i] = s[i + j],

so that releases whose width and number of latents are part of their names (Gemma Scope, Qwen-Scope) take a few
hundred kilobytes to two megabytes on the disk.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers.families import FAMILIES

LATENTS = 64
PERIOD = 4096  # of `s`: 16 KB, which repeats within the 32 KB that a zip file looks back


def decoder(latents: int, width: int) -> Tensor:
    """`W_dec`, of shape [latent, d_model]: views of one sequence, of which the length of the rows differs."""
    once = torch.randn(PERIOD, generator=torch.Generator().manual_seed(5)) * torch.linspace(0.3, 3.0, PERIOD)
    sequence = once.repeat((latents + width) // PERIOD + 1)
    return sequence.as_strided((latents, width), (1, 1))


def _biases(rows: Tensor) -> dict[str, Tensor]:
    latents, width = rows.shape
    return {"b_enc": torch.linspace(-0.5, 0.5, latents), "b_dec": torch.linspace(-0.1, 0.1, width)}


def sae_lens_6(folder: Path, model: str, hook: str, rows: Tensor) -> None:
    """What `SAE.save_model` writes today: `cfg.json` with metadata, a top-k SAE."""
    described = {
        "architecture": "topk", "d_in": rows.shape[1], "d_sae": len(rows), "k": 8, "dtype": "float32",
        "device": "cpu", "apply_b_dec_to_input": True, "normalize_activations": "none",
        "reshape_activations": "none", "rescale_acts_by_decoder_norm": False,
        "metadata": {"sae_lens_version": "6.54.12", "model_name": model, "hook_name": hook, "prepend_bos": True},
    }  # fmt: skip
    _write(folder / "cfg.json", described)
    _save(folder / "sae_weights.safetensors", {"W_dec": rows, "W_enc": rows.T, **_biases(rows)})


def sae_lens_3(folder: Path, model: str, hook: str, rows: Tensor) -> None:
    """The same before metadata had a place of their own, with the latents' log frequencies beside it."""
    described = {
        "model_name": model, "hook_point": hook, "hook_point_layer": int(hook.split(".")[1]),
        "hook_point_head_index": None, "d_in": rows.shape[1], "d_sae": len(rows), "dtype": "torch.float32",
        "device": "mps", "dataset_path": "Skylion007/openwebtext", "context_size": 128, "l1_coefficient": 8e-05,
    }  # fmt: skip
    _write(folder / "cfg.json", described)
    weights = {"W_dec": rows, "W_enc": rows.T, **_biases(rows), "scaling_factor": torch.ones(len(rows))}
    _save(folder / "sae_weights.safetensors", weights)
    _save(folder / "sparsity.safetensors", {"sparsity": torch.full((len(rows),), -3.0)})


def gemma_scope(folder: Path, _model: str, _hook: str, rows: Tensor) -> None:
    """`params.npz`; model, hook and sizes follow from the names of repository and folder."""
    folder.mkdir(parents=True)
    weights = {"w_dec": rows, "w_enc": rows.T, **_biases(rows), "threshold": torch.full((len(rows),), 0.5)}
    np.savez_compressed(folder / "params.npz", **{name: weight.numpy() for name, weight in weights.items()})


def gemma_scope_2(folder: Path, model: str, hook: str, rows: Tensor) -> None:
    """`config.json` and `params.safetensors`, whose header is asked for by a range of bytes."""
    place = f"model.layers.{hook.split('.')[1]}.output"
    described = {
        "hf_hook_point_in": place, "hf_hook_point_out": place, "width": len(rows), "model_name": f"{model}-pt",
        "architecture": "jump_relu", "l0": 60, "affine_connection": False, "type": "sae",
    }  # fmt: skip
    _write(folder / "config.json", described)
    weights = {"w_dec": rows, "w_enc": rows.T, **_biases(rows), "threshold": torch.full((len(rows),), 0.5)}
    _save(folder / "params.safetensors", weights)


def llama_scope(folder: Path, _model: str, hook: str, rows: Tensor) -> None:
    """`hyperparams.json` and a checkpoint of two linear layers in bfloat16."""
    norm = rows.shape[1] ** 0.5 / LLAMA_SCOPE_FACTOR
    described = {
        "hook_point_in": hook, "hook_point_out": hook, "d_model": rows.shape[1], "d_sae": len(rows),
        "act_fn": "jumprelu", "jump_relu_threshold": 0.52734375, "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": norm, "out": norm}, "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False, "sparsity_include_decoder_norm": True, "top_k": 50,
    }  # fmt: skip
    _write(folder / "hyperparams.json", described)
    layers = {"encoder.weight": rows, "decoder.weight": rows.T}
    biases = {"encoder.bias": _biases(rows)["b_enc"], "decoder.bias": _biases(rows)["b_dec"]}
    weights = {name: weight.bfloat16() for name, weight in (layers | biases).items()}
    _save(folder / "checkpoints" / "final.safetensors", weights)


def dictionary_learning(folder: Path, model: str, hook: str, rows: Tensor) -> None:
    """`config.json` and `ae.pt`, as the library of that name saves a batch-top-k SAE."""
    trainer = {
        "dict_class": "BatchTopKSAE", "activation_dim": rows.shape[1], "dict_size": len(rows), "k": 8,
        "layer": int(hook.split(".")[1]), "lm_name": model,
    }  # fmt: skip
    _write(folder / "config.json", {"trainer": trainer, "buffer": {"ctx_len": 1024}})
    weights = {
        "encoder.weight": rows, "decoder.weight": rows.T, "encoder.bias": _biases(rows)["b_enc"],
        "b_dec": _biases(rows)["b_dec"], "k": torch.tensor(8), "threshold": torch.tensor(0.5),
    }  # fmt: skip
    torch.save(weights, folder / "ae.pt")


def qwen_scope(file: Path, _model: str, _hook: str, rows: Tensor) -> None:
    """One file a layer; model, sizes and k follow from the repository's name."""
    file.parent.mkdir(parents=True)
    torch.save({"W_enc": rows, "W_dec": rows.T, **_biases(rows)}, file)  # views, so the sequence is saved once


def _write(file: Path, described: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(described, indent=2))


def _save(file: Path, weights: dict[str, Tensor]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.clone(memory_format=torch.contiguous_format) for name, weight in weights.items()}, file)


@dataclass(frozen=True)
class Release:
    """An SAE on the hub and what a user loads it by.

    Args:
        release: first argument of `SAE.from_pretrained`.
        sae_id: the second.
        repository: where the files lie.
        path: their folder there, or the file.
        write: writes them.
        model: as the SAE's metadata name it.
        hook: the same.
        latents: how many.
        stored: the precision of the weights in the file.
    """

    release: str
    sae_id: str
    repository: str
    path: str
    write: Callable[[Path, str, str, Tensor], None]
    model: str
    hook: str
    latents: int = LATENTS
    stored: torch.dtype = torch.float32

    @property
    def concepts(self) -> dict[str, list[int]]:
        """Latents to make a bank of, the last among them."""
        return {"pirate": [3, 17], "sums": [self.latents - 1]}


def plain(family: str) -> Release:
    """A repository that no list knows, in SAELens's own format: it is loaded by its name."""
    hook, name = "blocks.1.hook_resid_post", f"someone/{family.replace('_', '-')}-saes"
    return Release(name, hook, name, hook, sae_lens_6, FAMILIES[family].model, hook)


LLAMA_SCOPE_FACTOR = 39.76699029126213  # of layer 1, in SAELens's list of releases
NAMED = {
    "gpt2": Release(
        "gpt2-small-res-jb", "blocks.1.hook_resid_pre", "jbloom/GPT2-Small-SAEs-Reformatted",
        "blocks.1.hook_resid_pre", sae_lens_3, "gpt2-small", "blocks.1.hook_resid_pre",
    ),
    "llama": Release(
        "llama_scope_lxr_8x", "l1r_8x", "fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L1R-8x", llama_scope,
        "meta-llama/Llama-3.1-8B", "blocks.1.hook_resid_post", stored=torch.bfloat16,
    ),
    "qwen2": Release(
        "qwen2.5-7b-instruct-andyrdt", "resid_post_layer_3_trainer_1", "andyrdt/saes-qwen2.5-7b-instruct",
        "resid_post_layer_3/trainer_1", dictionary_learning, "Qwen2.5-7B-Instruct", "blocks.3.hook_resid_post",
    ),
    "qwen3": Release(
        "qwen-scope-3-1.7b-base-w32k-l50", "layer1", "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50", "layer1.sae.pt",
        qwen_scope, "Qwen/Qwen3-1.7B-Base", "blocks.1.hook_resid_post", latents=32 * 1024,
    ),
    "gpt_neox": Release(
        "pythia-70m-deduped-res-sm", "blocks.1.hook_resid_post", "ctigges/pythia-70m-deduped__res-sm_processed",
        "1-res-sm", sae_lens_3, "pythia-70m-deduped", "blocks.1.hook_resid_post",
    ),
    "gemma2": Release(
        "gemma-scope-2b-pt-res-canonical", "layer_1/width_16k/canonical", "google/gemma-scope-2b-pt-res",
        "layer_1/width_16k/average_l0_102", gemma_scope, "gemma-2-2b", "blocks.1.hook_resid_post", latents=16 * 1024,
    ),
    "gemma3": Release(
        "gemma-scope-2-270m-pt-res-all", "layer_1_width_16k_l0_small", "google/gemma-scope-2-270m-pt",
        "resid_post_all/layer_1_width_16k_l0_small", gemma_scope_2, "google/gemma-3-270m", "blocks.1.hook_resid_post",
    ),
}  # fmt: skip
RELEASES: dict[str, Release] = {family: NAMED.get(family, plain(family)) for family in FAMILIES}


def lay_out(root: Path, families: Iterable[str] = tuple(FAMILIES)) -> Path:
    """Put the model and the SAE of each family below the hub's root, where they are not there yet."""
    for name in families:
        family, release = FAMILIES[name], RELEASES[name]
        if not (root / family.model).exists():
            family.save(root)
            rows = decoder(release.latents, family.width)
            release.write(root / release.repository / release.path, release.model, release.hook, rows)
    return root
