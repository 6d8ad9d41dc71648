"""Tokenizers of three makes that know the control tokens of a chat template. Built offline."""

from __future__ import annotations

import re

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from stages.runtime.text.templates import resolve_template
from tests.tiny import EOS, SPECIAL_TOKENS, tiny_tokenizer

_CONTROL_FORMS = (
    r"<\|[^|<>\n']{1,40}\|>",
    r"<｜[^｜<>\n']{1,40}｜>",
    r"<(?:start|end)_of_[a-z]+>",
    r"\[/?[A-Z_]+\]",
    r"<turn\|>",
    r"<\|turn>",
)
_CORPUS = [
    "the quick brown fox jumps over the lazy dog and says hello to the other foxes",
    "user assistant system answer question yes no hello there, how are you today?",
    "12 + 30 = 42. A line\nand another line\n\nwith  blanks",
]


def chat_tokenizer(template: str, *, make: str = "bytes") -> PreTrainedTokenizerFast:
    """Return a tokenizer of the given make with trl's template of that name and its control tokens.

    Its eos is `<|endoftext|>`, which is not what most templates end a turn with.
    """
    text = resolve_template(template)
    tokenizer = {"bytes": tiny_tokenizer, "merges": merging_tokenizer, "blanks": blank_first_tokenizer}[
        make
    ]()
    control = sorted({found for form in _CONTROL_FORMS for found in re.findall(form, text)})
    tokenizer.add_special_tokens({"additional_special_tokens": control})
    tokenizer.eos_token = EOS
    tokenizer.chat_template = text
    return tokenizer


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with merges, as GPT-2, Llama 3 and Qwen have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", bos_token="<|bos|>", eos_token=EOS
    )


def blank_first_tokenizer() -> PreTrainedTokenizerFast:
    """BPE that puts a blank before the first word, as Llama 2 and Mistral do."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<|pad|>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")],
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    letters = [chr(code) for code in range(33, 127)]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=[*letters, "▁"],
        special_tokens=[*SPECIAL_TOKENS, *fallback],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 3, trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", bos_token="<|bos|>", eos_token=EOS
    )
