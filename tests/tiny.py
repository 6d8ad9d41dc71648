"""Tiny random models and a byte-level chat tokenizer, built offline in a second, for every test."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from pipeline.contract import ArtifactKind, Checkpoint, StageContext

PAD, BOS, START, END, EOS = "<|pad|>", "<|bos|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"
SPECIAL_TOKENS = (PAD, BOS, START, END, EOS)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MODEL_TYPES = ("llama", "qwen2", "gemma2", "mistral", "phi", "gpt2")
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}


def tiny_tokenizer(*, chat: bool = True) -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token a byte: 256 bytes and five special tokens, 261 ids.

    The end of a turn (and so of a response) is `<|im_end|>`, which is also eos; pad is another token.
    Without `chat` there is no template and eos is `<|endoftext|>`.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *letters))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END if chat else EOS,
        chat_template=CHAT_TEMPLATE if chat else None,
    )


def tiny_config(model_type: str = "llama", **changes: Any) -> Any:
    """Make the config of a two-layer causal model of hidden size 32."""
    sizes = {**_SIZES, "vocab_size": 261, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3}
    if model_type == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "vocab_size": 261}
        sizes |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        sizes |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3}
    if model_type == "phi":
        sizes |= {"num_key_value_heads": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    return AutoConfig.for_model(model_type, **{**sizes, **changes})


def tiny_model(
    folder: Path, model_type: str = "llama", *, seed: int = 0, chat: bool = True, **changes: Any
) -> Checkpoint:
    """Write a random two-layer causal model with its tokenizer and return it as a checkpoint.

    The weights are drawn wider than the default initialisation, so that logits differ clearly.
    `changes` are keys of the model's config. Global random state is left as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(model_type, **changes))
        for name, parameter in sorted(model.named_parameters()):
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
            elif "norm" not in name and "ln_" not in name:
                torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    tiny_tokenizer(chat=chat).save_pretrained(folder)
    return as_checkpoint(folder, ArtifactKind.FULL_MODEL)


def as_checkpoint(path: Path, kind: ArtifactKind, *, producer: str | None = None) -> Checkpoint:
    """Name a file or folder by the digest of its content, as the engine does."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(str(file.relative_to(path)).encode() + b"\0" + file.read_bytes())
    return Checkpoint(kind, path, digest.hexdigest(), producer, str(path))


@dataclass
class RecordingLogger:
    """A MetricLogger that keeps every line for a test to read."""

    lines: list[dict[str, float]] = field(default_factory=list)

    def log(self, metrics: Mapping[str, float], *, step: int, epoch: float | None = None) -> None:
        """Keep one line."""
        self.lines.append({"step": step, **metrics} | ({} if epoch is None else {"epoch": epoch}))

    def progress(self, step: int, total: int, text: str = "") -> None:
        """Say it to the test log."""
        logging.getLogger(__name__).debug("%d/%d %s", step, total, text)

    def series(self, name: str) -> list[float]:
        """Return the values of one metric in the order they were logged."""
        return [line[name] for line in self.lines if name in line]


@dataclass
class ManualStop:
    """A StopFlag that a test sets by hand, or that trips after a number of reads."""

    after: int | None = None
    event: threading.Event = field(default_factory=threading.Event)
    reads: int = 0

    @property
    def requested(self) -> bool:
        """True once set, or once it was read more than `after` times."""
        self.reads += 1
        return self.event.is_set() or (self.after is not None and self.reads > self.after)


def stage_context(
    root: Path, config: Any, inputs: Mapping[str, Checkpoint] | None = None, *, stop: ManualStop | None = None
) -> StageContext:
    """Make a stage context with fresh output and lasting scratch folders under `root`."""
    output, scratch = root / "output", root / "scratch"
    output.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(parents=True, exist_ok=True)
    return StageContext(
        "stage", config, inputs or {}, output, scratch, RecordingLogger(), stop or ManualStop()
    )
