"""A model and its tokenizer, from a folder or the hub, once it is known that there is memory to train it in."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from rich.filesize import decimal
from torch import nn

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TINY_WORLD = "tiny-world"
Tuning = Literal["lora", "full"]
MIN_WORDS = 4  # of a tokenizer; fewer are special tokens alone
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class ModelChoice:
    """Which model, and what of it trains.

    Args:
        name: a folder, a name on the hub, or `tiny-world` for the embedded model.
        tuning: LoRA on every linear layer, or every parameter.
        rank: of the LoRA factors.
        bf16: weights and products in bfloat16; what trains stays in float32.
        freeze: patterns (`fnmatch`) of parameter names that do not train.
        pad_token: for a tokenizer that has neither a padding nor an end token.
        checkpointing: recompute activations in the backward pass: less memory, about a third more time.
    """

    name: str
    tuning: Tuning = "lora"
    rank: int = 16
    bf16: bool = False
    freeze: tuple[str, ...] = ()
    pad_token: str | None = None
    checkpointing: bool = False

    @property
    def source(self) -> str:
        """The folder or the hub's name to load from."""
        if self.name != TINY_WORLD:
            return self.name
        from interptrain.tiny_world.shipped import DATA

        return str(DATA / "base")


def quiet_loading() -> None:
    """No bar for every model that is loaded, and no word of what a library lacks that is not used here."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it where it is installed


def load_tokenizer(choice: ModelChoice) -> PreTrainedTokenizerBase:
    """The model's tokenizer, padding on the right; without a padding token it pads with its end token, masked out.

    Raises:
        ValueError: there is none, or it has no token to pad with.
    """
    from transformers import AutoTokenizer

    _check_folder(choice)
    try:
        tokenizer = AutoTokenizer.from_pretrained(choice.source, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ValueError(
            f"cannot load the tokenizer of '{choice.name}': {_first_line(error)}{_hint(choice)}"
        ) from error
    if len(tokenizer) < MIN_WORDS:  # what transformers makes of a folder that has none
        raise ValueError(
            f"'{choice.name}' has no tokenizer, expected one beside the model: save it there with "
            "tokenizer.save_pretrained"
        )
    if choice.pad_token is not None:
        if choice.pad_token not in tokenizer.get_vocab():
            raise ValueError(f"pad_token '{choice.pad_token}' is no token of '{choice.name}'")
        tokenizer.pad_token = choice.pad_token
    elif tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"the tokenizer of '{choice.name}' has neither a padding token nor an end token; name one of its "
                "tokens to pad with (it is masked out), pad_token: '<pad>'"
            )
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def load_model(choice: ModelChoice) -> PreTrainedModel:
    """The model in training mode, adapted or whole; never runs code that comes with the weights.

    Raises:
        ValueError: there is none, it needs code of its own, or nothing of it is left to train.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    _check_folder(choice)
    dtype = torch.bfloat16 if choice.bf16 and choice.tuning == "lora" else torch.float32
    try:
        model = AutoModelForCausalLM.from_pretrained(
            choice.source, dtype=dtype, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, ImportError, KeyError, SafetensorError) as error:
        raise ValueError(
            f"cannot load the model '{choice.name}': {_first_line(error)}; only safetensors are read, whole: "
            "save_pretrained writes them"
        ) from error
    model.config.use_cache = False
    if choice.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return trainable(model, choice).train()


def trainable(model: PreTrainedModel, choice: ModelChoice) -> PreTrainedModel:
    """The model with what is to train, LoRA or its own parameters, less what is frozen by name.

    Raises:
        ValueError: a pattern matches nothing, or nothing is left.
    """
    from peft import get_peft_model

    if choice.tuning == "lora":
        model = get_peft_model(model, lora(choice))
    for pattern in choice.freeze:
        matched = [parameter for name, parameter in model.named_parameters() if fnmatchcase(name, pattern)]
        if not matched:
            raise ValueError(f"freeze: '{pattern}' matches no parameter of '{choice.name}'")
        for parameter in matched:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"nothing of '{choice.name}' is left to train: freeze names {', '.join(choice.freeze)}")
    return model


def lora(choice: ModelChoice) -> LoraConfig:
    """LoRA on every linear layer, scaled to 2 at any rank."""
    from peft import LoraConfig

    return LoraConfig(r=choice.rank, lora_alpha=2 * choice.rank, target_modules="all-linear", task_type="CAUSAL_LM")


@dataclass(frozen=True)
class Memory:
    """What training takes at least, in bytes.

    Args:
        parameters: of the model.
        weights: bytes of them.
        training: gradients, AdamW's two moments and adapters, in float32.
        activations: of one batch, and its logits with their gradient.
    """

    parameters: int
    weights: int
    training: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.training + self.activations

    def as_json(self) -> dict[str, int]:
        """For a report."""
        return {**vars(self), "total": self.total}


def estimate(choice: ModelChoice, batch: int, tokens: int) -> Memory:
    """Count a model's parameters without loading it, and what training them takes at least.

        weights      4 or 2 bytes a parameter
        training     4 (gradient) + 8 (AdamW's moments) bytes a trained parameter
        activations  batch tokens (16 layers d_model c + 12 vocabulary),  c: 4 or 2 bytes; 1 for 16 when
                     checkpointed

    A lower bound in round figures: it keeps a run from starting that cannot fit, not every run that will not.

    Raises:
        ValueError: the configuration cannot be loaded.
    """
    return estimate_of(load_config(choice), choice, batch, tokens)


def estimate_of(config: PretrainedConfig, choice: ModelChoice, batch: int, tokens: int) -> Memory:
    """The same of a configuration at hand."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        trained = sum(p.numel() for p in trainable(model, choice).parameters() if p.requires_grad)
    text = config.get_text_config()
    kept = (1 if choice.checkpointing else 16) * (2 if choice.bf16 else 4)
    per_token = text.num_hidden_layers * kept * text.hidden_size + 12 * text.vocab_size
    return Memory(
        parameters=parameters,
        weights=parameters * (2 if choice.bf16 and choice.tuning == "lora" else 4),
        training=12 * trained,
        activations=batch * tokens * per_token,
    )


def load_config(choice: ModelChoice) -> PretrainedConfig:
    """The model's configuration.

    Raises:
        ValueError: there is none.
    """
    from transformers import AutoConfig

    _check_folder(choice)
    try:
        return AutoConfig.from_pretrained(choice.source, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot load the model '{choice.name}': {_first_line(error)}{_hint(choice)}") from error


def positions_of(config: PretrainedConfig) -> int | None:
    """How many tokens a model was made for, if its configuration says."""
    found: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found


def _check_folder(choice: ModelChoice) -> None:
    """Refuse a folder without a model before the hub is asked for it, or for its parts."""
    folder = Path(choice.source)
    if not folder.exists() or (folder / "config.json").is_file():
        return
    if (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"'{choice.name}' holds an adapter, expected a whole model: merge it into its base "
            "(PeftModel.merge_and_unload, save_pretrained) and name that folder"
        )
    raise ValueError(
        f"cannot load the model '{choice.name}': no config.json in it, expected a folder that save_pretrained wrote"
    )


def _hint(choice: ModelChoice) -> str:
    return (
        ""
        if Path(choice.source).is_dir()
        else (
            f"; there is no folder '{choice.name}' here: expected one that save_pretrained wrote, or a model on the "
            "hub that you have access to (hf auth login)"
        )
    )


def device() -> torch.device:
    """Where models are run: the first GPU, else this machine's CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def in_bf16(precision: str) -> bool:
    """Whether a setting asks for bfloat16: `bf16`, or `auto` on a GPU that has it."""
    return precision == "bf16" or (precision == "auto" and torch.cuda.is_available() and torch.cuda.is_bf16_supported())


def free_memory() -> tuple[int, str]:
    """Bytes that are free where the model will train, and what that is: the first GPU, else this machine."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0], torch.cuda.get_device_name()
    return free_host_memory(), "this machine"


def free_host_memory() -> int:
    """Bytes that are free in this machine's memory, within a container's limit."""
    import psutil

    return min(int(psutil.virtual_memory().available), _left_in_cgroup())


def check_memory(choice: ModelChoice, batch: int, tokens: int) -> Memory:
    """Estimate the memory, and refuse a run that cannot fit.

    Raises:
        ValueError: more is needed than is free; the message says what takes it and what would lower it.
    """
    needed, (free, where) = estimate(choice, batch, tokens), free_memory()
    if needed.total > free:
        advice = [
            *(["tuning: lora"] if choice.tuning == "full" else []),
            *([] if choice.bf16 else ["precision: bf16"]),
            *([] if choice.checkpointing else ["checkpointing: true"]),
            "a smaller batch or max_length",
            "a smaller model",
        ]
        raise ValueError(
            f"'{choice.name}' ({needed.parameters / 1e9:.2g} billion parameters) needs at least "
            f"{decimal(needed.total)} to train: {decimal(needed.weights)} weights, {decimal(needed.training)} "
            f"gradients and optimizer, {decimal(needed.activations)} activations; {where} has {decimal(free)} free. "
            f"Try {', '.join(advice)}; memory_check: false goes on regardless"
        )
    return needed


def _left_in_cgroup() -> int:
    """What a container's limit leaves; a number beyond all memory without one."""
    limit, used = (_read(_CGROUP / name) for name in ("memory.max", "memory.current"))
    return sys.maxsize if limit is None or used is None else max(0, limit - used)


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no cgroup, or "max"
        return None


def _first_line(error: BaseException) -> str:
    return next((line.strip().rstrip(".:") for line in str(error).splitlines() if line.strip()), type(error).__name__)


def blocks_of(model: nn.Module) -> int:
    """How many blocks a model has.

    Raises:
        ValueError: it is of no known family.
    """
    from interptrain.sites.stack import find_stack

    return len(find_stack(model).blocks)
