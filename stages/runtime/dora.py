"""DoRA by hand: what a layer with trained lengths gives, from the definition and not from peft.

    y = m / ||W + s B A|| * (W x + s B A x) + bias        norms over the inputs of each output

Source: Liu et al. 2024, DoRA, https://arxiv.org/abs/2402.09353, equation 5.
"""

from __future__ import annotations

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor


def base_weight(layer: LoraLayer) -> Tensor:
    """Return the weight under an adapter layer as (outputs, inputs), dequantised where need be."""
    weight = dequantize_module_weight(layer.get_base_layer()).detach()
    return weight.T if getattr(layer, "fan_in_fan_out", False) else weight


def with_lengths(
    plain: Tensor, layer: LoraLayer, *, down: Tensor, up: Tensor, scale: float, lengths: Tensor
) -> Tensor:
    """Give the outputs of a plain LoRA layer the trained lengths.

    Args:
        plain: W x + s B A x + bias, (..., outputs).
        layer: the adapter layer, for its base weight and bias.
        down: A (rank, inputs).
        up: B (outputs, rank).
        scale: s.
        lengths: m (outputs,).
    """
    bias = getattr(layer.get_base_layer(), "bias", None)
    offset = torch.zeros((), device=plain.device) if bias is None else bias.float()
    moved = base_weight(layer).float() + scale * (up.float() @ down.float())
    factor = lengths.to(moved) / moved.norm(dim=1)
    return ((plain.float() - offset) * factor + offset).to(plain.dtype)
