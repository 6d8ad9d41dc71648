"""Publishes what the checks say of the preference files that a stage reads, and counts rows. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.contract import RowCounts, StageContext, StageResult

OUTPUT = "data_report"
FILES = {"preferences": "report.json", "held_out": "held_out.json"}
"Role of an input -> name of its report inside the output."
MAX_FIRST_LINES = 10


def with_data_report(ctx: StageContext, run: Callable[[StageContext], StageResult]) -> StageResult:
    """Run a stage and add the reports of its preference files to what it gives.

    Raises:
        DataError: a file cannot be read.
    """
    if not ctx.place.is_main:
        return run(ctx)
    rows = write_reports(ctx)
    result = run(ctx)
    outputs = {**result.outputs, OUTPUT: ctx.output_dir / OUTPUT}
    return replace(result, outputs=outputs, rows={**result.rows, **rows})


def write_reports(ctx: StageContext) -> dict[str, RowCounts]:
    """Write one report a preference file into the output and return the counts of rows by role.

    Raises:
        DataError: a file cannot be read.
    """
    from reward.preferences.mapping import load_mapping
    from reward.preferences.report import inspect_to_json

    mapping = load_mapping(ctx.inputs["mapping"].path) if "mapping" in ctx.inputs else None
    folder = ctx.output_dir / OUTPUT
    folder.mkdir(exist_ok=True)
    counts = {}
    for role, name in FILES.items():
        if role not in ctx.inputs:
            continue
        given = ctx.inputs[role]
        report = inspect_to_json(given.path, mapping)
        # The file as the run file calls it: a store names the outputs of stages after their roles.
        report["file"] = Path(given.source).name or report["file"]
        _write(folder / name, report)
        counts[role] = row_counts(report)
    return counts


def row_counts(report: Mapping[str, Any]) -> RowCounts:
    """Return the counts of a data report."""
    rows, rejects = report["rows"], report["rejects"]
    return RowCounts(
        read=rows["read"],
        accepted=rows["accepted"],
        rejected=rows["rejected"],
        reasons={check["id"]: found for check in report["checks"] if (found := _rows_rejected(check))},
        first_lines=tuple(reject["line"] for reject in rejects[:MAX_FIRST_LINES]),
    )


def _rows_rejected(check: Mapping[str, Any]) -> int:
    """Return how many rows a check set aside; 0 for checks that do not look at single rows."""
    measured = check["measured"]
    return int(measured["rejected"]) if {"rejected", "flagged"} <= measured.keys() else 0


def _write(path: Path, report: Mapping[str, Any]) -> None:
    text = json.dumps(report, ensure_ascii=True, indent=1, sort_keys=True, allow_nan=False)
    path.write_text(text + "\n", encoding="ascii")
