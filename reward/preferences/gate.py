"""What a plan may know of a preference file before any model is loaded."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import DataError, Finding
from reward.preferences.pairs import load_pairs

MAX_SHOWN = 20
DEFAULT_MAX_REJECT_SHARE = 0.01


def findings(
    path: Path, *, mapping: Path | None = None, max_reject_share: float = DEFAULT_MAX_REJECT_SHARE
) -> list[Finding]:
    """Return why training must not start on a file; empty when it may.

    Args:
        path: the preference file.
        mapping: how to read it.
        max_reject_share: share of rows that may be set aside.
    """
    try:
        found = load_pairs(path, mapping=mapping)
    except DataError as error:
        return list(error.findings)
    report = found.report
    if not report.pairs:
        return [Finding("no pair has a preferred side", str(path), f"triptych data check {path}", "no-pairs")]
    if report.rejected <= max_reject_share * report.read:
        return []
    first = Finding(
        f"{report.rejected:,} of {report.read:,} rows are set aside, more than {max_reject_share:.1%}",
        str(path),
        f"triptych data check {path}",
        "too-many-rejects",
    )
    rows = [
        Finding(reject.message, f"{path}:{reject.line}", code=reject.check)
        for reject in found.rejects[:MAX_SHOWN]
    ]
    return [first, *rows]
