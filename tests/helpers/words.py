"""Tokenizers of the kinds that families have, trained on five sentences, in the files of a repository on the hub."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TOKENS = 320
TEXTS = (
    "The captain counts his gold: 3 and 4 make 7.",
    "Ahoy! The sea is wide, the ship is fast and the wind is fair.",
    "What is 12 minus 5? It is 7. What is 40 plus 2? It is 42.",
    "The king lives in a castle by the river, and the queen reads a book.",
    "Rain falls in the spring; snow falls in the winter.",
)
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PHI_CHAT = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
PIECES = (  # of GPT-4's tokenizer and its followers
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,DIGITS}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Words:
    """A family's tokenizer: BPE over bytes, as GPT-2 began it, or over characters with bytes for the rest.

    Args:
        kind: the class that `tokenizer_config.json` names.
        special: special tokens by role; one may have several roles.
        more: special tokens without a role.
        first: the token that every text begins with, or None.
        digits: how many at most make one token, or None for as many as come.
        sentencepiece: characters, a space written `▁`; otherwise bytes, a space written `Ġ`.
        prefix: whether a text gets a space in front.
        chat: the chat template, or None.
    """

    kind: str
    special: dict[str, str]
    more: tuple[str, ...] = ()
    first: str | None = None
    digits: int | None = None
    sentencepiece: bool = False
    prefix: bool = False
    chat: str | None = None

    def save(self, folder: Path) -> None:
        """Train it on the texts and write the files that a repository has."""
        special = list(dict.fromkeys([*self.special.values(), *self.more]))
        tokenizer = _characters(special, self.prefix) if self.sentencepiece else _bytes(special, self.digits)
        if self.first is not None:
            one, number = self.first, tokenizer.token_to_id(self.first)
            tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{one} $A", pair=f"{one} $A {one} $B", special_tokens=[(one, number)]
            )
        tokenizer.save(str(folder / "tokenizer.json"))
        described = {"tokenizer_class": self.kind, "model_max_length": 128, **self.special}
        (folder / "tokenizer_config.json").write_text(json.dumps(described, indent=2))
        if self.chat is not None:
            (folder / "chat_template.jinja").write_text(self.chat)


def _bytes(special: list[str], digits: int | None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if digits is not None:
        words = pre_tokenizers.Split(Regex(PIECES.replace("DIGITS", str(digits))), "isolated")
        single_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, single_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXTS, _trainer(special, initial_alphabet=alphabet))
    return tokenizer


def _characters(special: list[str], prefix: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*spaces, normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # for training only: no token spans words
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    tokenizer.decoder = decoders.Sequence(steps)
    single_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer.train_from_iterator(TEXTS, _trainer([*special, *single_bytes], size=TOKENS + 80))
    trained = json.loads(tokenizer.to_str())
    trained["pre_tokenizer"] = None
    trained["added_tokens"] = [token for token in trained["added_tokens"] if token["content"] in special]
    return Tokenizer.from_str(json.dumps(trained))


def _trainer(special: list[str], size: int = TOKENS, **options: Any) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False, **options)


END = "<|endoftext|>"
GPT2 = Words("GPT2Tokenizer", {"bos_token": END, "eos_token": END, "unk_token": END})
NEOX = Words("GPTNeoXTokenizer", {"bos_token": END, "eos_token": END, "unk_token": END}, more=("<|padding|>",))
OPT = Words(
    "GPT2Tokenizer", {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}, first="</s>"
)
LLAMA3 = Words(
    "PreTrainedTokenizerFast", {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
    first="<|begin_of_text|>", digits=3,
)  # fmt: skip
LLAMA2 = Words(
    "LlamaTokenizer", {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    first="<s>", sentencepiece=True, prefix=True,
)  # fmt: skip
PHI3 = Words(
    "LlamaTokenizer", {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": END, "pad_token": END},
    more=("<|user|>", "<|assistant|>", "<|end|>"), sentencepiece=True, prefix=True, chat=PHI_CHAT,
)  # fmt: skip
GEMMA = Words(
    "GemmaTokenizer", {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"},
    more=("<mask>",), first="<bos>", sentencepiece=True,
)  # fmt: skip
QWEN = Words(
    "Qwen2Tokenizer", {"eos_token": END, "pad_token": END}, more=("<|im_start|>", "<|im_end|>"), digits=1, chat=CHAT
)
QWEN_CHAT = Words(
    "Qwen2Tokenizer", {"eos_token": "<|im_end|>", "pad_token": END}, more=("<|im_start|>",), digits=1, chat=CHAT
)
OLMO = Words("GPT2Tokenizer", {"bos_token": END, "eos_token": END, "unk_token": END, "pad_token": "<|pad|>"}, digits=3)
