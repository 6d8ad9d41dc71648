"""Draws two runs side by side as one HTML page: results, differences, and curves over each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pipeline.report.compare import StagePair, compare_runs, compare_tables
from pipeline.report.curves import Chart, charts_of
from pipeline.report.numbers import short
from pipeline.report.page import HERE, environment, policy
from pipeline.report.view import RunView

MOST_CHARTS = 12
"Charts of one stage."


@dataclass(frozen=True, slots=True)
class PairedChart:
    """One metric of both runs."""

    name: str
    number: int
    "Place of its points in the page's data."
    last_a: float
    last_b: float


@dataclass(frozen=True, slots=True)
class ChartGroup:
    """The charts of a stage that both runs have."""

    name: str
    kind: str
    charts: list[PairedChart]


def render_comparison(first: RunView, second: RunView) -> str:
    """Return the page of two runs as HTML text."""
    style = (HERE / "page.css").read_text(encoding="utf-8")
    script = (HERE / "page.js").read_text(encoding="utf-8")
    pairs = compare_runs(first, second)
    curves: list[dict[str, Any]] = []
    groups = _groups(first, second, pairs, curves)
    shared = environment()
    shared.filters["signed"] = _signed
    shared.globals |= {"verdict": verdict, "what_differs": what_differs}
    return shared.get_template("compare.html.jinja").render(
        first=first,
        second=second,
        pairs=pairs,
        tables=compare_tables(first, second),
        groups=groups,
        curves=curves,
        style=Markup(style),
        script=Markup(script),
        policy=policy(style, script),
    )


def verdict(pair: StagePair) -> str:
    """Return what became of a stage in both runs, in a few words."""
    if pair.first is None or pair.second is None:
        return f"only in {'b' if pair.first is None else 'a'}"
    if pair.same:
        return "the same result"
    states = {pair.first.state, pair.second.state}
    return "differs" if states <= {"ran", "reused"} else f"{pair.first.state} and {pair.second.state}"


def what_differs(pair: StagePair) -> str:
    """Return the names of the first settings and inputs that differ, else what else does."""
    names = [change.name for change in (*pair.settings, *pair.inputs)]
    if names:
        rest = f" and {len(names) - 4} more" if len(names) > 4 else ""
        return ", ".join(names[:4]) + rest
    return f"{len(pair.metrics)} metrics" if pair.metrics else ""


def _groups(
    first: RunView, second: RunView, pairs: list[StagePair], curves: list[dict[str, Any]]
) -> list[ChartGroup]:
    """Pair the charts of stages that differ; the points of both go to `curves`."""
    left, right = charts_of(first.stages), charts_of(second.stages)
    groups = []
    for pair in pairs:
        if pair.same or pair.first is None:
            continue
        others = {(chart.name, chart.against): chart for chart in right.get(pair.name, [])}
        both = [
            (chart, others[chart.name, chart.against])
            for chart in left.get(pair.name, [])
            if (chart.name, chart.against) in others and not chart.lone and not chart.against
        ]
        main = [found for found in both if not found[0].secondary] or both
        charts = [_paired(one, other, curves) for one, other in main[:MOST_CHARTS]]
        if charts:
            groups.append(ChartGroup(pair.name, pair.first.kind, charts))
    return groups


def _paired(one: Chart, other: Chart, curves: list[dict[str, Any]]) -> PairedChart:
    curves.append({**one.points, "other": other.points})
    return PairedChart(one.name, len(curves) - 1, one.last, other.last)


def _signed(value: float | None) -> str:
    if value is None:
        return "–"
    text = short(abs(value))
    return text if value == 0 or text == "0" else f"{'+' if value > 0 else '−'}{text}"
