"""Shapes of mixtures of experts: attention and shared experts are linear maps, the experts are blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pipeline.errors import ModelError
from pipeline.memory.shape import Experts, Linear, ModelShape

Config = Mapping[str, Any]
Build = Callable[..., ModelShape]


def mixtral(config: Config, gated: Build) -> ModelShape:
    """Build Mixtral: experts as wide as intermediate_size."""
    dense = gated(config, kv_default=8)
    return _with_experts(dense, config, active=2, inner="intermediate_size")


def qwen2_moe(config: Config, gated: Build) -> ModelShape:
    """Build Qwen2-MoE: biased attention, and an expert that computes every token behind a gate of its own."""
    dense = gated(config, qkv_bias=config.get("qkv_bias", True))
    shape = _with_experts(dense, config, active=4, inner="moe_intermediate_size")
    hidden, inner = shape.hidden, int(config["shared_expert_intermediate_size"])
    shared = (
        Linear("gate_proj", hidden, inner, False, "mlp", "mlp.shared_expert"),
        Linear("up_proj", hidden, inner, False, "mlp", "mlp.shared_expert"),
        Linear("down_proj", inner, hidden, False, "inner", "mlp.shared_expert"),
        Linear("shared_expert_gate", hidden, 1, False, "mlp", "mlp"),
    )
    return replace(shape, linears=shape.linears + shared, intermediate=shape.intermediate + inner)


def qwen3_moe(config: Config, gated: Build) -> ModelShape:
    """Build Qwen3-MoE: norms of queries and keys."""
    head_size = int(
        config.get("head_dim") or int(config["hidden_size"]) // int(config["num_attention_heads"])
    )
    bias = bool(config.get("attention_bias"))
    dense = gated(config, qk_vectors=2 * head_size, qkv_bias=bias, o_bias=bias, kv_default=4)
    return _with_experts(dense, config, active=8, inner="moe_intermediate_size")


def olmoe(config: Config, gated: Build) -> ModelShape:
    """Build OLMoE: norms over all queries and over all keys."""
    heads = int(config["num_attention_heads"])
    head_size = int(config["hidden_size"]) // heads
    keys = int(config.get("num_key_value_heads") or heads) * head_size
    bias = bool(config.get("attention_bias"))
    dense = gated(config, qk_vectors=heads * head_size + keys, qkv_bias=bias, o_bias=bias)
    return _with_experts(dense, config, active=8, inner="intermediate_size")


FAMILIES = {"mixtral": mixtral, "qwen2_moe": qwen2_moe, "qwen3_moe": qwen3_moe, "olmoe": olmoe}


def _with_experts(dense: ModelShape, config: Config, *, active: int, inner: str) -> ModelShape:
    """Put experts in the place of a dense feed-forward part.

    Args:
        dense: the shape of the same model without experts.
        config: of the model.
        active: experts a token where the config does not say.
        inner: key of an expert's width.

    Raises:
        ModelError: some layers have no experts.
    """
    if config.get("mlp_only_layers") or int(config.get("decoder_sparse_step") or 1) != 1:
        raise ModelError(
            f"no memory plan for this {dense.model_type}: only some of its layers have experts",
            hint="a base whose layers are alike; or plan without --gpu",
            code="unknown-architecture",
        )
    chosen = int(config.get("num_experts_per_tok") or active)
    # transformers writes the one name or the other, whatever the family's own is.
    count = config.get("num_experts") or config["num_local_experts"]
    experts = Experts(int(count), chosen, dense.hidden, int(config[inner]))
    attention = tuple(one for one in dense.linears if one.reads in ("attention", "context"))
    return replace(dense, linears=attention, experts=experts, intermediate=experts.active * experts.inner)
