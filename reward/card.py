"""The report card of a reward model: accuracy with its interval and floors, calibration, margins, bias.

It takes scored pairs only; who scored them and where they came from is not its concern.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import ModelError
from reward.metrics import (
    Array,
    brier,
    calibration_bins,
    coverage_curve,
    expected_calibration_error,
    fitted_temperature,
    log_loss,
    pair_wins,
    roc_auc,
    wilson_interval,
)

SCHEMA = 1
"Version of the card's JSON."
LENGTH_AGREEMENT = 0.95
"A model that sides with the same end of the length scale this often is called length-only."
NAN = float("nan")
VOTE_SHARES = (0.6, 0.8, 0.999999)
"Upper bounds of the groups of pairs by how united the votes were; above the last all agreed."


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """One held-out pair and what the reward model gave."""

    chosen_score: float
    rejected_score: float
    chosen_length: int
    "Characters of the chosen response."
    rejected_length: int
    share: float = 1.0
    "Share of votes for chosen, 0.5 to 1; 0.5 is a tie and stays out of the accuracy."
    majority: float = 0.5
    "1 when the majority rule of the training pairs prefers chosen, 0 when rejected, 0.5 when it cannot say."
    votes: int = 1
    "How many people judged the pair."
    subset: str = ""
    "Part of the data that the pair belongs to; empty is none."
    judges: tuple[tuple[str, float], ...] = ()
    "Named annotators and the share of their votes for chosen."

    @property
    def gap(self) -> float:
        """Return by how much chosen scores higher."""
        return self.chosen_score - self.rejected_score


def report_card(pairs: Sequence[ScoredPair], *, longer_is_better: bool | None = None) -> dict[str, Any]:
    """Measure a reward model on held-out pairs.

    Args:
        pairs: scored pairs; ties count in calibration and soft scores only.
        longer_is_better: direction of the length rule, as found on the training pairs; None
            takes the better of the two directions on these very pairs.

    Returns:
        A JSON object: counts, accuracy with interval and floors, calibration, margins, groups, flags.

    Raises:
        ModelError: a score is not finite.
    """
    scores = np.array([[p.chosen_score, p.rejected_score] for p in pairs], dtype=float).reshape(-1, 2)
    if not np.isfinite(scores).all():
        bad = int((~np.isfinite(scores)).any(1).sum())
        raise ModelError(
            f"the reward model gave {bad} of {len(pairs)} pairs a score that is not a number",
            hint="a smaller learning_rate, or float32",
            code="score-not-finite",
        )
    decided = [pair for pair in pairs if pair.share > 0.5]
    gaps, shares = scores[:, 0] - scores[:, 1], np.array([pair.share for pair in pairs])
    card: dict[str, Any] = {
        "schema": SCHEMA,
        "num_pairs": len(decided),
        "num_ties": len(pairs) - len(decided),
    }
    card |= _accuracy(decided) | {
        "floors": _floors(decided, longer_is_better),
        "ceiling": human_ceiling(decided),
    }
    card["of_ceiling"] = (card["accuracy"] - 0.5) / (card["ceiling"] - 0.5) if card["ceiling"] > 0.5 else NAN
    if pairs:
        card["calibration"] = _calibration(gaps, shares, decided)
        card["margins"] = _margins(gaps)
        card["scores"] = _spread(scores)
        card["length"] = _length(decided)
        card["by_vote_share"] = _groups(decided, _vote_group)
        card["by_subset"] = _groups(decided, lambda pair: pair.subset)
        card["by_annotator"] = _by_annotator(pairs)
        card["coverage"] = coverage_curve(_gaps(decided)) if decided else []
    card["flags"] = _flags(card)
    return card


def headline(card: Mapping[str, Any]) -> dict[str, float]:
    """Return the card's numbers that a stage reports and a gate may use."""
    names = ("accuracy", "accuracy_low", "accuracy_high", "num_pairs", "num_ties")
    numbers = {name: float(card[name]) for name in names}
    numbers |= {f"{name}_floor": float(card["floors"][name]) for name in ("length", "majority")}
    for block, keys in (("calibration", ("auc", "ece", "brier", "log_loss")), ("margins", ("mean", "sd"))):
        for key in keys if block in card else ():
            numbers[key if block == "calibration" else f"margin_{key}"] = float(card[block][key])
    return numbers


def human_ceiling(pairs: Sequence[ScoredPair]) -> float:
    """Return how often one judge of a pair agrees with the majority of the others; NaN with no two judges.

    Even votes of the others count half: they leave the answer to chance.
    """
    agreed, judged = 0.0, 0.0
    for pair in pairs:
        if pair.votes >= 2:
            wins = pair.share * pair.votes
            losses = pair.votes - wins
            agreed += wins * _beats(wins - 1, losses) + losses * _beats(losses - 1, wins)
            judged += pair.votes
    return agreed / judged if judged else float("nan")


def _beats(one: float, other: float) -> float:
    return 0.5 if one == other else float(one > other)


def length_wins(pairs: Sequence[tuple[int, int]]) -> float:
    """Return the share of (chosen, rejected) lengths where chosen is longer, equal lengths counting half."""
    if not pairs:
        return 0.5
    return pair_wins(np.array([chosen - rejected for chosen, rejected in pairs], dtype=float)) / len(pairs)


def _accuracy(decided: Sequence[ScoredPair]) -> dict[str, float]:
    return _agreement(_gaps(decided))


def _agreement(gaps: Array) -> dict[str, float]:
    wins = pair_wins(gaps)
    low, high = wilson_interval(wins, len(gaps))
    share = wins / len(gaps) if len(gaps) else float("nan")
    return {"accuracy": share, "accuracy_low": low, "accuracy_high": high}


def _floors(decided: Sequence[ScoredPair], longer_is_better: bool | None) -> dict[str, float]:
    longer = length_wins([(pair.chosen_length, pair.rejected_length) for pair in decided])
    if longer_is_better is None:
        length = max(longer, 1 - longer)
    else:
        length = longer if longer_is_better else 1 - longer
    majority = float(np.mean([pair.majority for pair in decided])) if decided else 0.5
    return {"chance": 0.5, "length": length, "majority": majority}


def _calibration(gaps: Array, shares: Array, decided: Sequence[ScoredPair]) -> dict[str, Any]:
    chosen = np.array([pair.chosen_score for pair in decided])
    rejected = np.array([pair.rejected_score for pair in decided])
    hard = _gaps(decided)
    return {
        "auc": roc_auc(chosen, rejected),
        "ece": expected_calibration_error(hard),
        "brier": brier(hard, np.ones(len(hard))) if decided else float("nan"),
        "log_loss": log_loss(hard, np.ones(len(hard))) if decided else float("nan"),
        "soft_brier": brier(gaps, shares),
        "soft_log_loss": log_loss(gaps, shares),
        "temperature": fitted_temperature(gaps, shares),
        "bins": calibration_bins(hard),
    }


def _margins(gaps: Array) -> dict[str, float]:
    low, middle, high = np.percentile(gaps, [5, 50, 95])
    near = float((np.abs(gaps) < 0.1).mean())
    return {
        "mean": float(gaps.mean()),
        "sd": float(gaps.std()),
        "p05": float(low),
        "p50": float(middle),
        "p95": float(high),
        "near_zero": near,
    }


def _spread(scores: Array) -> dict[str, float]:
    chosen, rejected = scores[:, 0], scores[:, 1]
    return {
        "chosen_mean": float(chosen.mean()),
        "chosen_sd": float(chosen.std()),
        "rejected_mean": float(rejected.mean()),
        "rejected_sd": float(rejected.std()),
    }


def _length(decided: Sequence[ScoredPair]) -> dict[str, Any]:
    """Return how the model does where the longer side is right, and where it is wrong."""
    uneven = [pair for pair in decided if pair.chosen_length != pair.rejected_length]
    right = [pair for pair in uneven if pair.chosen_length > pair.rejected_length]
    wrong = [pair for pair in uneven if pair.chosen_length < pair.rejected_length]
    sides = sum((p.gap > 0) == (p.chosen_length > p.rejected_length) for p in uneven if p.gap != 0)
    return {
        "longer_is_right": _accuracy(right) | {"num_pairs": len(right)},
        "longer_is_wrong": _accuracy(wrong) | {"num_pairs": len(wrong)},
        "prefers_longer": sides / len(uneven) if uneven else float("nan"),
        "slope_per_doubling": _length_slope(uneven),
    }


def _length_slope(uneven: Sequence[ScoredPair]) -> float:
    """Return the least-squares slope of score difference on the log2 ratio of lengths, through 0."""
    ratio = np.array([np.log2(max(p.chosen_length, 1) / max(p.rejected_length, 1)) for p in uneven])
    square = float(ratio @ ratio)
    return float(ratio @ _gaps(uneven)) / square if square else float("nan")


def _vote_group(pair: ScoredPair) -> str:
    names = ("0.5-0.6", "0.6-0.8", "0.8-1", "1")
    return names[bisect_left(VOTE_SHARES, pair.share)]


def _groups(pairs: Sequence[ScoredPair], name: Callable[[ScoredPair], str]) -> dict[str, dict[str, float]]:
    parts: dict[str, list[ScoredPair]] = {}
    for pair in pairs:
        if name(pair):
            parts.setdefault(name(pair), []).append(pair)
    return {key: _accuracy(part) | {"num_pairs": len(part)} for key, part in sorted(parts.items())}


def _by_annotator(pairs: Sequence[ScoredPair]) -> dict[str, dict[str, float]]:
    """Return how often the model agrees with each annotator's own votes, whatever the majority said."""
    gaps: dict[str, list[float]] = {}
    for pair in pairs:
        for name, share in pair.judges:
            if share != 0.5:
                gaps.setdefault(name, []).append(pair.gap if share > 0.5 else -pair.gap)
    return {
        name: _agreement(np.array(own, dtype=float)) | {"num_pairs": len(own)}
        for name, own in sorted(gaps.items())
    }


def _flags(card: Mapping[str, Any]) -> list[str]:
    flags = []
    floors = card["floors"]
    best = max(floors, key=lambda name: floors[name])
    if card["num_pairs"] == 0:
        flags.append("no decided pair was held out, so nothing is known of this model's accuracy")
    elif card["accuracy_low"] <= floors[best]:
        flags.append(f"accuracy is not above the {best} floor ({floors[best]:.3f}) beyond its interval")
    longer = card.get("length", {}).get("prefers_longer", 0.5)
    uneven = sum(card["length"][key]["num_pairs"] for key in _SIDES) if "length" in card else 0
    if uneven >= 20 and max(longer, 1 - longer) >= LENGTH_AGREEMENT:
        side = "longer" if longer > 0.5 else "shorter"
        flags.append(
            f"it prefers the {side} response in {max(longer, 1 - longer):.0%} of pairs: it reads length"
        )
    return flags


_SIDES = ("longer_is_right", "longer_is_wrong")


def _gaps(pairs: Sequence[ScoredPair]) -> Array:
    return np.array([pair.gap for pair in pairs], dtype=float)
