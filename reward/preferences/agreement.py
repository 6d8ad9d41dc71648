"""How far people agree: raw agreement, Cohen, Fleiss, Krippendorff, and the ceiling for a model.

Items judged once say nothing about agreement and never count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

Metric = Literal["nominal", "ordinal", "interval"]
NUM_DRAWS = 1000
INTERVAL = (0.025, 0.975)


@dataclass(frozen=True, slots=True)
class Ballots:
    """Votes as three arrays of one length: which item, who, and what was said."""

    items: np.ndarray
    "Index of the item of each vote, (votes,)."
    annotators: np.ndarray
    "Index of the person of each vote, (votes,)."
    values: np.ndarray
    "What was said, a number; its order matters to the ordinal and interval metrics, (votes,)."

    def where(self, keep: np.ndarray) -> Ballots:
        """Return the votes for which keep is True."""
        return Ballots(self.items[keep], self.annotators[keep], self.values[keep])


@dataclass(frozen=True, slots=True)
class Counts:
    """How often each value was given to each item that has two or more votes."""

    table: np.ndarray
    "Votes, (items, values)."
    values: np.ndarray
    "The values in ascending order, (values,)."

    @property
    def per_item(self) -> np.ndarray:
        """Votes of each item, (items,)."""
        return self.table.sum(axis=1)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic with its 95 % bootstrap interval over items."""

    value: float
    low: float
    high: float


def count(items: Sequence[int] | np.ndarray, values: Sequence[float] | np.ndarray) -> Counts:
    """Tabulate votes; items with fewer than two are left out."""
    import numpy as np

    _, item_index = np.unique(np.asarray(items), return_inverse=True)
    levels, value_index = np.unique(np.asarray(values, dtype=float), return_inverse=True)
    num_items = int(item_index.max()) + 1 if item_index.size else 0
    flat = np.bincount(item_index * len(levels) + value_index, minlength=num_items * len(levels))
    table = flat.reshape(num_items, len(levels))
    return Counts(table[table.sum(axis=1) >= 2], levels)


def krippendorff_alpha(counts: Counts, metric: Metric = "nominal") -> float | None:
    """Return 1 - observed / expected disagreement; None when nothing can disagree.

    Source: Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011, section E.
    """
    import numpy as np

    return _alpha(counts.table, np.ones(len(counts.table)), counts.values, metric)


def raw_agreement(counts: Counts) -> float | None:
    """Return the share of pairs of votes on one item that say the same."""
    import numpy as np

    return _raw(counts.table, np.ones(len(counts.table)))


def chance_agreement(counts: Counts) -> float | None:
    """Return the agreement that votes would have if they were dealt out at random."""
    totals = counts.table.sum(axis=0)
    num_votes = totals.sum()
    if num_votes < 2:
        return None
    return float((totals * (totals - 1)).sum() / (num_votes * (num_votes - 1)))


def unanimous_share(counts: Counts) -> float | None:
    """Return the share of items on which everybody said the same."""
    if not len(counts.table):
        return None
    return float((counts.table.max(axis=1) == counts.per_item).mean())


def fleiss_kappa(counts: Counts) -> tuple[float | None, int]:
    """Return Fleiss' kappa over the items with the commonest number of votes, and that number.

    Source: Fleiss, Measuring nominal scale agreement among many raters, 1971.
    """
    import numpy as np

    if not len(counts.table):
        return None, 0
    num_raters = int(np.bincount(counts.per_item).argmax())
    table = counts.table[counts.per_item == num_raters]
    observed = ((table * (table - 1)).sum(axis=1) / (num_raters * (num_raters - 1))).mean()
    shares = table.sum(axis=0) / table.sum()
    expected = (shares**2).sum()
    return (None if expected == 1 else float((observed - expected) / (1 - expected))), num_raters


def cohen_kappa(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float | None:
    """Return Cohen's kappa of two people over the items that both judged, in the same order.

    Source: Cohen, A coefficient of agreement for nominal scales, 1960.
    """
    import numpy as np

    one, other = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if not one.size:
        return None
    levels = np.unique(np.concatenate([one, other]))
    observed = float((one == other).mean())
    expected = float(sum((one == level).mean() * (other == level).mean() for level in levels))
    return None if expected == 1 else (observed - expected) / (1 - expected)


@dataclass(frozen=True, slots=True)
class RaterPair:
    """Two people and the items that both judged."""

    first: int
    second: int
    num_items: int
    agreement: float
    kappa: float | None


def rater_pairs(ballots: Ballots, *, min_items: int = 10) -> list[RaterPair]:
    """Return Cohen's kappa of every two people with at least min_items items in common."""
    import numpy as np

    joined = _pairs_within_items(ballots)
    if not joined.size:
        return []
    one, other = ballots.annotators[joined[:, 0]], ballots.annotators[joined[:, 1]]
    swap = one > other
    left = np.where(swap, joined[:, 1], joined[:, 0])
    right = np.where(swap, joined[:, 0], joined[:, 1])
    keys = np.stack([ballots.annotators[left], ballots.annotators[right]], axis=1)
    names, place, sizes = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(place.ravel(), kind="stable")
    ends = np.cumsum(sizes)
    found: list[RaterPair] = []
    for number in np.flatnonzero(sizes >= min_items):
        rows = order[ends[number] - sizes[number] : ends[number]]
        first, second = ballots.values[left[rows]], ballots.values[right[rows]]
        who = names[number]
        if who[0] != who[1]:
            agreement = float((first == second).mean())
            kappa = cohen_kappa(first, second)
            found.append(RaterPair(int(who[0]), int(who[1]), int(sizes[number]), agreement, kappa))
    return found


def _pairs_within_items(ballots: Ballots) -> np.ndarray:
    """Return the indices of every two votes on one item, (pairs, 2)."""
    import numpy as np

    order = np.argsort(ballots.items, kind="stable")
    sorted_items = ballots.items[order]
    parts: list[np.ndarray] = []
    for step in range(1, len(order)):
        same = np.flatnonzero(sorted_items[step:] == sorted_items[:-step])
        if not same.size:
            break
        parts.append(np.stack([order[same], order[same + step]], axis=1))
    return np.concatenate(parts) if parts else np.empty((0, 2), dtype=int)


def human_ceiling(ballots: Ballots) -> tuple[float | None, int]:
    """Return how often one person agrees with the majority of the others, and on how many votes.

    Votes whose others have no single majority are left out: nobody could agree with it.
    """
    agrees = agrees_with_others(ballots)
    judged = agrees >= 0
    return (float(agrees[judged].mean()), int(judged.sum())) if judged.any() else (None, 0)


def agrees_with_others(ballots: Ballots) -> np.ndarray:
    """Return per vote 1 or 0, agrees with the majority of the others or not, and -1 where there is none."""
    import numpy as np

    _, item_index = np.unique(ballots.items, return_inverse=True)
    levels, value_index = np.unique(ballots.values, return_inverse=True)
    if not item_index.size:
        return np.empty(0, dtype=int)
    table = np.zeros((item_index.max() + 1, len(levels)), dtype=int)
    np.add.at(table, (item_index, value_index), 1)
    others = table[item_index]
    others[np.arange(len(others)), value_index] -= 1
    best = others.max(axis=1)
    single = (best > 0) & ((others == best[:, None]).sum(axis=1) == 1)
    return np.where(single, (others.argmax(axis=1) == value_index).astype(int), -1)


def bootstrap(
    counts: Counts, statistic: Callable[[np.ndarray, np.ndarray], float | None], *, seed: int = 0
) -> Estimate | None:
    """Draw items with replacement 1,000 times and return the statistic with its 95 % interval.

    Items with equal vote counts are drawn together, which changes nothing and takes milliseconds.

    Args:
        counts: tabulated votes.
        statistic: function of distinct rows of counts and how often each was drawn.
        seed: seed of the draws.
    """
    import numpy as np

    if not len(counts.table):
        return None
    rows, times = np.unique(counts.table, axis=0, return_counts=True)
    value = statistic(rows, times.astype(float))
    if value is None:
        return None
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(times.sum(), times / times.sum(), size=NUM_DRAWS)
    found = [drawn for weights in draws if (drawn := statistic(rows, weights.astype(float))) is not None]
    low, high = np.quantile(found, INTERVAL) if found else (value, value)
    return Estimate(value, float(low), float(high))


def alpha_interval(counts: Counts, metric: Metric = "nominal", *, seed: int = 0) -> Estimate | None:
    """Return Krippendorff's alpha with its bootstrap interval."""
    return bootstrap(counts, lambda rows, times: _alpha(rows, times, counts.values, metric), seed=seed)


def raw_interval(counts: Counts, *, seed: int = 0) -> Estimate | None:
    """Return raw agreement with its bootstrap interval."""
    return bootstrap(counts, _raw, seed=seed)


def _raw(table: np.ndarray, times: np.ndarray) -> float | None:
    per_item = table.sum(axis=1)
    possible = (per_item * (per_item - 1) * times).sum()
    agreeing = ((table * (table - 1)).sum(axis=1) * times).sum()
    return float(agreeing / possible) if possible else None


def _alpha(table: np.ndarray, times: np.ndarray, values: np.ndarray, metric: Metric) -> float | None:
    per_item = table.sum(axis=1)
    weights = times / (per_item - 1) if len(table) else times
    totals = (table * times[:, None]).sum(axis=0)
    num_votes = totals.sum()
    if num_votes < 2:
        return None
    distance = _distances(values, totals, metric)
    # Sum over items of n_c * n_k / (m - 1); the diagonal has distance 0 and needs no correction.
    together = (table * weights[:, None]).T @ table
    observed = (together * distance).sum()
    expected = (totals[:, None] * totals[None, :] * distance).sum() / (num_votes - 1)
    return float(1 - observed / expected) if expected else None


def _distances(values: np.ndarray, totals: np.ndarray, metric: Metric) -> np.ndarray:
    """Return the squared distance of every two values, (values, values)."""
    import numpy as np

    if metric == "nominal":
        return 1.0 - np.eye(len(values))
    if metric == "interval":
        return (values[:, None] - values[None, :]) ** 2
    # Ordinal: votes that lie between two values, counting half of each end.
    middles = np.cumsum(totals) - totals / 2
    return (middles[:, None] - middles[None, :]) ** 2


def gold_agreement(tables: Sequence[Sequence[int]] | np.ndarray, gold: Sequence[int] | np.ndarray) -> float:
    """Return how often the majority is the gold value; k leaders with equal votes count 1 / k each.

    Args:
        tables: votes for each value, (items, values).
        gold: column of the right value of each item, (items,).
    """
    import numpy as np

    table, right = np.asarray(tables), np.asarray(gold)
    leads = table == table.max(axis=1)[:, None]
    return float((leads[np.arange(len(right)), right] / leads.sum(axis=1)).mean())
