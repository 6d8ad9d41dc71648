"""From a config.json to the shape of its model. A family that is not known is refused in words."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError
from pipeline.memory import encoders, moe
from pipeline.memory.shape import Linear, ModelShape

Config = Mapping[str, Any]


def read_shape(source: Path) -> ModelShape:
    """Read the shape of the model in a folder, or of a config.json itself.

    Raises:
        ModelError: the file is absent or not JSON, or its family is not known.
    """
    file = source / "config.json" if source.is_dir() else source
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        hint = "a model folder, or its config.json"
        message = f"the model's sizes cannot be read: {error}"
        raise ModelError(message, where=str(file), hint=hint, code="bad-json") from error
    return shape_of(config, where=str(file))


def shape_of(config: Config, *, where: str = "config.json") -> ModelShape:
    """Return the shape that a model's config describes.

    Raises:
        ModelError: a family that is not known, experts, or a size that is missing.
    """
    config = config.get("text_config") or config if isinstance(config, dict) else {}
    family = str(config.get("model_type"))
    build = _FAMILIES.get(family)
    if family in moe.FAMILIES:
        build = partial(moe.FAMILIES[family], gated=_gated)
    elif any(config.get(key) for key in _EXPERT_KEYS):
        raise ModelError(
            f"no memory plan for the experts of model_type {family!r}: how they are stored is not known here",
            where=where,
            hint=f"one of {', '.join(sorted(moe.FAMILIES))}, or a dense base; or plan without --gpu",
            code="experts-not-planned",
        )
    if build is None:
        raise ModelError(
            f"no memory plan for model_type {family!r}: its layers are not known here",
            where=where,
            hint=f"one of {', '.join(sorted({*_FAMILIES, *moe.FAMILIES}))}; or plan without --gpu",
            code="unknown-architecture",
        )
    try:
        return build(config)
    except KeyError as error:
        message = f"a {family} config needs {error.args[0]}"
        raise ModelError(message, where=where, hint="the model's own config.json", code="bad-json") from error


_EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size")


def _gated(config: Config, **options: Any) -> ModelShape:
    """Build the Llama family: separate q, k, v, o and gate, up, down maps, rotary positions."""
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or options.get("kv_default") or heads)
    head_size = int(config.get("head_dim") or options.get("head_default") or hidden // heads)
    inner, layers = int(config["intermediate_size"]), int(config["num_hidden_layers"])
    qkv_bias, o_bias = options.get("qkv_bias", False), options.get("o_bias", False)
    mlp_bias = options.get("mlp_bias", False)
    queries, keys = heads * head_size, kv_heads * head_size
    linears = (
        Linear("q_proj", hidden, queries, qkv_bias, "attention"),
        Linear("k_proj", hidden, keys, qkv_bias, "attention"),
        Linear("v_proj", hidden, keys, qkv_bias, "attention"),
        Linear("o_proj", queries, hidden, o_bias, "context"),
        Linear("gate_proj", hidden, inner, mlp_bias, "mlp"),
        Linear("up_proj", hidden, inner, mlp_bias, "mlp"),
        Linear("down_proj", inner, hidden, mlp_bias, "inner"),
    )
    norms, norm = options.get("norms", 2), options.get("norm", "rms")
    vectors = norms * hidden * (2 if norm == "layer" else 1) + options.get("qk_vectors", 0)
    return ModelShape(
        model_type=str(config["model_type"]),
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        intermediate=inner,
        vocabulary=int(config["vocab_size"]),
        linears=_in_blocks(options.get("linears", linears), "self_attn", "mlp"),
        tied=bool(config.get("tie_word_embeddings", options.get("tied", False))),
        norm=norm,
        layer_norms=norms,
        layer_vectors=vectors,
        outer_vectors=hidden * (2 if norm == "layer" else 1),
        qk_norm=bool(options.get("qk_vectors")),
        softcap=bool(config.get("attn_logit_softcapping")) and options.get("softcap", False),
        max_positions=config.get("max_position_embeddings"),
    )


def _llama(config: Config) -> ModelShape:
    bias = bool(config.get("attention_bias"))
    return _gated(config, qkv_bias=bias, o_bias=bias, mlp_bias=bool(config.get("mlp_bias")))


def _mistral(config: Config) -> ModelShape:
    return _gated(config, kv_default=8)


def _qwen2(config: Config) -> ModelShape:
    return _gated(config, qkv_bias=True)


def _qwen3(config: Config) -> ModelShape:
    head_size = int(config.get("head_dim") or 128)
    bias = bool(config.get("attention_bias"))
    return _gated(config, head_default=128, qk_vectors=2 * head_size, qkv_bias=bias, o_bias=bias)


def _gemma(config: Config) -> ModelShape:
    bias = bool(config.get("attention_bias"))
    return _gated(config, head_default=256, tied=True, qkv_bias=bias, o_bias=bias)


def _gemma2(config: Config) -> ModelShape:
    # The config class bounds scores at 50 unless a file says null.
    filled = {"attn_logit_softcapping": 50.0, **config}
    return _gated(filled, head_default=256, kv_default=4, tied=True, norms=4, softcap=True)


def _gemma3(config: Config) -> ModelShape:
    head_size = int(config.get("head_dim") or 256)
    return _gated(config, head_default=256, kv_default=4, tied=True, norms=4, qk_vectors=2 * head_size)


def _olmo2(config: Config) -> ModelShape:
    heads = int(config["num_attention_heads"])
    head_size = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    keys = int(config.get("num_key_value_heads") or heads) * head_size
    return _gated(config, qk_vectors=heads * head_size + keys)


def _phi3(config: Config) -> ModelShape:
    plain = _gated(config)
    hidden, inner = plain.hidden, plain.intermediate
    together = plain.query_width + 2 * plain.kv_width
    return _gated(
        config,
        linears=(
            Linear("qkv_proj", hidden, together, False, "attention"),
            Linear("o_proj", plain.query_width, hidden, False, "context"),
            Linear("gate_up_proj", hidden, 2 * inner, False, "mlp"),
            Linear("down_proj", inner, hidden, False, "inner"),
        ),
    )


def _gpt2(config: Config) -> ModelShape:
    hidden = int(config["n_embd"])
    inner = int(config.get("n_inner") or 4 * hidden)
    linears = (
        Linear("c_attn", hidden, 3 * hidden, True, "attention"),
        Linear("c_proj", hidden, hidden, True, "context"),
        Linear("c_fc", hidden, inner, True, "mlp"),
        Linear("c_proj", inner, hidden, True, "inner"),
    )
    copies = 4 if config.get("activation_function", "gelu_new") == "gelu_new" else 1
    return _plain_decoder(
        config,
        {
            "hidden_size": hidden,
            "num_hidden_layers": config["n_layer"],
            "num_attention_heads": config["n_head"],
            "intermediate_size": inner,
        },
        linears,
        tied=True,
        positions=int(config["n_positions"]),
        act_copies=copies,
        blocks=("attn", "mlp"),
        layers_path="transformer.h",
        table_path="transformer.wte",
    )


def _gpt_neox(config: Config) -> ModelShape:
    hidden, inner, bias = int(config["hidden_size"]), int(config["intermediate_size"]), True
    attention = bool(config.get("attention_bias", True))
    linears = (
        Linear("query_key_value", hidden, 3 * hidden, attention, "attention"),
        Linear("dense", hidden, hidden, attention, "context"),
        Linear("dense_h_to_4h", hidden, inner, bias, "mlp"),
        Linear("dense_4h_to_h", inner, hidden, bias, "inner"),
    )
    return _plain_decoder(
        config,
        config,
        linears,
        tied=False,
        blocks=("attention", "mlp"),
        layers_path="gpt_neox.layers",
        table_path="gpt_neox.embed_in",
    )


def _phi(config: Config) -> ModelShape:
    hidden, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    heads = int(config["num_attention_heads"])
    keys = int(config.get("num_key_value_heads") or heads) * (hidden // heads)
    linears = (
        Linear("q_proj", hidden, hidden, True, "attention"),
        Linear("k_proj", hidden, keys, True, "attention"),
        Linear("v_proj", hidden, keys, True, "attention"),
        Linear("dense", hidden, hidden, True, "context"),
        Linear("fc1", hidden, inner, True, "mlp"),
        Linear("fc2", inner, hidden, True, "inner"),
    )
    copies = 4 if config.get("hidden_act", "gelu_new") == "gelu_new" else 1
    return _plain_decoder(config, config, linears, tied=False, norms=1, head_bias=True, act_copies=copies)


def _opt(config: Config) -> ModelShape:
    hidden, inner = int(config["hidden_size"]), int(config["ffn_dim"])
    if int(config.get("word_embed_proj_dim") or hidden) != hidden or config.get("enable_bias") is False:
        raise ModelError("an OPT with projected embeddings has no memory plan", code="unknown-architecture")
    if not config.get("do_layer_norm_before", True):
        raise ModelError("an OPT with norms behind its parts has no memory plan", code="unknown-architecture")
    linears = (
        *(Linear(name, hidden, hidden, True, "attention") for name in ("k_proj", "v_proj", "q_proj")),
        Linear("out_proj", hidden, hidden, True, "context"),
        Linear("fc1", hidden, inner, True, "mlp"),
        Linear("fc2", inner, hidden, True, "inner"),
    )
    sizes = {**config, "intermediate_size": inner}
    return _plain_decoder(
        config,
        sizes,
        linears,
        tied=True,
        positions=int(config["max_position_embeddings"]) + 2,
        blocks=("self_attn", ""),
        layers_path="model.decoder.layers",
        table_path="model.decoder.embed_tokens",
    )


def _in_blocks(linears: Sequence[Linear], attention: str, mlp: str) -> tuple[Linear, ...]:
    """Name the module of the layer that holds each map."""
    blocks = {"attention": attention, "context": attention, "mlp": mlp, "inner": mlp}
    return tuple(replace(one, block=blocks[one.reads]) for one in linears)


def _plain_decoder(
    config: Config, sizes: Config, linears: tuple[Linear, ...], *, tied: bool, **options: Any
) -> ModelShape:
    """Build a decoder with layer norms and a feed-forward part without a gate."""
    hidden, heads = int(sizes["hidden_size"]), int(sizes["num_attention_heads"])
    norms = int(options.get("norms", 2))
    limit = config.get("max_position_embeddings") or config.get("n_positions")
    return ModelShape(
        model_type=str(config["model_type"]),
        hidden=hidden,
        layers=int(sizes["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(sizes.get("num_key_value_heads") or heads),
        head_size=hidden // heads,
        intermediate=int(sizes["intermediate_size"]),
        vocabulary=int(config["vocab_size"]),
        linears=_in_blocks(linears, *options.get("blocks", ("self_attn", "mlp"))),
        tied=bool(config.get("tie_word_embeddings", tied)),
        norm="layer",
        layer_norms=norms,
        layer_vectors=2 * norms * hidden,
        outer_vectors=2 * hidden,
        positions=int(options.get("positions", 0)),
        head_bias=bool(options.get("head_bias", False)),
        gated=False,
        act_copies=int(options.get("act_copies", 1)),
        max_positions=limit,
        layers_path=options.get("layers_path", "model.layers"),
        table_path=options.get("table_path", "model.embed_tokens"),
    )


_FAMILIES: dict[str, Callable[[Config], ModelShape]] = {
    "llama": _llama,
    "granite": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "gemma3": _gemma3,
    "olmo2": _olmo2,
    "phi3": _phi3,
    "phi": _phi,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "opt": _opt,
    "bert": encoders.bert,
    "roberta": encoders.roberta,
    "xlm-roberta": encoders.roberta,
    "camembert": encoders.roberta,
    "distilbert": encoders.distilbert,
}
