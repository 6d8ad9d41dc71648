"""What each policy of a run is worth beside what it cost: one evaluation, one start, time, memory, tokens."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.view import RunView, StageView, TableView

_NUMBER = re.compile(r"[+\-]?\d+(?:\.\d+)?(?:e[+\-]?\d+)?")
_T_95 = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"Two-sided 95 % of Student's t for 2 to 10 numbers."


@dataclass(frozen=True, slots=True)
class Worth:
    """One model: its row of the evaluation, and the stages that it alone needed."""

    name: str
    quality: Mapping[str, Any]
    "Column of the evaluation -> cell."
    stages: tuple[str, ...]
    "It and its parents, less what every compared model was made from."
    seconds: float
    peak_memory_bytes: int | None
    peak_gpu_memory_bytes: int | None
    num_tokens: int | None


def worth(run: RunView) -> list[Worth]:
    """Return what the stages that one evaluation compares are worth and cost.

    PPO is charged for its reward model, for nothing else needs it; the SFT stage that all start
    from is charged to nobody.
    """
    table = next((found for found in run.tables if _compared(run, found)), None)
    if table is None:
        return []
    names = _compared(run, table)
    known = {stage.name: stage for stage in run.stages}
    lines = {name: _line(name, known) for name in names}
    shared = set.intersection(*(set(line) for line in lines.values()))
    rows = {str(row[0]): row for row in table.rows}
    return [
        _worth(
            name,
            dict(zip(table.columns[1:], rows[name][1:], strict=False)),
            [known[stage] for stage in lines[name] if stage not in shared],
        )
        for name in names
    ]


def averaged(runs: Sequence[Sequence[Worth]]) -> list[Worth]:
    """Return one entry a model: cells as mean +- half of the 95 % interval over runs, costs as means.

    Only models and columns that every run has are kept; a cell without a number is left empty.
    """
    if len(runs) == 1:
        return list(runs[0])
    by_run = [{entry.name: entry for entry in run} for run in runs]
    names = [entry.name for entry in runs[0] if all(entry.name in found for found in by_run)]
    return [_mean([found[name] for found in by_run]) for name in names]


def _compared(run: RunView, table: TableView) -> list[str]:
    """Return the stages of the run that a table has rows of; one row alone compares nothing."""
    stages = {stage.name for stage in run.stages}
    names = [str(row[0]) for row in table.rows if row and str(row[0]) in stages]
    trained = [name for name in names if _line(name, {stage.name: stage for stage in run.stages})[1:]]
    return trained if len(trained) > 1 else []


def _line(name: str, known: Mapping[str, StageView]) -> list[str]:
    """Return a stage and everything it was made from, itself first."""
    found, waiting = [], [name]
    while waiting:
        stage = waiting.pop()
        if stage in found or stage not in known:
            continue
        found.append(stage)
        waiting += [given.producer for given in known[stage].inputs if given.producer]
    return found


def _worth(name: str, quality: Mapping[str, Any], stages: Sequence[StageView]) -> Worth:
    costs = [stage.cost for stage in stages if stage.cost]
    tokens = [cost.num_tokens for cost in costs if cost.num_tokens is not None]
    return Worth(
        name,
        quality,
        tuple(stage.name for stage in reversed(stages)),
        seconds=sum(stage.seconds or 0.0 for stage in stages),
        peak_memory_bytes=_largest(cost.peak_memory_bytes for cost in costs),
        peak_gpu_memory_bytes=_largest(cost.peak_gpu_memory_bytes for cost in costs),
        num_tokens=sum(tokens) if tokens else None,
    )


def _mean(entries: Sequence[Worth]) -> Worth:
    columns = [name for name in entries[0].quality if all(name in entry.quality for entry in entries)]
    return Worth(
        entries[0].name,
        {name: _mean_cell([entry.quality[name] for entry in entries]) for name in columns},
        entries[0].stages,
        seconds=statistics.mean(entry.seconds for entry in entries),
        peak_memory_bytes=_largest(entry.peak_memory_bytes for entry in entries),
        peak_gpu_memory_bytes=_largest(entry.peak_gpu_memory_bytes for entry in entries),
        num_tokens=_mean_count([entry.num_tokens for entry in entries]),
    )


def _mean_cell(cells: Sequence[Any]) -> str | None:
    """Return the mean of the cells' first numbers with its interval over runs."""
    found = [_NUMBER.match(str(cell)) for cell in cells]
    values = [float(match[0]) for match in found if match]
    if len(values) < len(cells):
        return None
    t = _T_95[min(len(values) - 2, len(_T_95) - 1)]
    half = t * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.3f} +- {half:.3f}"


def _mean_count(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return round(statistics.mean(known)) if len(known) == len(counts) else None


def _largest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)
