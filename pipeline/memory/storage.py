"""Bytes of weights as they lie in memory: plain, in 8 bits, in 4 bits with their constants."""

from __future__ import annotations

import math
from typing import Literal

from pipeline.memory.shape import ModelShape

Dtype = Literal["float32", "bfloat16"]
BYTES = {"float32": 4, "bfloat16": 2}
NF4_BLOCK, NESTED_BLOCK = 64, 256
_CONSTANTS = 16 * 4 + 256 * 4 + 4
"The nf4 code, the code of the nested constants and their offset, for each tensor."
_EIGHT_BIT_BLOCK, _EIGHT_BIT_LEAST = 256, 4096
_MAPS = 2 * 256 * 4
"The two code tables of an 8-bit optimizer, one pair for all its tensors."


def nf4_bytes(num_weights: int) -> int:
    """Return the bytes of a matrix in nf4 with double quantisation, as bitsandbytes stores it.

    Half a byte a weight; a byte for each block of 64; a float32 for each 256 of these bytes;
    and the constant tables.
    """
    blocks = math.ceil(num_weights / NF4_BLOCK)
    return math.ceil(num_weights / 2) + blocks + 4 * math.ceil(blocks / NESTED_BLOCK) + _CONSTANTS


def int8_bytes(num_weights: int, outputs: int) -> int:
    """Return the bytes of a matrix in 8 bits: a byte a weight, a float32 an output."""
    return num_weights + 4 * outputs


def weight_bytes(shape: ModelShape, method: str, dtype: Dtype) -> dict[str, int]:
    """Return the bytes of a base model's weights: linear maps, embeddings and head, norms and biases.

    Args:
        shape: of the model.
        method: qlora holds linear maps in nf4, 8bit in 8 bits; everything else stays in `dtype`.
        dtype: precision of what is not quantised.
    """
    size = BYTES[dtype]
    if method == "qlora":
        linear = sum(nf4_bytes(one.num_weights) for one in shape.all_linears())
    elif method == "8bit":
        linear = sum(int8_bytes(one.num_weights, one.outputs) for one in shape.all_linears())
    else:
        linear = shape.num_linear * size
    return {
        "linear": linear,
        "embedding": (shape.num_embedding + shape.num_head) * size,
        "experts": shape.num_experts * size,
        "vectors": (shape.num_vectors + shape.num_outer) * size,
    }


def optimizer_bytes(sizes: list[int], optimizer: str) -> int:
    """Return the bytes of AdamW's state over tensors of these sizes.

    Two float32 a weight; or, in 8 bits, two bytes a weight and two float32 for each block of 256,
    where tensors under 4,096 weights stay in float32.
    """
    if "8bit" not in optimizer:
        return 8 * sum(sizes)
    total, any_small = 0, False
    for size in sizes:
        if size < _EIGHT_BIT_LEAST:
            total += 8 * size
        else:
            total += 2 * size + 8 * math.ceil(size / _EIGHT_BIT_BLOCK)
            any_small = True
    return total + (_MAPS if any_small else 0)
