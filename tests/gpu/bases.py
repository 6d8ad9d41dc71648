"""Random base models built on the device: no file, no download. In bf16, or in nf4 layer by layer."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
import yaml
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from pipeline.contract import ArtifactKind, Checkpoint
from pipeline.memory.bases import SHIPPED
from stages.runtime.loading import name_base

TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 1024,
    "tie_word_embeddings": False,
    "max_position_embeddings": 4096,
}
FULL_SIZE = ("Qwen2.5-0.5B", "Qwen2.5-1.5B", "Qwen2.5-7B")


def config_of(name: str) -> dict[str, Any]:
    """Return the config of a known shape, or of the tiny one."""
    if name == "tiny":
        return dict(TINY)
    rows = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))["bases"]
    return dict(next(row["config"] for row in rows if row["name"] == name))


def random_base(config: dict[str, Any], *, four_bits: bool, device: torch.device) -> PreTrainedModel:
    """Build a frozen base with random weights; linear maps in nf4 with double quantisation if asked for."""
    keys = {key: value for key, value in config.items() if key != "model_type"}
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    with device:
        made = AutoConfig.for_model(config["model_type"], **keys)
        model = AutoModelForCausalLM.from_config(made, dtype=dtype)
    model.requires_grad_(False).eval()
    if four_bits:
        _quantise(model, dtype)
    digest = hashlib.sha256(repr(sorted(config.items())).encode()).hexdigest()
    return name_base(model, Checkpoint(ArtifactKind.FULL_MODEL, Path("random"), digest, source="random"))


def _quantise(model: PreTrainedModel, dtype: torch.dtype) -> None:
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and child is not head:
                setattr(parent, name, _in_nf4(child, dtype))
    model.is_loaded_in_4bit = True


def _in_nf4(linear: nn.Linear, dtype: torch.dtype) -> bnb.nn.Linear4bit:
    made = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=dtype,
        quant_type="nf4",
        compress_statistics=True,
        device="meta",
    )
    on, weight = linear.weight.device, linear.weight.data.cpu()
    made.weight = bnb.nn.Params4bit(
        weight, requires_grad=False, quant_type="nf4", compress_statistics=True, module=made
    ).to(on)
    if linear.bias is not None:
        made.bias = nn.Parameter(linear.bias.data, requires_grad=False)
    if hasattr(made, "support_avx512bf16_for_cpu"):
        made.support_avx512bf16_for_cpu = False
    return made
