"""Configs of every family that the memory plan knows, small and uneven, and their public sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 131,
    "max_position_embeddings": 128,
}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT2 = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128, "vocab_size": 131, **IDS}
OPT = {"ffn_dim": 96, "word_embed_proj_dim": 64}

FEW = {"num_experts_per_tok": 2}
NARROW = {"num_experts": 5, "moe_intermediate_size": 48}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, grouped heads": ("llama", {"num_key_value_heads": 2}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, wide heads": ("llama", {"head_dim": 40, "num_key_value_heads": 1}),
    "granite": ("granite", {"num_key_value_heads": 2}),
    "mistral": ("mistral", {"num_key_value_heads": 2}),
    "qwen2": ("qwen2", {"num_key_value_heads": 2}),
    "qwen2, tied": ("qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"num_key_value_heads": 2, "head_dim": 24}),
    "gemma": ("gemma", {"num_key_value_heads": 1, "head_dim": 24}),
    "gemma2": ("gemma2", {"num_key_value_heads": 2, "head_dim": 24}),
    "gemma3": ("gemma3_text", {"num_key_value_heads": 2, "head_dim": 24}),
    "olmo2": ("olmo2", {"num_key_value_heads": 2}),
    "phi3": ("phi3", {"num_key_value_heads": 2}),
    "phi": ("phi", {}),
    "gpt2": ("gpt2", GPT2),
    "gpt_neox": ("gpt_neox", {}),
    "opt": ("opt", OPT),
    "mixtral": ("mixtral", {"num_key_value_heads": 2, **FEW, "num_local_experts": 5}),
    "qwen2_moe": (
        "qwen2_moe",
        {"num_key_value_heads": 2, "shared_expert_intermediate_size": 80, **FEW, **NARROW},
    ),
    "qwen3_moe": ("qwen3_moe", {"num_key_value_heads": 2, "head_dim": 24, **FEW, **NARROW}),
    "olmoe": ("olmoe", {"num_key_value_heads": 2, **FEW, "num_experts": 5}),
}
"A name -> model_type and the keys that make it uneven."


def keys_of(name: str) -> dict[str, Any]:
    """Return the keys of a family's small config."""
    model_type, changes = FAMILIES[name]
    return dict(GPT2) if model_type == "gpt2" else {**SIZES, **IDS, **changes}


LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "max_position_embeddings": 131072,
}
"Llama-3.1-8B, as its public config.json has it."


def config_only(folder: Path, config: dict[str, Any]) -> Path:
    """Write a model folder of which only config.json is real: enough for a plan, no weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"no weights")
    return folder
