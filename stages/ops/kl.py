"""Estimates of KL(policy || reference) from samples of the policy, and the controller of its price."""

from __future__ import annotations

from torch import Tensor


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return log p - log q for each sampled token: unbiased, and negative at times.

    Put into the reward it gives the exact KL objective; k2 and k3 there give another optimum.

    Source: Schulman, Approximating KL Divergence, 2020, http://joschu.net/blog/kl-approx.html
    """
    return logprobs - ref_logprobs


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return q/p - 1 - log(q/p) for each sampled token: unbiased and never negative. For logs only.

    Source: Schulman, Approximating KL Divergence, 2020, http://joschu.net/blog/kl-approx.html
    """
    log_ratio = ref_logprobs - logprobs
    return log_ratio.expm1() - log_ratio


def adapted_kl_coef(kl_coef: float, kl: float, *, target: float, horizon: float, num_episodes: int) -> float:
    """Return the KL price after a batch: up when the KL is above its target, down when below.

    kl_coef * (1 + clip(kl / target - 1, -0.2, 0.2) * num_episodes / horizon)

    Args:
        kl_coef: price now.
        kl: mean KL of a sequence in the batch, nats.
        target: KL of a sequence to steer to, nats.
        horizon: episodes over which the price moves by a factor of about e^0.2.
        num_episodes: sequences in the batch.

    Source: Ziegler et al., 2019, https://arxiv.org/abs/1909.08593, section 2.2.
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return kl_coef * (1.0 + error * num_episodes / horizon)
