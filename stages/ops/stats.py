"""Statistics over the tokens that count. Population variance throughout."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Return the sum over counted tokens; what stands elsewhere, NaN included, is ignored."""
    return torch.where(mask, values, torch.zeros_like(values)).sum()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over counted tokens, 0 when there is none."""
    return masked_sum(values, mask) / mask.sum().clamp_min(1)


def masked_var(values: Tensor, mask: Tensor) -> Tensor:
    """Return the population variance over counted tokens, 0 when there is none."""
    return masked_mean((values - masked_mean(values, mask)).square(), mask)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Return 1 - var(returns - values) / var(returns): 1 is perfect, 0 no better than a constant.

    Returns 0 when the returns do not vary.
    """
    total = masked_var(returns, mask)
    unexplained = masked_var(returns - values, mask)
    return torch.where(total > 0, 1 - unexplained / total.clamp_min(torch.finfo(total.dtype).tiny), 0.0)


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Pearson's correlation of two vectors, 0 when one of them does not vary."""
    first, second = first - first.mean(), second - second.mean()
    spread = first.norm() * second.norm()
    return torch.where(spread > 0, (first * second).sum() / spread.clamp_min(1e-12), 0.0)


@dataclass(frozen=True, slots=True)
class RunningMoments:
    """Mean and population variance of all numbers seen so far."""

    mean: float = 0.0
    variance: float = 0.0
    count: int = 0

    def updated(self, values: Tensor) -> RunningMoments:
        """Return the moments after a batch more, by the pairwise update of Chan et al. (1983)."""
        batch = values.double()
        count = self.count + batch.numel()
        if not batch.numel():
            return self
        delta = float(batch.mean()) - self.mean
        share = batch.numel() / count
        spread = self.variance * (1 - share) + float(batch.var(correction=0)) * share
        return RunningMoments(self.mean + delta * share, spread + delta**2 * share * (1 - share), count)

    @property
    def deviation(self) -> float:
        """Standard deviation; 1 before two different numbers were seen, so that it can divide."""
        return math.sqrt(self.variance) if self.variance > 0 else 1.0
