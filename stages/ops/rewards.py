"""From one score a response to one reward a token."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.ops.kl import k1
from stages.ops.masks import last_token_mask


def token_rewards(
    scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, *, mask: Tensor, kl_coef: float
) -> Tensor:
    """Return the KL price of every token, with the score on the last real one.

    r_t = -kl_coef * (logprobs_t - ref_logprobs_t) + scores * [t is the last counted token]

    Args:
        scores: (batch,), after penalties.
        logprobs: of the policy that sampled, (batch, response).
        ref_logprobs: (batch, response).
        mask: (batch, response), True where a token counts, the stop token included.
        kl_coef: price of a nat.

    Returns:
        (batch, response), zero outside the mask.

    Source: Ziegler et al., 2019, https://arxiv.org/abs/1909.08593, equation 2.
    """
    price = torch.where(mask, -kl_coef * k1(logprobs, ref_logprobs), torch.zeros_like(logprobs))
    return torch.where(last_token_mask(mask), price + scores[:, None], price)


def with_missing_eos_penalty(scores: Tensor, finished: Tensor, *, penalty: float) -> Tensor:
    """Return scores less `penalty` where no stop token ended the response."""
    return torch.where(finished, scores, scores - penalty)


def length_penalties(lengths: Tensor, *, limit: int, buffer: int, coef: float) -> Tensor:
    """Return what a response pays for its length: 0 up to limit - buffer, then linear up to `coef` at limit.

    Args:
        lengths: response tokens, (batch,).
        limit: most tokens a response can have.
        buffer: length of the ramp in tokens.
        coef: penalty at the limit, in units of the score.
    """
    over = (lengths - (limit - buffer)).clamp(min=0, max=buffer)
    return coef * over.float() / buffer


def normalised(scores: Tensor, *, mean: float, deviation: float) -> Tensor:
    """Return (scores - mean) / deviation."""
    return (scores - mean) / deviation
