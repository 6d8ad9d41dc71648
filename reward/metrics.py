"""Numbers of a reward model's report card, from plain arrays. No torch, no files."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Z_95 = 1.959963984540054
"97.5 % quantile of the normal distribution: a two-sided 95 % interval."


def wilson_interval(successes: float, total: int, *, z: float = Z_95) -> tuple[float, float]:
    """Return the Wilson score interval of a share; (0, 1) when there is nothing to count.

    Source: Wilson 1927, JASA 22, 209-212.
    """
    if total == 0:
        return 0.0, 1.0
    share, square = successes / total, z * z / total
    centre = (share + square / 2) / (1 + square)
    half = z * np.sqrt(share * (1 - share) / total + square / (4 * total)) / (1 + square)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def pair_wins(gaps: Array) -> float:
    """Return how many gaps are positive; a gap of exactly 0 counts half."""
    return float((gaps > 0).sum() + 0.5 * (gaps == 0).sum())


def roc_auc(positives: Array, negatives: Array) -> float:
    """Return the chance that a positive scores above a negative, equal scores counting half.

    NaN when either side is empty.
    """
    if not len(positives) or not len(negatives):
        return float("nan")
    ordered = np.sort(negatives)
    below = np.searchsorted(ordered, positives, side="left")
    equal = np.searchsorted(ordered, positives, side="right") - below
    return float((below + 0.5 * equal).mean() / len(negatives))


def precision_recall_f1(
    labels: NDArray[np.bool_], predicted: NDArray[np.bool_]
) -> tuple[float, float, float]:
    """Return precision, recall and F1 of the positive class; 0 where a denominator is 0."""
    hits = float((labels & predicted).sum())
    precision = hits / predicted.sum() if predicted.any() else 0.0
    recall = hits / labels.sum() if labels.any() else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return float(precision), float(recall), float(f1)


def sigmoid(values: Array) -> Array:
    """Return 1 / (1 + exp(-values)) without overflow."""
    return np.exp(-np.logaddexp(0.0, -values))


def log_loss(gaps: Array, shares: Array) -> float:
    """Return the mean cross entropy of sigmoid(gaps) against the share of votes for chosen."""
    return float(np.mean(shares * np.logaddexp(0.0, -gaps) + (1 - shares) * np.logaddexp(0.0, gaps)))


def brier(gaps: Array, shares: Array) -> float:
    """Return the mean squared difference of sigmoid(gaps) and the share of votes for chosen."""
    return float(np.mean((sigmoid(gaps) - shares) ** 2))


def calibration_bins(gaps: Array, *, num_bins: int = 15) -> list[dict[str, Any]]:
    """Return bins of equal numbers of pairs, ordered by confidence.

    The confidence of a pair is the probability of the answer the model prefers,
    sigmoid(|gap|), between 0.5 and 1; it is right when that answer is the chosen one.
    """
    order = np.argsort(np.abs(gaps), kind="stable")
    bins = []
    for part in np.array_split(order, min(num_bins, len(order)) or 1):
        if len(part):
            confidence = float(sigmoid(np.abs(gaps[part])).mean())
            bins.append(
                {"count": len(part), "confidence": confidence, "accuracy": pair_wins(gaps[part]) / len(part)}
            )
    return bins


def expected_calibration_error(gaps: Array, *, num_bins: int = 15) -> float:
    """Return the mean distance of confidence and accuracy over bins of equal mass."""
    bins = calibration_bins(gaps, num_bins=num_bins)
    total = sum(entry["count"] for entry in bins)
    return (
        sum(e["count"] * abs(e["confidence"] - e["accuracy"]) for e in bins) / total
        if total
        else float("nan")
    )


def fitted_temperature(gaps: Array, shares: Array) -> float:
    """Return T that minimises the log-loss of sigmoid(gaps / T); above 1 means over-confident.

    The log-loss is convex in 1 / T, so its slope is searched by bisection in (1/1000, 1000).
    Infinite when a constant would do better than the gaps, 0 when all of them are right.
    """

    def slope(inverse: float) -> float:
        return float(np.mean((sigmoid(gaps * inverse) - shares) * gaps))

    low, high = 1e-3, 1e3
    if slope(low) >= 0:
        return float("inf")
    if slope(high) <= 0:
        return 0.0
    for _ in range(100):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(1 / np.sqrt(low * high))


def coverage_curve(
    gaps: Array, *, shares: tuple[float, ...] = (1.0, 0.9, 0.75, 0.5, 0.25, 0.1)
) -> list[dict[str, float]]:
    """Return the accuracy on the share of pairs that the model is surest of."""
    order = np.argsort(-np.abs(gaps), kind="stable")
    curve = []
    for share in shares:
        kept = gaps[order[: max(1, round(share * len(gaps)))]]
        if len(kept):
            curve.append({"coverage": share, "num_pairs": len(kept), "accuracy": pair_wins(kept) / len(kept)})
    return curve
