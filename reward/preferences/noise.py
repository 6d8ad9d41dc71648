"""Pairs whose label may be wrong: reward models, the other votes or a circle speak against it.

What is found goes back to people. Nothing is deleted here: a contradiction is no proof.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reward.preferences.aggregation import Rule, aggregate
from reward.preferences.checks.pair_graph import strong_components
from reward.preferences.exchange.tasks import cmp_id_of
from reward.preferences.pairs import Pair, judged_pairs
from reward.preferences.records import PreferenceRecord, digest

MODEL, VOTES, CIRCLE = "model", "votes", "circle"


@dataclass(frozen=True, slots=True)
class Suspect:
    """A comparison whose label something speaks against."""

    record: PreferenceRecord
    cmp_id: str
    confidence: float
    "Chance that the label is right, by what speaks against it most; the smaller, the more suspect."
    reasons: dict[str, float]
    "model, votes or circle -> chance that the label is right by it alone."


def find_suspects(
    records: Sequence[PreferenceRecord],
    margins: Mapping[str, Sequence[float]] | None = None,
    *,
    below: float = 0.5,
) -> list[Suspect]:
    """Return the comparisons of two responses whose label is doubted, the most doubtful first.

    Three witnesses, each gives the chance that the side which the votes prefer is the better one:
    a model trained on other rows (mean logistic of its margins), the votes with each person weighed by
    care (Dawid-Skene), and the other pairs of the prompt (one half for a pair inside a circle).

    Args:
        records: comparisons with votes, those of one pair gathered.
        margins: cmp_id -> margin of the first over the second response, one a model. They must come
            from models that did not train on the row, such as those of a k-fold.
        below: what is at least this sure is not returned.
    """
    pairs = [record for record in records if len(record.responses) == 2 and judged_pairs(record)]
    shares = aggregate(pairs, Rule.SHARE)
    weighed = aggregate(pairs, Rule.DAWID_SKENE)
    circles = _in_a_circle(shares)
    found = []
    for record, share, other, circle in zip(pairs, shares, weighed, circles, strict=True):
        if share.label == 0.5:
            continue
        reasons = {}
        name = cmp_id_of(record)
        if margins and name in margins:
            reasons[MODEL] = _model_confidence(record, share, margins[name])
        if share.votes > 1:
            reasons[VOTES] = other.label if other.chosen == share.chosen else 1 - other.label
        if circle:
            reasons[CIRCLE] = 0.5
        confidence = min(reasons.values(), default=1.0)
        if confidence < below or (circle and confidence <= below):
            found.append(Suspect(_marked(record, confidence, reasons), name, confidence, reasons))
    return sorted(found, key=lambda suspect: (suspect.confidence, suspect.cmp_id))


def _model_confidence(record: PreferenceRecord, pair: Pair, margins: Sequence[float]) -> float:
    """Return the models' mean chance that the preferred side is better."""
    sign = 1 if pair.chosen == record.responses[0].text else -1
    chances = [1 / (1 + math.exp(-max(-700.0, min(700.0, sign * margin)))) for margin in margins]
    return sum(chances) / len(chances)


def _in_a_circle(pairs: Sequence[Pair]) -> list[bool]:
    """Say of each pair whether both its sides lie in one circle of preferences of its prompt."""
    edges = [
        ((pair.group, digest(pair.chosen)), (pair.group, digest(pair.rejected)))
        for pair in pairs
        if pair.label > 0.5
    ]
    home = {node: number for number, part in enumerate(strong_components(edges)) for node in part}
    result = []
    for pair in pairs:
        one, other = (pair.group, digest(pair.chosen)), (pair.group, digest(pair.rejected))
        result.append(one in home and home[one] == home.get(other))
    return result


def _marked(record: PreferenceRecord, confidence: float, reasons: Mapping[str, float]) -> PreferenceRecord:
    """Return the comparison with the reasons in its meta data, ready to be exported to people again."""
    said: dict[str, Any] = {"confidence": round(confidence, 6), "reasons": dict(reasons)}
    return replace(record, meta={**record.meta, "doubt": said})
