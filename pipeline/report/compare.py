"""Sets two runs side by side: which stages are the same, which settings and results differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.canonical import finite
from pipeline.report.view import InputView, RunView, StageView, TableView


@dataclass(frozen=True, slots=True)
class Difference:
    """One value that two runs do not share; None where a run has none."""

    name: str
    first: Any
    second: Any

    def to_json(self) -> dict[str, Any]:
        """Return the values as JSON holds them, and the change when both are numbers."""
        document = {"name": self.name, "a": _plain(self.first), "b": _plain(self.second)}
        return document if self.change is None else {**document, "change": _plain(self.change)}

    @property
    def change(self) -> float | None:
        """The second minus the first, when both are numbers."""
        if isinstance(self.first, float | int) and isinstance(self.second, float | int):
            return float(self.second) - float(self.first)
        return None


@dataclass(frozen=True, slots=True)
class StagePair:
    """One stage in two runs."""

    name: str
    same: bool
    "Both have the same manifest key, so the same result."
    first: StageView | None
    second: StageView | None
    settings: Sequence[Difference] = ()
    inputs: Sequence[Difference] = ()
    environment: Sequence[Difference] = ()
    "Packages, Python, system and device that differ."
    metrics: Sequence[Difference] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the pair as plain values."""
        parts = {
            "settings": self.settings,
            "inputs": self.inputs,
            "environment": self.environment,
            "metrics": self.metrics,
        }
        return {
            "name": self.name,
            "same": self.same,
            "keys": {
                "a": self.first.key if self.first else None,
                "b": self.second.key if self.second else None,
            },
            **{part: [item.to_json() for item in found] for part, found in parts.items()},
        }


def compare_runs(first: RunView, second: RunView) -> list[StagePair]:
    """Return the stages of two runs by name, the first run's order first."""
    left = {stage.name: stage for stage in first.stages}
    right = {stage.name: stage for stage in second.stages}
    return [_pair(name, left.get(name), right.get(name)) for name in dict.fromkeys([*left, *right])]


def compare_tables(first: RunView, second: RunView) -> list[TableView]:
    """Return the tables that both runs published, each number followed by the other run's.

    Tables of a stage with the same result in both say nothing here and are left out. Rows are
    matched by their first cell, columns by their name; what only one run has is left out.
    """
    others = {(table.stage, table.title): table for table in second.tables}
    same = {pair.name for pair in compare_runs(first, second) if pair.same}
    joined = [
        _join(table, others.get((table.stage, table.title)))
        for table in first.tables
        if table.stage not in same
    ]
    return [table for table in joined if table is not None]


def _pair(name: str, first: StageView | None, second: StageView | None) -> StagePair:
    if first is None or second is None:
        return StagePair(name, False, first, second)
    same = bool(first.key) and first.key == second.key and first.state in ("ran", "reused")
    if same:
        return StagePair(name, True, first, second)
    return StagePair(
        name=name,
        same=False,
        first=first,
        second=second,
        settings=_differences(first.settings, second.settings),
        inputs=_differences(_inputs(first.inputs), _inputs(second.inputs)),
        environment=_differences(first.environment, second.environment),
        metrics=_differences(first.metrics, second.metrics),
    )


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    names = dict.fromkeys([*first, *second])
    pairs = [Difference(name, first.get(name), second.get(name)) for name in names]
    # NaN differs from itself by `!=`; two NaN are no difference here.
    return [pair for pair in pairs if pair.first != pair.second and not _both_nan(pair)]


def _plain(value: Any) -> Any:
    return finite(value) if isinstance(value, float) else value


def _both_nan(pair: Difference) -> bool:
    return all(isinstance(value, float) and value != value for value in (pair.first, pair.second))


def _inputs(inputs: Sequence[InputView]) -> dict[str, str]:
    return {item.role: f"{item.producer or item.source} {item.fingerprint[:12]}" for item in inputs}


def _join(first: TableView, second: TableView | None) -> TableView | None:
    if second is None or not first.columns:
        return None
    rows = {str(row[0]): row for row in second.rows if row}
    shared = [name for name in first.columns[1:] if name in second.columns]
    columns = [first.columns[0], *(f"{name}{mark}" for name in shared for mark in (" (a)", " (b)"))]
    joined = []
    for row in first.rows:
        other = rows.get(str(row[0])) if row else None
        if other is None:
            continue
        cells = [row[0]]
        for name in shared:
            cells += [_at(row, first.columns.index(name)), _at(other, second.columns.index(name))]
        joined.append(cells)
    return TableView(first.stage, first.title, columns, joined) if joined else None


def _at(row: Sequence[Any], index: int) -> Any:
    return row[index] if index < len(row) else None
