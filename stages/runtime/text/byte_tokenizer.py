"""Trains a byte-level BPE tokenizer with a chat template for a base model from scratch."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pipeline.errors import ModelError

PAD, END = "<|pad|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"One token opens a turn; `<|end|>`, the tokenizer's eos, ends an answer; padding is another token."
_PROBE = "A plain line, 123 of it.\n\tGröße 漢字 🙂  <tag> {}"


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int, model_config: dict[str, Any]
) -> PreTrainedTokenizerBase:
    """Train a tokenizer that loses no character, and return it as AutoTokenizer will open it later.

    Some model families bring a tokenizer class that cuts text into words in its own way, whatever
    the folder says; so the tokenizer is saved and opened again before anything is encoded with it.

    Args:
        texts: documents to learn merges from.
        vocab_size: tokens in all; fewer when the text does not hold as many merges.
        model_config: the config.json of the model it will stand beside.

    Raises:
        ModelError: the family's tokenizer class cannot hold a byte-level vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[PAD, END, *ROLES],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made.save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps(model_config))
        opened = AutoTokenizer.from_pretrained(folder)
    _check(opened, str(model_config.get("model_type")))
    return opened


def _check(tokenizer: PreTrainedTokenizerBase, model_type: str) -> None:
    ids = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    same = tokenizer.decode(ids, clean_up_tokenization_spaces=False) == _PROBE
    if same and (tokenizer.eos_token, tokenizer.pad_token) == (END, PAD):
        return
    raise ModelError(
        f"the tokenizer class of {model_type!r} cannot hold a byte-level vocabulary",
        where="architecture.model_type",
        hint="llama, mistral, qwen2, gpt2 or another family with a byte-level tokenizer",
        code="tokenizer-class",
    )
