"""Ratings from comparisons, and what the best of n samples by a reward model is worth. No torch, no files."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from reward.metrics import Z_95, sigmoid

Array = NDArray[np.float64]
Wins = Mapping[tuple[str, str], float]
"(winner, loser) -> how often; a tie is half a win for either."
ResponseGroup = Sequence[tuple[float, float, bool]]
"The responses to one prompt: score, share of votes won, and whether no other was preferred to it."
MIN_GROUP = 3
RIDGE = 0.01
"Weight of the squared ratings: keeps an item that won or lost everything finite."
MAX_STEPS = 100


@dataclass(frozen=True, slots=True)
class Rating:
    """What comparisons say of one item."""

    name: str
    rating: float
    "Log-odds of winning against an item of rating 0; ratings have mean 0."
    low: float
    "Lower end of the 95 % interval, from the curvature of the likelihood."
    high: float
    num_comparisons: float


def bradley_terry(wins: Wins, *, ridge: float = RIDGE) -> list[Rating]:
    """Rate items so that P(i beats j) = sigmoid(rating_i - rating_j), best first.

        maximise  sum wins_ij log sigmoid(r_i - r_j) - ridge / 2 * sum r_i^2   (Newton's method)

    Args:
        wins: counts of wins; fractions are allowed.
        ridge: pull towards 0, above 0.

    Raises:
        DataError: there are no comparisons, or the items fall into groups that never met.
        ValueError: the ridge is not positive.

    Source: Bradley and Terry 1952; Hunter 2004, MM algorithms for generalized Bradley-Terry models.
    """
    if ridge <= 0:
        raise ValueError("the ridge must be above 0")
    names = sorted({name for pair in wins for name in pair})
    index = {name: number for number, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)))
    for (winner, loser), count in wins.items():
        if winner != loser:
            counts[index[winner], index[loser]] += count
    _refuse_disconnected(counts + counts.T, names)
    ratings, curvature = _newton(counts, ridge)
    ratings -= ratings.mean()
    # The mean of all ratings says nothing, so it adds no variance.
    centre = np.eye(len(names)) - 1 / len(names)
    errors = np.sqrt(np.diag(centre @ np.linalg.inv(curvature) @ centre))
    met = (counts + counts.T).sum(1)
    found = [
        Rating(name, float(r), float(r - Z_95 * e), float(r + Z_95 * e), float(n))
        for name, r, e, n in zip(names, ratings, errors, met, strict=True)
    ]
    return sorted(found, key=lambda rating: (-rating.rating, rating.name))


def best_of_n(proxy: Sequence[float], gold: Sequence[float]) -> list[float]:
    """Return the expected gold of the best of n samples by the proxy, for n = 1 .. N, without bias.

        E[n] = sum_i C(i - 1, n - 1) / C(N, n) * gold_(i),   samples in ascending order of the proxy

    Samples of equal proxy share the mean of their gold.

    Args:
        proxy: what chooses, one number a sample.
        gold: what counts.

    Raises:
        ValueError: the two differ in length, or are empty.

    Source: Nakano et al. 2021, WebGPT, https://arxiv.org/abs/2112.09332, appendix I.
    """
    if len(proxy) != len(gold) or not proxy:
        raise ValueError("the best of n needs one proxy and one gold number a sample")
    total = len(proxy)
    order = sorted(range(total), key=lambda i: proxy[i])
    values = [float(gold[i]) for i in order]
    for value in set(proxy):
        same = [place for place, i in enumerate(order) if proxy[i] == value]
        mean = sum(values[place] for place in same) / len(same)
        for place in same:
            values[place] = mean
    return [
        sum(math.comb(i, n - 1) * values[i] for i in range(n - 1, total)) / math.comb(total, n)
        for n in range(1, total + 1)
    ]


def best_of_report(groups: Sequence[ResponseGroup]) -> dict[str, Any] | None:
    """Return what choosing by score is worth where a prompt has three responses or more; None without any.

    Returns:
        `num_groups`; `top_accuracy`, the share of prompts whose top-scored response nobody preferred
        another to, equal tops counting in part; `chance`, the same for a coin; `curve` with n, kl and
        gold, the mean win share of the best of n, up to the smallest group.
    """
    large = [group for group in groups if len(group) >= MIN_GROUP]
    if not large:
        return None
    tops, curves = [], []
    for group in large:
        top = max(score for score, _, _ in group)
        held = [best for score, _, best in group if score == top]
        tops.append(sum(held) / len(held))
        curves.append(best_of_n([score for score, _, _ in group], [share for _, share, _ in group]))
    steps = range(1, min(map(len, curves)) + 1)
    return {
        "num_groups": len(large),
        "top_accuracy": sum(tops) / len(tops),
        "chance": sum(sum(best for _, _, best in group) / len(group) for group in large) / len(large),
        "curve": [
            {"n": n, "kl": best_of_n_kl(n), "gold": sum(curve[n - 1] for curve in curves) / len(curves)}
            for n in steps
        ],
    }


def best_of_n_kl(n: int) -> float:
    """Return log n - (n - 1) / n: a bound on KL(best of n, one sample), nats.

    Source: Beirami et al. 2024, https://arxiv.org/abs/2401.01879, theorem 1.
    """
    return math.log(n) - (n - 1) / n


def win_shares(outcomes: Sequence[tuple[Hashable, Hashable, float]]) -> dict[Hashable, float]:
    """Return the mean share of votes that each response of one prompt won in its pairs.

    Args:
        outcomes: (first, second, share of the votes for first).
    """
    won: dict[Hashable, list[float]] = {}
    for first, second, share in outcomes:
        won.setdefault(first, []).append(share)
        won.setdefault(second, []).append(1 - share)
    return {name: sum(shares) / len(shares) for name, shares in won.items()}


def _newton(counts: Array, ridge: float) -> tuple[Array, Array]:
    """Return the maximum and the curvature there."""
    ratings, met = np.zeros(len(counts)), counts + counts.T
    for _ in range(MAX_STEPS):
        chances = sigmoid(ratings[:, None] - ratings[None])
        slope = counts.sum(1) - (met * chances).sum(1) - ridge * ratings
        weights = met * chances * (1 - chances)
        curvature = np.diag(weights.sum(1) + ridge) - weights
        step = np.linalg.solve(curvature, slope)
        # A far start may overshoot: no rating moves by more than 2 at once.
        ratings += step * min(1.0, 2.0 / max(1e-12, float(np.abs(step).max())))
        if np.abs(step).max() < 1e-12:
            break
    return ratings, curvature


def _refuse_disconnected(met: Array, names: Sequence[str]) -> None:
    if not len(names):
        raise DataError("there are no comparisons to rate", code="no-comparisons")
    reached, waiting = {0}, [0]
    while waiting:
        for number in np.flatnonzero(met[waiting.pop()]):
            if int(number) not in reached:
                reached.add(int(number))
                waiting.append(int(number))
    if len(reached) < len(names):
        apart = sorted(set(range(len(names))) - reached)
        raise DataError(
            f"{names[apart[0]]} and {len(apart) - 1} more were never compared with {names[0]}: "
            "no common scale exists",
            hint="judge pairs that join the groups, or rate each group alone",
            code="disconnected",
        )
