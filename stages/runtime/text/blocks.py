"""Lays documents end to end and cuts them into blocks of equal length.

As in usual pretraining, a token may attend to the end of the document before it in the same block;
the end token between them is what tells the model that they are strangers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100
"The label that cross-entropy leaves out."


@dataclass(frozen=True, slots=True)
class Batch:
    """Blocks of one micro-batch."""

    input_ids: Tensor
    "(rows, tokens); the short last block is filled up on the right."
    labels: Tensor
    "(rows, tokens); the token after each position, IGNORED where there is none."
    num_labels: int
    "Positions that count."


def pack(documents: Iterable[Sequence[int]], *, end_token_id: int, max_length: int) -> list[list[int]]:
    """Join documents, an end token after each, and cut the whole into blocks; nothing is dropped.

    Block i holds tokens i*(L-1) to i*(L-1)+L: the last token of one is the first of the next, so that
    every token but the very first is predicted exactly once.

    Returns:
        Blocks of max_length tokens; the last one may be shorter, with at least two.
    """
    stream = [token for ids in documents for token in (*ids, end_token_id)]
    step = max_length - 1
    return [stream[start : start + max_length] for start in range(0, len(stream) - 1, step)]


def collate(blocks: Sequence[Sequence[int]], *, pad_token_id: int) -> Batch:
    """Make a batch; filling stands on the right, where causal attention never sees it."""
    longest = max(len(block) for block in blocks)
    ids = torch.full((len(blocks), longest), pad_token_id)
    labels = torch.full((len(blocks), longest), IGNORED)
    for row, block in enumerate(blocks):
        ids[row, : len(block)] = torch.tensor(block)
        labels[row, : len(block) - 1] = torch.tensor(block[1:])
    return Batch(ids, labels, sum(len(block) - 1 for block in blocks))
