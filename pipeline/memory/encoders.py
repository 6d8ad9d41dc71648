"""Shapes of encoders with a classification head: what a reward_encoder stage stands on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.memory.shape import Linear, ModelShape


def bert(config: Mapping[str, Any]) -> ModelShape:
    """Build BERT: a pooler, which carries an adapter too, and a head of one row."""
    hidden = int(config["hidden_size"])
    pooler = Linear("dense", hidden, hidden, True, "pooled", "bert.pooler")
    return _encoder(
        config, config, _BERT_NAMES, outer=(pooler,), head=(hidden, 1), prefix="bert.encoder.layer"
    )


def roberta(config: Mapping[str, Any]) -> ModelShape:
    """Build RoBERTa and what descends from it: no pooler, a head of two maps."""
    hidden = int(config["hidden_size"])
    head = (hidden * hidden, hidden, hidden, 1)
    return _encoder(config, config, _BERT_NAMES, head=head, prefix="roberta.encoder.layer")


def distilbert(config: Mapping[str, Any]) -> ModelShape:
    """Build DistilBERT: no token types, a head of two maps."""
    hidden = int(config["dim"])
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": config["hidden_dim"],
        "num_hidden_layers": config["n_layers"],
        "num_attention_heads": config["n_heads"],
        "type_vocab_size": 0,
    }
    head = (hidden * hidden, hidden, hidden, 1)
    return _encoder(config, sizes, _DISTIL_NAMES, head=head, prefix="distilbert.transformer.layer")


_BERT_NAMES = (
    *("attention.self.query", "attention.self.key", "attention.self.value"),
    *("attention.output.dense", "intermediate.dense", "output.dense"),
)
_DISTIL_NAMES = (
    *("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    *("attention.out_lin", "ffn.lin1", "ffn.lin2"),
)


def _encoder(
    config: Mapping[str, Any],
    sizes: Mapping[str, Any],
    names: tuple[str, ...],
    *,
    head: tuple[int, ...],
    prefix: str,
    outer: tuple[Linear, ...] = (),
) -> ModelShape:
    """Build layers whose norms stand behind their maps, and learned positions and token types."""
    hidden, inner = int(sizes["hidden_size"]), int(sizes["intermediate_size"])
    heads = int(sizes["num_attention_heads"])
    wide = [(hidden, hidden, "attention")] * 3
    wide += [(hidden, hidden, "context"), (hidden, inner, "mlp"), (inner, hidden, "inner")]
    linears = tuple(
        Linear(name.rpartition(".")[2], inputs, outputs, True, reads, name.rpartition(".")[0])
        for name, (inputs, outputs, reads) in zip(names, wide, strict=True)
    )
    types = int(sizes.get("type_vocab_size", 2))
    return ModelShape(
        model_type=str(config["model_type"]),
        hidden=hidden,
        layers=int(sizes["num_hidden_layers"]),
        heads=heads,
        kv_heads=heads,
        head_size=hidden // heads,
        intermediate=inner,
        vocabulary=int(config["vocab_size"]),
        linears=linears,
        # The head over the vocabulary, which masked training has, is not loaded.
        tied=True,
        norm="layer",
        layer_norms=2,
        layer_vectors=4 * hidden,
        outer_vectors=2 * hidden,
        positions=int(config["max_position_embeddings"]) + types,
        gated=False,
        max_positions=int(config["max_position_embeddings"]),
        layers_path=prefix,
        norms_first=False,
        outer_linears=outer,
        own_head=head,
    )
