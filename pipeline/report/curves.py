"""Curves small enough for one page: every peak is kept, most points between are not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from pipeline.report.view import StageView
from pipeline.tracking.lines import Series

MAX_POINTS = 400
"Points of one curve; a chart is about 300 pixels wide."
MAX_POINTS_OF_PAGE = 60_000
MIN_POINTS = 40

# Curves that say how training went come first, those that say how the machine did come last.
FIRST = (
    "scores",
    "objective/kl",
    "accurac",
    "margin",
    "win",
    "eval_loss",
    "loss",
    "perplexity",
    "reward",
    "kl",
)
LAST = (
    *("learning_rate", "lr", "grad_norm", "tokens", "tokens_per_second", "seconds", "time", "memory"),
    *("epoch", "episode", "eps", "num_", "step", "optimizer_steps", "computed_pairs"),
)
AGAINST = (
    ("objective/scores", "objective/kl"),
    ("objective/scores", "ppo/sqrt_kl"),
    ("ppo/watched_score", "ppo/sqrt_kl"),
)
"Pairs of metrics, one drawn against the other: a score bought with little KL is worth more."


@dataclass(frozen=True, slots=True)
class Chart:
    """One curve with the numbers beside it."""

    name: str
    points: dict[str, list[Any]]
    "steps and values, thinned; None where a value was not finite."
    first: float
    last: float
    low: float
    high: float
    num_points: int
    num_not_finite: int
    secondary: bool
    "Shown behind a fold: about the machine or the schedule, not the result."
    against: str = ""
    "Metric on the horizontal axis; empty for the step."

    @property
    def lone(self) -> bool:
        """Tell whether there is but one point, which a table shows better."""
        return self.num_points == 1


def charts_of(stages: Sequence[StageView]) -> dict[str, list[Chart]]:
    """Return each stage's charts, together within the page's budget of points."""
    count = sum(len(stage.series) for stage in stages)
    most = max(MIN_POINTS, min(MAX_POINTS, MAX_POINTS_OF_PAGE // max(count, 1)))
    return {stage.name: _charts(stage.series, most) for stage in stages if stage.series}


def thin(series: Series, most: int) -> tuple[list[int], list[float | None]]:
    """Keep at most about `most` points: the lowest and the highest of each bucket, in order.

    The first and the last point stay. A value that is not finite becomes None, a gap.
    """
    size = len(series.steps)
    if size <= most:
        keep = list(range(size))
    else:
        buckets = max(1, (most - 2) // 2)
        edges = [1 + (size - 2) * number // buckets for number in range(buckets + 1)]
        keep = [0]
        for start, stop in pairwise(edges):
            keep.extend(_extremes(series.values, start, stop))
        keep.append(size - 1)
    return [series.steps[i] for i in keep], [_finite(series.values[i]) for i in keep]


def _extremes(values: Sequence[float], start: int, stop: int) -> list[int]:
    finite = [i for i in range(start, stop) if math.isfinite(values[i])]
    if not finite:
        return [start] if start < stop else []
    return sorted({min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)})


def _finite(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _charts(series: Mapping[str, Series], most: int) -> list[Chart]:
    charts = [_chart(name, found, most) for name, found in series.items() if found.steps]
    pairs = [(y, x) for y, x in AGAINST if y in series and x in series]
    crossed = [_crossed(y, x, series, most) for y, x in pairs]
    return crossed + sorted(charts, key=lambda chart: _rank(chart.name))


def _crossed(name: str, against: str, series: Mapping[str, Series], most: int) -> Chart:
    """Return one metric drawn over another, joined by their steps."""
    across = dict(zip(series[against].steps, series[against].values, strict=True))
    shared = [
        (across[step], value)
        for step, value in zip(series[name].steps, series[name].values, strict=True)
        if math.isfinite(across.get(step, math.nan)) and math.isfinite(value)
    ]
    shared = shared[:: -(-len(shared) // most)] if shared else []
    chart = _chart(name, series[name], most)
    points = {"steps": [_finite(x) for x, _ in shared], "values": [_finite(y) for _, y in shared]}
    return replace(chart, points=points | {"across": [against]}, against=against)


def _chart(name: str, series: Series, most: int) -> Chart:
    steps, values = thin(series, most)
    finite = [value for value in series.values if math.isfinite(value)]
    return Chart(
        name=name,
        points={"steps": steps, "values": values},
        first=series.values[0],
        last=series.values[-1],
        low=min(finite, default=math.nan),
        high=max(finite, default=math.nan),
        num_points=len(series.steps),
        num_not_finite=len(series.values) - len(finite),
        secondary=_is_last(name),
    )


def _is_last(name: str) -> bool:
    tail = name.rsplit("/", 1)[-1]
    return any(tail.startswith(word) or tail.endswith(word) for word in LAST)


def _rank(name: str) -> tuple[bool, int, str]:
    order = next((i for i, word in enumerate(FIRST) if word in name.lower()), len(FIRST))
    return (_is_last(name), order, name)
