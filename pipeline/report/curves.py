"""Curves small enough for one page: every peak is kept, most points between are not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pipeline.report.view import StageView
from pipeline.tracking.lines import Series

MAX_POINTS = 400
"Points of one curve; a chart is about 300 pixels wide."
MAX_POINTS_OF_PAGE = 60_000
MIN_POINTS = 40

# Curves that say how training went come first, those that say how the machine did come last.
FIRST = ("loss", "eval", "reward", "accuracy", "accurac", "objective", "score", "margin", "kl", "win")
LAST = ("learning_rate", "lr", "grad_norm", "tokens", "seconds", "time", "memory", "epoch", "num_", "step")


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
    return sorted(charts, key=lambda chart: _rank(chart.name))


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
