"""What to have judged next: where reward models disagree, spread over prompts, beside a random arm.

Disagreement of adapters on one base is a weak signal (Gleave and Irving, 2022, arXiv 2203.07472), so a
fixed share is always drawn at random: only that arm says whether selection helped.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from reward.preferences.exchange.tasks import cmp_id_of
from reward.preferences.mapping import Mapping as FileMapping
from reward.preferences.records import PreferenceRecord
from reward.preferences.source import raw_rows_of
from reward.preferences.split import prompt_components

ACTIVE, RANDOM = "active", "random"


@dataclass(frozen=True, slots=True)
class Selected:
    """A comparison to be judged, and why."""

    record: PreferenceRecord
    cmp_id: str
    arm: str
    score: float | None
    "Disagreement in bits; None in the random arm."
    spread: float | None
    "Standard deviation of the margins."


def bald(margins: Sequence[float]) -> float:
    """Return H(mean p) - mean H(p) in bits, p the logistic of each margin.

    Source: Houlsby et al., Bayesian Active Learning for Classification and Preference Learning, 2011.
    """
    chances = [_logistic(margin) for margin in margins]
    return _entropy(sum(chances) / len(chances)) - sum(map(_entropy, chances)) / len(chances)


def select(
    pool: Sequence[PreferenceRecord],
    margins: Mapping[str, Sequence[float]],
    *,
    count: int,
    random_share: float,
    seed: int,
) -> list[Selected]:
    """Choose comparisons: a random share first, then the most disputed, one prompt at a time.

    Args:
        pool: comparisons without votes.
        margins: cmp_id -> margin of the first over the second response, one a model.
        count: comparisons to choose.
        random_share: part that is drawn without looking at margins.
        seed: of the random arm.

    Raises:
        ValueError: a share outside [0, 1], or margins of fewer than two models.
    """
    if not 0 <= random_share <= 1:
        raise ValueError(f"random_share must be in [0, 1], not {random_share}")
    by_id = {cmp_id_of(record): record for record in pool}
    if any(len(found) < 2 for found in margins.values()):
        raise ValueError("disagreement needs the margins of two or more models")
    count = min(count, len(by_id))
    names = sorted(by_id)
    random.Random(seed).shuffle(names)
    drawn = names[: round(random_share * count)]
    chosen = [Selected(_marked(by_id[name], RANDOM), name, RANDOM, None, None) for name in drawn]
    scores = {name: bald(margins[name]) for name in names[len(drawn) :] if name in margins}
    for name in _spread_over_prompts(scores, by_id)[: count - len(chosen)]:
        spread = _deviation(margins[name])
        chosen.append(Selected(_marked(by_id[name], ACTIVE), name, ACTIVE, scores[name], spread))
    return chosen


def _spread_over_prompts(scores: Mapping[str, float], by_id: Mapping[str, PreferenceRecord]) -> list[str]:
    """Order by score, but take a second comparison of a prompt only after one of every other prompt."""
    components = prompt_components([by_id[name] for name in scores])
    taken: dict[str, int] = {}
    rounds: list[tuple[int, float, str]] = []
    for name in sorted(scores, key=lambda name: (-scores[name], name)):
        component = components[by_id[name].group]
        taken[component] = taken.get(component, 0) + 1
        rounds.append((taken[component], -scores[name], name))
    return [name for _, _, name in sorted(rounds)]


def _marked(record: PreferenceRecord, arm: str) -> PreferenceRecord:
    return replace(record, meta={**record.meta, "arm": arm})


def _logistic(margin: float) -> float:
    return 1 / (1 + math.exp(-max(-700.0, min(700.0, margin))))


def _entropy(chance: float) -> float:
    if chance <= 0 or chance >= 1:
        return 0.0
    return -(chance * math.log2(chance) + (1 - chance) * math.log2(1 - chance))


def _deviation(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def read_margins(path: Path) -> dict[str, list[float]]:
    """Read `{cmp_id, margins}` lines.

    Raises:
        DataError: a line has another form.
    """
    found: dict[str, list[float]] = {}
    for raw in raw_rows_of(path, FileMapping())[1]:
        row = raw.value if isinstance(raw.value, dict) else {}
        margins = _numbers(row.get("margins"))
        if not isinstance(row.get("cmp_id"), str) or margins is None:
            raise DataError(
                "a line holds cmp_id and a list of margins", where=f"{path}:{raw.line}", code="bad-margins"
            )
        found[row["cmp_id"]] = margins
    return found


def _numbers(values: Any) -> list[float] | None:
    """Return a list of numbers, or None when it is something else."""
    if not isinstance(values, list):
        return None
    numbers = [float(value) for value in values if isinstance(value, int | float) and value is not True]
    return numbers if len(numbers) == len(values) else None
