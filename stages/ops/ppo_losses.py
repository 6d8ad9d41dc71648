"""The two losses of PPO, a number a token. The caller sums them over the tokens that count."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.ops.stats import masked_sum

MAX_LOG_RATIO = 20.0
"Beyond it exp() of a float32 log-ratio is no longer a useful number."


@dataclass(frozen=True, slots=True)
class TokenLosses:
    """Losses of a micro-batch, (batch, response); what stands outside the mask has no meaning."""

    losses: Tensor
    clipped: Tensor
    "True where the clipped branch decided the loss, so that the gradient is zero."

    def weighted(self, weights: Tensor) -> TokenLosses:
        """Return the losses times one weight a token, without gradient through the weights.

        Source: Yao et al., 2025, https://fengyao.notion.site/off-policy-rl (truncated importance sampling).
        """
        return TokenLosses(self.losses * weights.detach(), self.clipped)

    def mean_over(self, mask: Tensor, *, num_tokens: int) -> Tensor:
        """Return the masked sum over `num_tokens`, the tokens of the whole minibatch.

        Dividing by the micro-batch's own tokens instead would make the update depend on
        how the minibatch was cut.
        """
        return masked_sum(self.losses, mask) / num_tokens


def ratios(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """Return pi / pi_old a token, its logarithm clamped to +-20."""
    return (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def policy_losses(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    cliprange: float,
    cliprange_high: float | None = None,
    dual_clip: float | None = None,
) -> TokenLosses:
    """Return the clipped surrogate of every token, negated.

    max(-A * ratio, -A * clip(ratio, 1 - cliprange, 1 + cliprange_high)); with dual_clip c
    and A < 0, at most -A * c.

    Args:
        logprobs: under the policy being trained, (batch, response).
        old_logprobs: under the policy that sampled, (batch, response), without gradient.
        advantages: (batch, response), without gradient.
        cliprange: how far the ratio may move before the gain stops.
        cliprange_high: the same upwards; None is cliprange.
        dual_clip: bound on the loss of a bad action that became likely, above 1; None is off.

    Source: Schulman et al., 2017, https://arxiv.org/abs/1707.06347, equation 7; dual clip:
        Ye et al., 2020, https://arxiv.org/abs/1912.09729, equation 5.
    """
    ratio = ratios(logprobs, old_logprobs)
    upper = 1 + (cliprange if cliprange_high is None else cliprange_high)
    free = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - cliprange, upper)
    losses = torch.maximum(free, bounded)
    clipped = bounded > free
    if dual_clip is not None:
        ceiling = -advantages * dual_clip
        too_large = (advantages < 0) & (losses > ceiling)
        losses = torch.where(too_large, ceiling, losses)
        clipped = clipped | too_large
    return TokenLosses(losses, clipped)


def value_losses(
    values: Tensor, old_values: Tensor, returns: Tensor, *, cliprange_value: float | None
) -> TokenLosses:
    """Return half the squared error of every value, the larger of free and clipped.

    0.5 * max((V - R)^2, (clip(V, V_old - cliprange_value, V_old + cliprange_value) - R)^2)

    Args:
        values: from the value function being trained, (batch, response).
        old_values: from before the update, (batch, response).
        returns: (batch, response).
        cliprange_value: in units of the score; None is off.

    Source: openai/baselines, baselines/ppo2/model.py; Huang et al., 2024, https://arxiv.org/abs/2403.17031.
    """
    free = (values - returns).square()
    if cliprange_value is None:
        return TokenLosses(0.5 * free, torch.zeros_like(free, dtype=torch.bool))
    near = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    bounded = (near - returns).square()
    return TokenLosses(0.5 * torch.maximum(free, bounded), bounded > free)
