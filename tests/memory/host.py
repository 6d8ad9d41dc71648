"""A host for tests without a card: what waits there is no tensor, so only the card's tensors are counted."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from stages.runtime import offloading


@dataclass
class Away:
    """A tensor as bytes."""

    raw: bytes
    shape: torch.Size
    dtype: torch.dtype


@dataclass
class FakeHost:
    """Takes tensors of the CPU as if they lay on a card, and counts them."""

    moved: list[int] = field(default_factory=list)
    "Bytes of each copy."
    came_back: int = 0
    "Copies that were asked for again."

    def install(self, patch):
        """Put this host in the place of pinned memory."""
        patch.setattr(offloading, "is_worth_moving", lambda t: t.numel() >= offloading.LEAST_NUMBERS)
        patch.setattr(offloading, "to_host", self.take)
        patch.setattr(offloading, "to_card", self.give)
        return self

    def take(self, tensor: Tensor) -> Away:
        """Keep the bytes."""
        raw = tensor.flatten().clone().view(torch.uint8).numpy().tobytes()
        self.moved.append(len(raw))
        return Away(raw, tensor.shape, tensor.dtype)

    def give(self, held: Away, device: torch.device) -> Tensor:
        """Make a tensor of them again."""
        self.came_back += 1
        return torch.frombuffer(bytearray(held.raw), dtype=held.dtype).reshape(held.shape).to(device)
