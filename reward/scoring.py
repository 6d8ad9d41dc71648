"""Scores of responses by a reward model: read at the last real token, whatever the padding.

The backbone is passed in, with the reward adapter in effect: this module loads nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

MAX_TOKENS = 16_384
"Padded tokens scored at once."


@torch.no_grad()
def score(
    backbone: Callable[..., Any],
    head: nn.Module,
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    *,
    max_tokens: int = MAX_TOKENS,
) -> Tensor:
    """Return one score a response, in the order given.

    Rows are padded on the right to the longest of their batch, so a causal model never sees a
    pad; the score is read at the last token of the response, its stop token included.

    Args:
        backbone: gives `.last_hidden_state` (batch, length, hidden) for input_ids and attention_mask.
        head: gives a score for hidden states, on the device of the backbone.
        prompt_ids: token ids of each prompt.
        response_ids: token ids of each response, at least one token each.
        max_tokens: bound on rows times longest row in one forward pass.

    Returns:
        Scores (batch,) in float32, on the CPU.

    Raises:
        ValueError: the two lists differ in length, or a response is empty.
    """
    if len(prompt_ids) != len(response_ids):
        raise ValueError(f"{len(prompt_ids)} prompts, but {len(response_ids)} responses")
    if not all(len(response) for response in response_ids):
        raise ValueError("a response without a token cannot be scored")
    device = next(head.parameters()).device
    rows = [[*prompt, *response] for prompt, response in zip(prompt_ids, response_ids, strict=True)]
    scores = torch.zeros(len(rows), dtype=torch.float32)
    for batch in _batches([len(row) for row in rows], max_tokens):
        input_ids, attention_mask = _pad([rows[i] for i in batch])
        states = backbone(
            input_ids=input_ids.to(device), attention_mask=attention_mask.to(device), use_cache=False
        ).last_hidden_state
        last = attention_mask.sum(1).to(device) - 1
        scores[batch] = head(states[torch.arange(len(batch), device=device), last]).float().cpu()
    return scores


def _batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Split rows, longest first, so that rows times longest row stays within max_tokens."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * lengths[batch[0]] > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    longest = max(len(row) for row in rows)
    input_ids = torch.zeros(len(rows), longest, dtype=torch.long)
    attention_mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = torch.tensor(row)
        attention_mask[i, : len(row)] = 1
    return input_ids, attention_mask
