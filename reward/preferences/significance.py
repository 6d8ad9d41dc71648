"""Tests of proportions in plain arithmetic: binomial tails, intervals, many tests at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

EXACT_LIMIT = 5000
Z_95 = 1.959963984540054
MAD_TO_SD = 1.4826


def binomial_at_most(successes: int, trials: int, chance: float) -> float:
    """Return P(X <= successes) of a binomial; above 5,000 trials by the normal approximation."""
    if successes >= trials:
        return 1.0
    if successes < 0:
        return 0.0
    if chance <= 0 or chance >= 1:
        return 1.0 if chance <= 0 else 0.0
    if trials > EXACT_LIMIT:
        sd = math.sqrt(trials * chance * (1 - chance))
        return normal_below((successes + 0.5 - trials * chance) / sd)
    if successes * 2 > trials:
        return 1 - _mass(successes + 1, trials, trials, chance)
    return _mass(0, successes, trials, chance)


def binomial_at_least(successes: int, trials: int, chance: float) -> float:
    """Return P(X >= successes) of a binomial."""
    return binomial_at_most(trials - successes, trials, 1 - chance)


def binomial_two_sided(successes: int, trials: int, chance: float = 0.5) -> float:
    """Return twice the smaller tail, at most 1."""
    if trials == 0:
        return 1.0
    low = binomial_at_most(successes, trials, chance)
    high = binomial_at_least(successes, trials, chance)
    return min(1.0, 2 * min(low, high))


def _mass(first: int, last: int, trials: int, chance: float) -> float:
    log_p, log_q = math.log(chance), math.log1p(-chance)
    total = math.lgamma(trials + 1)
    terms = (
        total - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * log_p + (trials - k) * log_q
        for k in range(first, last + 1)
    )
    return min(1.0, math.fsum(math.exp(term) for term in terms))


def normal_below(z: float) -> float:
    """Return P(Z <= z) of a standard normal."""
    return 0.5 * math.erfc(-z / math.sqrt(2))


def wilson(successes: float, trials: float, z: float = Z_95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion; (0, 1) without trials.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, 1927.
    """
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    spread = (
        z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    )
    return max(0.0, middle - spread), min(1.0, middle + spread)


def two_proportions(first: int, num_first: int, second: int, num_second: int) -> float:
    """Return the two-sided p-value that two proportions are equal, with a pooled variance."""
    if not num_first or not num_second:
        return 1.0
    pooled = (first + second) / (num_first + num_second)
    variance = pooled * (1 - pooled) * (1 / num_first + 1 / num_second)
    if variance == 0:
        return 1.0
    z = (first / num_first - second / num_second) / math.sqrt(variance)
    return 2 * normal_below(-abs(z))


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for the false discovery rate, in the order given.

    Source: Benjamini and Hochberg, Controlling the false discovery rate, 1995.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted = [1.0] * len(p_values)
    lowest = 1.0
    for rank in range(len(order), 0, -1):
        place = order[rank - 1]
        lowest = min(lowest, p_values[place] * len(order) / rank)
        adjusted[place] = lowest
    return adjusted


def median(values: Sequence[float]) -> float:
    """Return the middle value.

    Raises:
        ValueError: there is none.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


@dataclass(frozen=True, slots=True)
class RobustScale:
    """Where most values lie, whatever a few others do."""

    centre: float
    sd: float
    count: int

    def z(self, value: float) -> float:
        """Return the distance of a value from the centre in robust standard deviations."""
        return (value - self.centre) / self.sd


def robust_scale(values: Sequence[float], *, smallest_sd: float = 1e-9) -> RobustScale | None:
    """Return median and 1.4826 times the median absolute deviation; None without values."""
    if not values:
        return None
    centre = median(values)
    sd = MAD_TO_SD * median([abs(value - centre) for value in values])
    return RobustScale(centre, max(sd, smallest_sd), len(values))


def longest_run_p(longest: int, trials: int, chance: float) -> float:
    """Bound the probability of a run of one outcome this long anywhere in the trials."""
    if trials == 0 or longest <= 0:
        return 1.0
    starts = 1 + (trials - longest) * (1 - chance)
    return min(1.0, starts * chance**longest)
