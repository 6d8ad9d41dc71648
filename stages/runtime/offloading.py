"""What the backward pass needs waits in the host's memory: the same numbers, fewer bytes on the card.

Weights stay where they are, also as views; so do small tensors, whose copies cost more than they free.
Copies run on the card's own stream, one after the other with its work: simple, exact, not hidden.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LEAST_NUMBERS = 1024
"Tensors of fewer numbers stay on the card."


def offload_activations(body: nn.Module) -> None:
    """Let whatever autograd keeps of a module's forward passes wait on the host.

    With recomputed layers it is the inputs of the layers that wait, else everything inside them.

    Args:
        body: the part of a model that gives hidden states; what its output head keeps stays on the card.
    """
    waiting: list[torch.autograd.graph.saved_tensors_hooks] = []

    def begin(module: nn.Module, _inputs: Any) -> None:
        store = _Store(_weights_of(module))
        context = torch.autograd.graph.saved_tensors_hooks(store.pack, _unpack)
        context.__enter__()
        waiting.append(context)

    def end(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        waiting.pop().__exit__(None, None, None)

    body.register_forward_pre_hook(begin)
    body.register_forward_hook(end, always_call=True)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A tensor on the host, and how to make it what it was."""

    held: Tensor
    "Without the axes that were only repeated."
    shape: torch.Size
    device: torch.device


class _Store:
    """Packs the tensors of one forward pass; one that several operations keep is copied once."""

    def __init__(self, weights: frozenset[int]) -> None:
        self._weights = weights
        self._copies: dict[Hashable, Waiting] = {}

    def pack(self, tensor: Tensor) -> Tensor | Waiting:
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self._weights or not is_worth_moving(tensor):
            return tensor
        layout = (tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version)
        key = (storage.data_ptr(), *layout)
        if key not in self._copies:
            self._copies[key] = Waiting(to_host(_without_repeats(tensor)), tensor.shape, tensor.device)
            # The address may be given to another tensor once this one is gone.
            weakref.finalize(storage, self._copies.pop, key, None)
        return self._copies[key]


def is_worth_moving(tensor: Tensor) -> bool:
    """Say whether a tensor lies on a card and is large enough."""
    return tensor.device.type != "cpu" and tensor.numel() >= LEAST_NUMBERS


def to_host(tensor: Tensor) -> Tensor:
    """Copy a tensor to pinned memory of the host; its strides stay."""
    held = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return held.copy_(tensor, non_blocking=True)


def to_card(held: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor back."""
    return held.to(device, non_blocking=True)


def _unpack(kept: Tensor | Waiting) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    return to_card(kept.held, kept.device).expand(kept.shape)


def _without_repeats(tensor: Tensor) -> Tensor:
    """Cut every axis along which the same numbers are repeated down to one."""
    repeated = [step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)]
    return tensor.detach()[tuple(slice(0, 1) if one else slice(None) for one in repeated)]


def _weights_of(module: nn.Module) -> frozenset[int]:
    """Return where the weights and buffers of a module lie now."""
    held = (*module.parameters(), *module.buffers())
    return frozenset(value.untyped_storage().data_ptr() for value in held)
