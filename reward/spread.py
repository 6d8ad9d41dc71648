"""How far the members of an ensemble of reward models are apart, and whether that says where it is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from reward.metrics import pair_wins, roc_auc

Array = NDArray[np.float64]


def spread_report(gaps: Array) -> dict[str, Any]:
    """Measure the spread of members on pairs whose first response people preferred.

    Args:
        gaps: score differences, chosen less rejected, (members, pairs).

    Returns:
        `members`; `accuracies` of each; `spread`, the mean over pairs of the members' standard
        deviation; the same where the mean of the members is right and wrong; `united`, the share of
        pairs that all members decide alike, and the accuracy there and elsewhere; `error_auc`, the
        chance that a wrong pair has the larger spread than a right one.

    Raises:
        ValueError: there are fewer than two members.
    """
    if len(gaps) < 2:
        raise ValueError("a spread needs two members or more")
    spread, mean = gaps.std(axis=0), gaps.mean(axis=0)
    right, wrong = mean > 0, mean < 0
    united = (np.sign(gaps) == np.sign(gaps[0])).all(axis=0) & (gaps[0] != 0)
    return {
        "members": len(gaps),
        "accuracies": [pair_wins(member) / gaps.shape[1] for member in gaps],
        "spread": _mean(spread),
        "spread_right": _mean(spread[right]),
        "spread_wrong": _mean(spread[wrong]),
        "united": _mean(united.astype(float)),
        "accuracy_united": _accuracy(mean[united]),
        "accuracy_divided": _accuracy(mean[~united]),
        "error_auc": roc_auc(spread[wrong], spread[right]),
    }


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _accuracy(gaps: Array) -> float:
    return pair_wins(gaps) / len(gaps) if len(gaps) else float("nan")
