"""How much better an action was than expected: GAE, and group baselines without a value function."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.ops.stats import masked_mean, masked_var

EPSILON = 1e-8


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Return advantages and returns by generalised advantage estimation.

    delta_t = r_t + gamma * V_next - V_t;  A_t = delta_t + gamma * lam * A_next;  R_t = A_t + V_t

    `next` is the next counted token, so a gap in the mask is stepped over; after the last
    counted token both V and A are 0, whatever stands in the padding.

    Args:
        rewards: (batch, response).
        values: of the state before each token, (batch, response).
        mask: (batch, response), True where a token counts.
        gamma: discount of a step.
        lam: 1 is the Monte-Carlo return less V, 0 the one-step error.

    Returns:
        Advantages and returns, both (batch, response) and zero outside the mask.

    Source: Schulman et al., 2016, https://arxiv.org/abs/1506.02438, equation 16.
    """
    next_value = values.new_zeros(len(values))
    next_advantage = values.new_zeros(len(values))
    advantages = torch.zeros_like(values)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        next_advantage = torch.where(mask[:, t], advantage, next_advantage)
        advantages[:, t] = torch.where(mask[:, t], advantage, 0.0)
    returns = torch.where(mask, advantages + values, 0.0)
    return advantages, returns


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """Return values with mean 0 and population variance 1 over counted tokens, 0 elsewhere."""
    centred = values - masked_mean(values, mask)
    return torch.where(mask, centred * (masked_var(values, mask) + EPSILON).rsqrt(), 0.0)


def rescaled(values: Tensor, mask: Tensor) -> Tensor:
    """Return values with population variance 1 over counted tokens and their mean's sign kept, 0 elsewhere.

    The mean is scaled, not shifted: for rewards a shift would pay for longer responses.
    """
    return torch.where(mask, values * (masked_var(values, mask) + EPSILON).rsqrt(), 0.0)


def leave_one_out(scores: Tensor, *, group_size: int) -> Tensor:
    """Return each score less the mean of the other responses to its prompt.

    Args:
        scores: (prompts * group_size,), the responses to a prompt side by side.
        group_size: responses a prompt, at least 2.

    Source: Ahmadian et al., 2024, https://arxiv.org/abs/2402.14740, section 3.3 (RLOO).
    """
    groups = scores.view(-1, group_size)
    others = (groups.sum(1, keepdim=True) - groups) / (group_size - 1)
    return (groups - others).flatten()


def group_advantages(rewards: Tensor, mask: Tensor, *, group_size: int) -> Tensor:
    """Return what each response earned beyond the other responses to its prompt, on each of its tokens.

    A = sum_t r_t - mean over the others of sum_t r_t, zero outside the mask.

    Args:
        rewards: (batch, response), the KL price included, the responses to a prompt side by side.
        mask: (batch, response), True where a token counts.
        group_size: responses a prompt, at least 2.
    """
    earned = torch.where(mask, rewards, torch.zeros_like(rewards)).sum(1)
    beyond = leave_one_out(earned, group_size=group_size)
    return torch.where(mask, beyond[:, None], torch.zeros_like(rewards))


def group_normalised(scores: Tensor, *, group_size: int) -> Tensor:
    """Return each score less its prompt's mean, over its prompt's population standard deviation.

    Source: Shao et al., 2024, https://arxiv.org/abs/2402.03300, section 4.1.2 (GRPO).
    """
    groups = scores.view(-1, group_size)
    deviation = groups.std(1, keepdim=True, correction=0)
    return ((groups - groups.mean(1, keepdim=True)) / (deviation + EPSILON)).flatten()
