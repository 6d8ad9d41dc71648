"""The least CPU seconds that a LoRA step can take here: its matrix products at this machine's own speed.

FLOPs of a step with adapters on a frozen base: 2 N forward and 2 N for the gradients of activations, a
token, N being the weights of the layers that the token passes; attention adds 4 * hidden a pair of
positions that see each other, forward, and twice that backward. Adapters (about 2 %), norms, softmax
and the optimizer are left out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from transformers import LlamaConfig

from stages.trainers.pair_data import TokenPair


def gemm_speed(dtype: torch.dtype, config: LlamaConfig, *, rows: int = 1024, seconds: float = 1.5) -> float:
    """Return FLOPs a CPU second of the model's own matrix shapes."""
    shapes = [(config.hidden_size, config.intermediate_size), (config.intermediate_size, config.hidden_size)]
    pairs = [(torch.randn(rows, n).to(dtype), torch.randn(n, m).to(dtype)) for n, m in shapes]
    for left, right in pairs:
        left @ right
    start, done = time.process_time(), 0
    while time.process_time() - start < seconds:
        for left, right in pairs:
            left @ right
            done += 2 * left.shape[0] * left.shape[1] * right.shape[1]
    return done / (time.process_time() - start)


def layer_weights(config: LlamaConfig) -> int:
    """Return the weights of all layers, embeddings and head left out."""
    kv = config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    attention = 2 * config.hidden_size**2 + 2 * config.hidden_size * kv
    return config.num_hidden_layers * (attention + 3 * config.hidden_size * config.intermediate_size)


def step_flops(pairs: Sequence[TokenPair], config: LlamaConfig, *, with_head: bool) -> float:
    """Return the FLOPs of forward and backward over pairs, every prompt once, nothing padded."""
    total = 0.0
    for pair in pairs:
        prompt, answers = len(pair.prompt), (len(pair.chosen), len(pair.rejected))
        total += 4 * layer_weights(config) * (prompt + sum(answers))
        seen = prompt**2 / 2 + sum(n * prompt + n**2 / 2 for n in answers)
        total += 3 * 4 * config.hidden_size * config.num_hidden_layers * seen
        total += 4 * config.vocab_size * config.hidden_size * sum(answers) if with_head else 0.0
    return total
