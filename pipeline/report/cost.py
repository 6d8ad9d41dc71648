"""The cost table of the report: a row a stage, columns that somebody filled, and their sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.report.numbers import amount, duration, short, size
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

    @property
    def has_parts(self) -> bool:
        """Tell whether the time is shown by part."""
        return _COLUMNS["start"] in self.columns


def cost_table(run: RunView) -> CostTable:
    """Return what each finished stage cost; columns that nobody filled are left out."""
    found = summarise(run)
    stages = [stage for stage in found["stages"] if stage["seconds"] is not None]
    whole = found["totals"]["seconds"] or 1.0
    names = [name for name in _COLUMNS if any(_value(stage, name) is not None for stage in stages)]
    return CostTable(
        tuple(_COLUMNS[name].format(currency=found["currency"]) for name in names),
        tuple(
            CostRow(stage["name"], stage["kind"], tuple(_shown(stage, name, whole) for name in names))
            for stage in stages
        ),
        tuple(_shown(found["totals"], name, whole) for name in names),
    )


def time_of(command_seconds: Mapping[str, float]) -> str:
    """Return where the time of a command went, as a sentence; nothing when that is not known."""
    if not command_seconds:
        return ""
    parts = [
        f"{duration(command_seconds[name])} {text}"
        for name, text in _PARTS.items()
        if command_seconds.get(name, 0) >= 0.05
    ]
    return f"The last command took {duration(sum(command_seconds.values()))}: {', '.join(parts)}."


_PARTS = {
    "stages": "in stages",
    "start": "to start",
    "plan": "to plan",
    "publish": "to publish what they gave",
    "report": "for this page and the results",
}
_COLUMNS = {
    "seconds": "Time",
    "share": "Share",
    "start": "Start",
    "seal": "Seal",
    "tokens": "Tokens",
    "tokens_per_second": "Tokens/s",
    "peak_memory_bytes": "Peak memory",
    "peak_gpu_memory_bytes": "Peak GPU memory",
    "price": "Price, {currency}",
}


def _value(row: dict[str, Any], name: str) -> Any:
    if name in ("start", "seal"):
        return (row["seconds_by_part"] or {}).get(name)
    return row["seconds"] if name == "share" else row.get(name)


def _shown(row: dict[str, Any], name: str, whole: float) -> str:
    value = _value(row, name)
    if value is None:
        return "" if name == "tokens_per_second" and "name" not in row else "–"
    if name == "seal" and 0 < value < 0.05:
        return "< 0.1 s"
    if name in ("seconds", "start", "seal"):
        return duration(value)
    if name == "share":
        return f"{value / whole:.0%}"
    if name.endswith("_bytes"):
        return size(value)
    return amount(value) if name == "price" else short(value)
