"""The cost table of the report: a row a stage, columns that somebody filled, and their sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.report.numbers import duration, short, size
from pipeline.report.view import RunView
from pipeline.summary import summarise


@dataclass(frozen=True, slots=True)
class CostRow:
    """One stage's cells, as text."""

    name: str
    kind: str
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CostTable:
    """Columns in order, with the rows and the sum below them."""

    columns: tuple[str, ...]
    rows: tuple[CostRow, ...]
    total: tuple[str, ...]


def cost_table(run: RunView) -> CostTable:
    """Return what each finished stage cost; columns that nobody filled are left out."""
    found = summarise(run)
    stages = [stage for stage in found["stages"] if stage["seconds"] is not None]
    whole = found["totals"]["seconds"] or 1.0
    names = [name for name in _COLUMNS if any(_value(stage, name) is not None for stage in stages)]
    return CostTable(
        tuple(_COLUMNS[name] for name in names),
        tuple(
            CostRow(stage["name"], stage["kind"], tuple(_shown(stage, name, whole) for name in names))
            for stage in stages
        ),
        tuple(_shown(found["totals"], name, whole) for name in names),
    )


_COLUMNS = {
    "seconds": "Time",
    "share": "Share",
    "tokens": "Tokens",
    "tokens_per_second": "Tokens/s",
    "peak_memory_bytes": "Peak memory",
    "peak_gpu_memory_bytes": "Peak GPU memory",
    "price": "Price",
}


def _value(row: dict[str, Any], name: str) -> Any:
    return row["seconds"] if name == "share" else row.get(name)


def _shown(row: dict[str, Any], name: str, whole: float) -> str:
    value = _value(row, name)
    if value is None:
        return "" if name == "tokens_per_second" and "name" not in row else "–"
    if name == "seconds":
        return duration(value)
    if name == "share":
        return f"{value / whole:.0%}"
    if name.endswith("_bytes"):
        return size(value)
    return f"{value:.2f}" if name == "price" and value >= 1 else short(value)
