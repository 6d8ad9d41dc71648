"""Reads what stages publish for people: tables, samples and data reports.

The files come from stages, also from other packages; what does not fit is left out with a note.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.report.numbers import short
from pipeline.report.view import Answer, DataView, SamplesView, SampleView, TableView

logger = logging.getLogger(__name__)

MAX_ROWS = 300
MAX_TABLES = 40
MAX_CELL_CHARACTERS = 400
MAX_SAMPLES = 24
MAX_TEXT_CHARACTERS = 4000
MAX_REJECTS = 50


def read_tables(folder: Path, stage: str) -> list[TableView]:
    """Return the tables of a stage's output, the one that matters most first; those that can be read."""
    content = _read_json(_file(folder, "table.json"))
    more = _list(content.get("more")) if isinstance(content, dict) else []
    found = (_table(item, stage) for item in [content, *more[:MAX_TABLES]])
    return [table for table in found if table is not None]


def _table(content: Any, stage: str) -> TableView | None:
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
        return None
    rows = [[_cut_cell(cell) for cell in row] for row in content["rows"] if isinstance(row, list)]
    notes = [str(note) for note in _list(content.get("notes"))]
    if len(rows) > MAX_ROWS:
        notes.append(f"The first {MAX_ROWS} of {len(rows)} rows are shown; table.json has all.")
    columns = [str(column) for column in _list(content.get("columns"))]
    return TableView(stage, str(content.get("title", stage)), columns, rows[:MAX_ROWS], notes)


def read_samples(folder: Path, stage: str) -> SamplesView | None:
    """Return the first samples of a stage's output, each text cut to a readable length."""
    path = _file(folder, "samples.jsonl")
    if path is None:
        return None
    samples: list[SampleView] = []
    total = 0
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if not line.strip():
                continue
            total += 1
            if len(samples) < MAX_SAMPLES and (sample := _sample(line)) is not None:
                samples.append(sample)
    return SamplesView(stage, samples, total) if samples else None


def read_data_report(folder: Path, stage: str) -> DataView | None:
    """Return the facts of a preference check."""
    content = _read_json(_file(folder, "report.json"))
    if not isinstance(content, dict):
        return None
    rows = content.get("rows", {})
    facts = [(name, str(content[name])) for name in ("verdict", "format") if content.get(name)]
    facts += [(f"rows {name}", short(count)) for name, count in _mapping(rows).items()]
    if isinstance(share := content.get("longer_share"), float):
        facts.append(("longer answer preferred", f"{100 * share:.1f} % of decided pairs"))
    facts += _statistics(_mapping(content.get("agreement")))
    rejects = [
        (f"line {reject.get('line', '?')}", _cut(str(reject.get("message", "")), MAX_CELL_CHARACTERS))
        for reject in _list(content.get("rejects"))
        if isinstance(reject, dict)
    ]
    return DataView(
        stage=stage,
        file=str(content.get("file", "data")),
        facts=facts,
        flags=[_flag(flag) for flag in _list(content.get("flags"))][:MAX_REJECTS],
        rejects=rejects[:MAX_REJECTS],
        num_rejects=len(rejects),
    )


def as_text(prompt: Any) -> str:
    """Return a prompt as text; messages become one paragraph each, led by their role."""
    if isinstance(prompt, list):
        parts = [_mapping(message) for message in prompt]
        if len(parts) == 1:
            return str(parts[0].get("content", ""))
        return "\n\n".join(f"{part.get('role', '')}: {part.get('content', '')}" for part in parts)
    return str(prompt)


def _sample(line: str) -> SampleView | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("by"), dict):
        return None
    answers = [
        Answer(
            name=str(name),
            text=_cut(str(_mapping(answer).get("text", "")), MAX_TEXT_CHARACTERS),
            scores={
                str(score): value
                for score, value in _mapping(_mapping(answer).get("scores")).items()
                if isinstance(value, (int, float))
            },
        )
        for name, answer in entry["by"].items()
    ]
    return SampleView(_cut(as_text(entry.get("prompt", "")), MAX_TEXT_CHARACTERS), answers)


def _statistics(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return plain values and estimates, those with `low` and `high` as an interval."""
    facts = []
    for name, value in values.items():
        if isinstance(value, Mapping) and "value" in value:
            bounds = [value.get("value"), value.get("low"), value.get("high")]
            value = bounds if None not in bounds else bounds[0]
        if isinstance(value, (int, float, str, list)):
            facts.append((str(name).replace("_", " "), short(value)))
    return facts


def _flag(flag: Any) -> str:
    if isinstance(flag, Mapping):
        place = f"line {flag['line']}: " if flag.get("line") else ""
        return _cut(f"{place}{flag.get('message') or flag.get('check') or ''}", MAX_CELL_CHARACTERS)
    return _cut(str(flag), MAX_CELL_CHARACTERS)


def _file(folder: Path, name: str) -> Path | None:
    path = folder / name if folder.is_dir() else folder
    return path if path.is_file() else None


def _read_json(path: Path | None) -> Any:
    if path is None:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        logger.warning("%s is left out of the report: %s", path, error)
        return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _cut_cell(cell: Any) -> Any:
    return _cut(cell, MAX_CELL_CHARACTERS) if isinstance(cell, str) else cell


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most} more characters)"
