"""Models and tokenizers of a user's own: what is loaded, what is refused, and how much memory it takes."""

import re

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from interptrain.recipes.loading import (
    ModelChoice,
    check_memory,
    estimate,
    estimate_of,
    free_memory,
    load_config,
    load_model,
    load_tokenizer,
)
from interptrain.recipes.settings import ready_settings, ready_text
from interptrain.tiny_world import load_base
from tests.helpers.models import llama, lora

SMALL = {
    "vocab_size": 8, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
TINY = ModelChoice("tiny-world", rank=4)


def saved(tmp_path, **specials):
    """A tiny Llama with a tokenizer of a few words and the special tokens asked for."""
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "<end>": 1, "a": 2, "b": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **specials).save_pretrained(tmp_path)
    llama().save_pretrained(tmp_path)
    return ModelChoice(str(tmp_path))


def test_lora_trains_its_factors_and_full_tuning_every_parameter():
    model = load_model(TINY)
    assert {name.split(".")[-3] for name, p in model.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    assert model.training
    assert all(p.requires_grad for p in load_model(ModelChoice("tiny-world", tuning="full")).parameters())


def test_what_is_frozen_does_not_train_and_a_pattern_without_a_match_is_refused():
    model = load_model(ModelChoice("tiny-world", tuning="full", freeze=("*embed_tokens*",)))
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["model.embed_tokens.weight"]
    with pytest.raises(ValueError, match=r"freeze: '\*wte\*' matches no parameter"):
        load_model(ModelChoice("tiny-world", tuning="full", freeze=("*wte*",)))
    with pytest.raises(ValueError, match="nothing of 'tiny-world' is left to train"):
        load_model(ModelChoice("tiny-world", tuning="full", freeze=("*",)))


def test_in_bfloat16_the_adapter_stays_in_float32():
    model = load_model(ModelChoice("tiny-world", bf16=True))
    kinds = {p.requires_grad: p.dtype for p in model.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    whole = load_model(ModelChoice("tiny-world", tuning="full", bf16=True))
    assert {p.dtype for p in whole.parameters()} == {torch.float32}


def test_a_tokenizer_without_a_padding_token_pads_with_its_end_token(tmp_path):
    tokenizer = load_tokenizer(saved(tmp_path, eos_token="<end>"))
    assert tokenizer.pad_token == "<end>"
    assert tokenizer.padding_side == "right"


def test_a_tokenizer_with_nothing_to_pad_with_needs_a_word_from_the_user(tmp_path):
    choice = saved(tmp_path)
    with pytest.raises(ValueError, match=r"neither a padding token nor an end token; .* pad_token: '<pad>'"):
        load_tokenizer(choice)
    assert load_tokenizer(ModelChoice(choice.name, pad_token="<unk>")).pad_token_id == 0
    with pytest.raises(ValueError, match="pad_token '<pad>' is no token of"):
        load_tokenizer(ModelChoice(choice.name, pad_token="<pad>"))


def test_weights_that_are_pickled_are_not_read(tmp_path):
    choice = saved(tmp_path, eos_token="<end>")
    torch.save(llama().state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no file named model\.safetensors .*; only safetensors are read"):
        load_model(choice)


def test_weights_that_are_cut_off_are_refused(tmp_path):
    choice, weights = saved(tmp_path, eos_token="<end>"), tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cannot load the model '.*; only safetensors are read, whole"):
        load_model(choice)


def test_a_folder_without_a_tokenizer_is_told_from_one_whose_prompts_are_long(tmp_path):
    Qwen3ForCausalLM(Qwen3Config(**SMALL)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no tokenizer, .* save it there with tokenizer\.save_pretrained"):
        load_tokenizer(ModelChoice(str(tmp_path)))


def test_an_adapter_in_place_of_a_model_is_to_be_merged(tmp_path):
    lora(llama()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds an adapter, expected a whole model: merge it into its base"):
        load_tokenizer(ModelChoice(str(tmp_path)))


def test_what_is_no_model_is_refused(tmp_path):
    for load in (load_config, load_tokenizer, load_model):
        with pytest.raises(ValueError, match=r"cannot load the model '.*': no config\.json in it, expected a folder"):
            load(ModelChoice(str(tmp_path)))
    with pytest.raises(ValueError, match=r"there is no folder '.*/typo' here: expected one that save_pretrained wrote"):
        load_tokenizer(ModelChoice(str(tmp_path / "typo")))


def test_the_estimate_counts_what_the_model_has_and_trains():
    memory, model = estimate(TINY, 2, 8), load_model(TINY)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert memory.parameters == sum(p.numel() for p in load_base().parameters())
    assert memory.training == 12 * trained
    assert memory.weights == 4 * memory.parameters
    assert memory.total == memory.weights + memory.training + memory.activations
    assert estimate(TINY, 4, 8).activations == 2 * memory.activations


def test_a_run_that_cannot_fit_is_refused_with_what_would_lower_it():
    free, _ = free_memory()
    batch = 2 * free // estimate(TINY, 1, 8).activations
    with pytest.raises(
        ValueError, match=r"needs at least .* to train: .* weights.* free. Try .*precision: bf16"
    ) as said:
        check_memory(TINY, batch, 8)
    assert "tuning: lora" not in str(said.value)
    assert check_memory(TINY, 1, 8).total < free


SIZES = {
    "gpt2": GPT2Config(),
    "pythia-70m": GPTNeoXConfig(
        vocab_size=50304, hidden_size=512, num_hidden_layers=6, num_attention_heads=8, intermediate_size=2048
    ),
    "gemma-2-2b": Gemma2Config(),
    "llama-3.1-8b": LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8,
    ),
    "qwen3-1.7b": Qwen3Config(
        vocab_size=151936, hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_a_ready_configuration_says_the_memory_that_the_recipe_counts(name):
    settings = ready_settings("sft", name)
    choice = ModelChoice(
        name, bf16=settings.get("precision") == "bf16", checkpointing=settings.get("checkpointing", False)
    )
    counted = estimate_of(SIZES[name], choice, settings.get("batch", 8), 512).total
    said = float(re.search(r"Memory: at least ([\d.]+) GB", ready_text("sft", name))[1])
    assert said == pytest.approx(counted / 1e9, rel=0.02)
