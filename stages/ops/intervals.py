"""Bootstrap intervals over prompts. Plain arrays: no model, no files.

A prompt is the unit that is drawn again: its samples stay together, and two models are compared on the
same prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
BLOCK = 2_000_000
"Drawn numbers held at once (16 MB)."


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and what it could have been with other prompts."""

    mean: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Say whether a value lies outside the interval."""
        return not self.low <= value <= self.high


def bootstrap_mean(values: Array, *, draws: int = 2000, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Return the mean and its percentile bootstrap interval.

    Args:
        values: one number a prompt, (prompts,).
        draws: resamples of all prompts with replacement.
        confidence: share of the resampled means inside the interval.
        seed: the same seed gives the same draws, so intervals over the same prompts are comparable.

    Raises:
        ValueError: there is no value, or one is not finite.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError("an interval needs finite numbers, at least one")
    generator = np.random.default_rng(seed)
    rows = max(1, BLOCK // values.size)
    means = np.concatenate(
        [
            values[generator.integers(values.size, size=(min(rows, draws - start), values.size))].mean(1)
            for start in range(0, draws, rows)
        ]
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(values.mean()), float(low), float(high))


def outcomes(scores: Array, reference: Array) -> Array:
    """Return 1 where a score beats the reference's, 1/2 where they are equal, else 0.

    Args:
        scores: (prompts, samples) or (prompts,).
        reference: of the same shape.
    """
    return (scores > reference) + 0.5 * (scores == reference)


def mean_by_prompt(values: Array) -> Array:
    """Return the mean over a prompt's samples: (prompts, samples) -> (prompts,)."""
    return values.reshape(len(values), -1).mean(1)
