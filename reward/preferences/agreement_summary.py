"""All agreement statistics of one file, with chance level and vote mix beside them."""

from __future__ import annotations

from typing import Any

from reward.preferences import agreement as stats
from reward.preferences.ledger import Votes


def summarise_agreement(votes: Votes, seed: int) -> dict[str, Any]:
    """Return every agreement statistic of a file's votes, with chance level and vote mix beside them."""
    import numpy as np

    counted = votes.counted
    ballots = stats.Ballots(votes.pair[counted], votes.person[counted], votes.value[counted])
    counts = stats.count(ballots.items, ballots.values)
    decisive = ballots.where(ballots.values != 0)
    decided = stats.count(decisive.items, decisive.values)
    strength = votes.strength[counted]
    scaled = ballots.values * strength
    scale = stats.count(ballots.items[~np.isnan(scaled)], scaled[~np.isnan(scaled)])
    kappa, raters = stats.fleiss_kappa(counts)
    ceiling, ceiling_votes = stats.human_ceiling(ballots)
    decisive_ceiling, _ = stats.human_ceiling(decisive)
    named = ballots.where(ballots.annotators >= 0)
    pairs = stats.rater_pairs(named)
    kappas = [pair.kappa for pair in pairs if pair.kappa is not None]
    total = max(len(ballots.values), 1)
    return {
        "votes": len(ballots.values),
        "items": len(np.unique(ballots.items)),
        "shared_items": len(counts.table),
        "vote_mix": {
            "first": float((ballots.values == 1).sum() / total),
            "tie": float((ballots.values == 0).sum() / total),
            "second": float((ballots.values == -1).sum() / total),
        },
        "raw": _estimate(stats.raw_interval(counts, seed=seed)),
        "chance": stats.chance_agreement(counts),
        "unanimous": stats.unanimous_share(counts),
        "fleiss_kappa": {"value": kappa, "raters": raters},
        "alpha_nominal": _estimate(stats.alpha_interval(counts, "nominal", seed=seed)),
        "alpha_interval": _estimate(stats.alpha_interval(counts, "interval", seed=seed)),
        "alpha_decisive": _estimate(stats.alpha_interval(decided, "nominal", seed=seed)),
        "alpha_ordinal_strength": _estimate(stats.alpha_interval(scale, "ordinal", seed=seed)),
        "cohen_kappa": {
            "rater_pairs": len(pairs),
            "median": float(np.median(kappas)) if kappas else None,
            "smallest": min(kappas, default=None),
            "largest": max(kappas, default=None),
        },
        "human_ceiling": ceiling,
        "human_ceiling_decisive": decisive_ceiling,
        "ceiling_votes": ceiling_votes,
    }


def _estimate(found: Any) -> dict[str, float] | None:
    return None if found is None else {"value": found.value, "low": found.low, "high": found.high}
