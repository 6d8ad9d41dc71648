"""How a stage held its weights and computed: what was chosen for the device, read off the model."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.config.run import ModelConfig, TuningConfig
from stages.runtime.loading import causal_lm_of, device

_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def computing_of(
    model: Any,
    settings: ModelConfig,
    tuning: TuningConfig | None,
    *,
    autocast: bool = False,
    packed: bool = False,
) -> dict[str, str]:
    """Return plain facts for the record of a stage.

    Args:
        model: the base with its adapters, or a whole model, as it was used.
        settings: of the model; float32 there keeps autocast off.
        tuning: of the stage; None where every weight trains.
        autocast: matrix products run in bfloat16 on a GPU whatever the weights are.
        packed: rows were laid end to end, which takes attention of this project's own.
    """
    inner = causal_lm_of(model)
    plain = _NAMES.get(_plain_dtype(inner), "mixed")
    casts = autocast and device().type == "cuda" and settings.dtype != "float32"
    attention = str(getattr(inner.config, "_attn_implementation", None) or "its own")
    facts = {
        "weights": _held(inner, plain),
        "products": "bfloat16" if casts else plain,
        "attention": f"packed rows, {attention} elsewhere" if packed else attention,
    }
    if tuning is not None:
        facts["layers"] = "recomputed" if tuning.gradient_checkpointing else "kept"
        facts["activations"] = "on the host" if _offloaded(tuning) else "on the device"
    return facts


def _held(inner: Any, plain: str) -> str:
    if getattr(inner, "is_loaded_in_4bit", False):
        return f"nf4, the rest {plain}"
    if getattr(inner, "is_loaded_in_8bit", False):
        return f"8 bits, the rest {plain}"
    return plain


def _plain_dtype(inner: Any) -> torch.dtype | None:
    """Return the precision of the token table, which nothing quantises and no adapter changes."""
    table = inner.get_input_embeddings()
    return getattr(getattr(table, "weight", None), "dtype", None)


def _offloaded(tuning: TuningConfig) -> bool:
    return tuning.activation_offloading and device().type != "cpu"
