"""Prompt and response as one micro-batch that every role reads the same way.

Positions are named in the flattened batch, so a packed row and a padded batch look alike to the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from stages.runtime.segments import pack_row


@dataclass(frozen=True, slots=True)
class Episode:
    """One prompt and what was sampled after it, as token ids."""

    prompt: Sequence[int]
    response: Sequence[int]

    @property
    def length(self) -> int:
        """Tokens of both."""
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """A micro-batch of episodes."""

    input_ids: Tensor
    "(1, total) when packed, (rows, width) when padded on the right."
    before: Tensor
    "Flat position of the state before each response token, (actions,), episodes one after another."
    last: Tensor
    "Flat position of the last token of each episode, (rows,)."
    targets: Tensor
    "The response tokens, (actions,)."
    options: Mapping[str, Any] = field(default_factory=dict)
    "Further arguments of the model's forward."


Collate = Callable[[Sequence[Episode], torch.device], TokenBatch]


def packed_batch(episodes: Sequence[Episode], device: torch.device) -> TokenBatch:
    """Put the episodes into one row without padding; needs stages.runtime.segments around the model."""
    row, segments = pack_row([(episode.prompt, [episode.response]) for episode in episodes])
    starts = [0, *accumulate(episode.length for episode in episodes)]
    options = {"position_ids": segments.position_ids().to(device), "segments": segments}
    return _batch(row, starts, episodes, device, options)


def padded_batch(episodes: Sequence[Episode], device: torch.device) -> TokenBatch:
    """Pad the episodes on the right to one width.

    No mask is passed: attention is causal, so no counted token ever sees a pad.
    """
    width = max(episode.length for episode in episodes)
    ids = torch.zeros(len(episodes), width, dtype=torch.long)
    for row, episode in enumerate(episodes):
        ids[row, : episode.length] = torch.tensor([*episode.prompt, *episode.response])
    return _batch(ids, [row * width for row in range(len(episodes))], episodes, device, {})


def _batch(
    input_ids: Tensor,
    starts: Sequence[int],
    episodes: Sequence[Episode],
    device: torch.device,
    options: Mapping[str, Any],
) -> TokenBatch:
    before: list[int] = []
    last: list[int] = []
    targets: list[int] = []
    for start, episode in zip(starts, episodes, strict=False):
        first = start + len(episode.prompt) - 1
        before.extend(range(first, first + len(episode.response)))
        last.append(start + episode.length - 1)
        targets.extend(episode.response)
    return TokenBatch(
        input_ids.to(device),
        torch.tensor(before, device=device),
        torch.tensor(last, device=device),
        torch.tensor(targets, device=device),
        options,
    )
