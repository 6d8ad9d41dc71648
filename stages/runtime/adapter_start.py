"""How a fresh adapter starts: lora_B is 0 and lora_A a function of the seed, so the base says what it said.

Nothing here moves the base. PiSSA proper does: it takes what the adapter starts with out of the weights,
so its adapter fits no other copy of the base and four roles could not share one.
"""

from __future__ import annotations

import hashlib
import math
from typing import Literal

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from stages.runtime.adapter_weights import stored_key
from stages.runtime.dora import base_weight

Start = Literal["uniform", "orthogonal", "principal"]


def start_adapter(model: PeftModel, name: str, start: Start, *, seed: int) -> None:
    """Fill lora_A of every layer of an adapter, and the lengths of a DoRA adapter, in place."""
    for path, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or name not in layer.lora_A:
            continue
        down = layer.lora_A[name].weight
        key = stored_key(f"{path}.lora_A.{name}.weight", name)
        with torch.no_grad():
            down.copy_(_started(layer, down.shape, start, key=key, seed=seed))
            if name in layer.lora_magnitude_vector:
                # peft rounds them to the base's precision: the first forward pass would differ.
                lengths = base_weight(layer).float().norm(dim=1)
                layer.lora_magnitude_vector[name].weight = nn.Parameter(lengths)


def uniform_start(shape: torch.Size, *, key: str, seed: int) -> Tensor:
    """Draw lora_A uniformly in +-1/sqrt(inputs), from a seed made of the run's seed and the name."""
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=_generator(key, seed))


def _started(layer: LoraLayer, shape: torch.Size, start: Start, *, key: str, seed: int) -> Tensor:
    if start == "orthogonal":
        drawn = torch.empty(shape[1], shape[0]).normal_(generator=_generator(key, seed))
        return torch.linalg.qr(drawn).Q.T / math.sqrt(3)
    if start == "principal":
        return _principal(base_weight(layer).float(), shape[0], key=key, seed=seed)
    return uniform_start(shape, key=key, seed=seed)


def _principal(weight: Tensor, rank: int, *, key: str, seed: int) -> Tensor:
    """Return the main right singular vectors (rank, inputs), each as long as a uniform row.

    By subspace iteration from a seeded start: a full decomposition of a large layer takes minutes.
    """
    drawn = torch.empty(weight.shape[1], rank).normal_(generator=_generator(key, seed)).to(weight.device)
    basis = torch.linalg.qr(drawn).Q
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(weight.T @ (weight @ basis)).Q
    return basis.T.cpu() / math.sqrt(3)


_ITERATIONS = 8


def _generator(key: str, seed: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}|{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
