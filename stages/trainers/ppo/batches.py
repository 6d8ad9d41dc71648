"""Prompt and response as one micro-batch that every role reads the same way.

Positions are named in the flattened batch, so a packed row and a padded batch look alike to the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
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
    """Put the episodes into one row without padding; needs stages.runtime.segments around the model.

    Neighbours that answer the same prompt share it: it is computed once.
    """
    groups = [(list(prompt), list(same)) for prompt, same in groupby(episodes, key=_prompt)]
    row, segments = pack_row([(prompt, [episode.response for episode in same]) for prompt, same in groups])
    places: list[tuple[int, int]] = []
    at = 0
    for prompt, same in groups:
        end_of_prompt = at + len(prompt)
        starts = accumulate((len(episode.response) for episode in same), initial=end_of_prompt)
        places.extend((end_of_prompt - 1, start) for start in starts)
        # The last of these is where the next group starts.
        _, at = places.pop()
    options = {"position_ids": segments.position_ids().to(device), "segments": segments}
    return _batch(row, places, episodes, device, options)


def padded_batch(episodes: Sequence[Episode], device: torch.device) -> TokenBatch:
    """Pad the episodes on the right to one width.

    No mask is passed: attention is causal, so no counted token ever sees a pad.
    """
    width = max(episode.length for episode in episodes)
    ids = torch.zeros(len(episodes), width, dtype=torch.long)
    for row, episode in enumerate(episodes):
        ids[row, : episode.length] = torch.tensor([*episode.prompt, *episode.response])
    starts = [row * width + len(episode.prompt) for row, episode in enumerate(episodes)]
    return _batch(ids, [(start - 1, start) for start in starts], episodes, device, {})


def _prompt(episode: Episode) -> tuple[int, ...]:
    return tuple(episode.prompt)


def _batch(
    input_ids: Tensor,
    places: Sequence[tuple[int, int]],
    episodes: Sequence[Episode],
    device: torch.device,
    options: Mapping[str, Any],
) -> TokenBatch:
    """Make the batch.

    Args:
        input_ids: laid out.
        places: flat positions of each prompt's last and each response's first token.
        episodes: in the order of the places.
        device: of the batch.
        options: further arguments of the model's forward.
    """
    before: list[int] = []
    last: list[int] = []
    targets: list[int] = []
    for (prompt_end, start), episode in zip(places, episodes, strict=True):
        end = start + len(episode.response) - 1
        before.extend((prompt_end, *range(start, end)))
        last.append(end)
        targets.extend(episode.response)
    return TokenBatch(
        input_ids.to(device),
        torch.tensor(before, device=device),
        torch.tensor(last, device=device),
        torch.tensor(targets, device=device),
        options,
    )
