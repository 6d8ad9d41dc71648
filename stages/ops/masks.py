"""Masks over response tokens. True where a token counts; the stop token counts, what follows does not."""

from __future__ import annotations

import torch
from torch import Tensor


def length_mask(lengths: Tensor, *, width: int) -> Tensor:
    """Return which positions hold a token of each row.

    The mask comes from lengths and never from ids: where pad and eos are one token,
    a mask by id would drop the eos, which is an action of the policy.

    Args:
        lengths: tokens of each row, (batch,).
        width: number of columns.

    Returns:
        Booleans (batch, width).
    """
    return torch.arange(width, device=lengths.device) < lengths[:, None]


def last_token_mask(mask: Tensor) -> Tensor:
    """Return a mask of the last counted token of each row; all False in an empty row.

    Args:
        mask: (batch, response), True where a token counts; gaps are allowed.
    """
    counted_after = mask.flip(1).cumsum(1).flip(1) - mask.long()
    return mask & (counted_after == 0)
