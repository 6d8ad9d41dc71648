"""Which base models can be packed, said from config.json alone. No torch here.

A forecast for `plan`: the stage itself asks the model (segment_check.py) and that answer counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.runtime.folders import CONFIG_FILE

_PACKED = """
    afmoe apertus arcee aria_text beam biogpt bitnet cohere cohere2 cohere2_moe cwm diffllama doge ernie4_5
    ernie4_5_moe exaone4 exaone_moe flex_olmo gemma gemma2 gemma3_text glm glm4 glm4_moe gpt2 gpt_bigcode
    gpt_neox granite granitemoe granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe jais2 jetmoe llama
    minimax_m2 ministral ministral3 mistral mixtral modernbert-decoder nanochat olmo olmo2 olmo3 olmoe opt
    persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 solar_open starcoder2
    vaultgemma
"""
PACKED = frozenset(_PACKED.split())
"Families that the self-test passes with the pinned transformers; tests/test_packing.py runs it on each."
_BIAS = "its attention has a position bias"
_UNPACKED = {
    "its attention has sinks": "deepseek_v4 gpt_oss granite_swa granitemoe_swa mimo_v2_flash",
    "it has recurrent or convolution layers": """
        bamba falcon_h1 falcon_mamba granitemoehybrid jamba kimi_linear lfm2 lfm2_moe lfm3 mamba mamba2
        minimax nemotron_h olmo_hybrid qwen3_5_moe_text qwen3_5_text qwen3_next recurrent_gemma rwkv
        xlstm zamba zamba2
    """,
    _BIAS: "bloom mpt",
    "its code takes no packed rows": "codegen gpt_neo gpt_neox_japanese gptj nemotron stablelm xglm",
    "it is an encoder, whose tokens see what follows them": """
        albert bert camembert deberta deberta-v2 distilbert electra eurobert modernbert roberta xlm-roberta
    """,
}
UNPACKED: Mapping[str, str] = {
    family: reason for reason, families in _UNPACKED.items() for family in families.split()
}
"Families that the self-test refuses, and why."
_PLAIN_LAYERS = {"full_attention", "sliding_attention"}


def packing_note(folder: Path) -> str | None:
    """Say what a person should know of packing for a base, or None when its rows will be packed.

    Args:
        folder: the base; without a config.json that can be read nothing is said.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError):
        return None
    if not isinstance(config, dict):
        return None
    family = str(config.get("model_type"))
    reason = unpacked_because(config)
    if reason is not None:
        return f"rows will be padded: a {family} base cannot be packed, {reason}"
    if family in PACKED:
        return None
    return f"whether a {family} base can be packed is found out by a self-test when the stage starts"


def unpacked_because(config: Mapping[str, Any]) -> str | None:
    """Return why a model of this config is known not to be packed; None when it can or nobody knows."""
    text = config.get("text_config") or config
    layers = set(text.get("layer_types") or ()) - _PLAIN_LAYERS
    if layers:
        return f"it has layers of type {', '.join(sorted(layers))}"
    if text.get("alibi"):
        return _BIAS
    return UNPACKED.get(str(text.get("model_type", config.get("model_type"))))
