"""Small real models and the LightningModule that trains them; shared by the tests."""

import pytorch_lightning as pl
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader, Dataset
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from interptrain import ConceptBank

WIDTH, WORDS, HOOK = 32, 24, "blocks.1.hook_resid_post"


def llama(*, seed=0, layers=3):
    """A Llama of three layers, 32 wide; the same weights for the same seed."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS,
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
            tie_word_embeddings=False,
        )
    )


def gpt2(*, seed=0):
    """A GPT-2 of three layers, 32 wide, without dropout; head and embedding are not tied."""
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=WORDS,
            n_embd=WIDTH,
            n_layer=3,
            n_head=4,
            n_positions=32,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
            tie_word_embeddings=False,
        )
    )


def lora(model, *, seed=0, targets="all-linear", rank=4, **options):
    """The model with a LoRA adapter: B is zero, A is random."""
    torch.manual_seed(seed)
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, **options))


def two_concepts():
    """Pirate, of three directions, and royal, of one."""
    generator = torch.Generator().manual_seed(1)
    return ConceptBank.from_directions(
        {"pirate": torch.randn(3, WIDTH, generator=generator), "royal": torch.randn(WIDTH, generator=generator)},
        hook=HOOK,
    )


class Sentences(Dataset):
    """Random sentences; the first three labels are masked, as a prompt would be, and some end in padding."""

    def __init__(self, count=64, length=12, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(1, WORDS, (count, length), generator=generator)
        self.labels = self.tokens.clone()
        self.labels[:, :3] = -100
        self.labels[::3, -2:] = -100

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"input_ids": self.tokens[index], "labels": self.labels[index]}


class Tuning(pl.LightningModule):
    """Fine-tunes a Hugging Face model; records every loss."""

    def __init__(self, model, make_optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3), manual=False):
        super().__init__()
        self.model = model
        self.make_optimizer = make_optimizer
        self.automatic_optimization = not manual
        self.losses = []

    def training_step(self, batch, batch_idx):
        loss = self.model(**batch).loss
        self.losses.append(loss.item())
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def configure_optimizers(self):
        return self.make_optimizer([p for p in self.model.parameters() if p.requires_grad])


def loader(**options):
    """Batches of eight sentences in a fixed order."""
    return DataLoader(Sentences(**options), batch_size=8)


def trainer(folder, *callbacks, steps=4, **options):
    """A quiet Lightning trainer on the CPU that writes to a folder only."""
    settings = {
        "max_steps": steps, "accelerator": "cpu", "devices": 1, "logger": False, "log_every_n_steps": 1,
        "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **(settings | options))


def fit(model, folder, *callbacks, make_optimizer=None, manual=False, **options):
    """Train for a few steps; the module, for its losses and weights."""
    module = Tuning(model, manual=manual) if make_optimizer is None else Tuning(model, make_optimizer, manual)
    trainer(folder, *callbacks, **options).fit(module, loader())
    return module


def weights(module):
    """Detached copies of every parameter by name."""
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
