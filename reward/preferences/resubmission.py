"""Compares a submission with the one before: which rejected rows were mended, which remain, which are new."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from reward.preferences.inspection import RejectedRow


@dataclass(frozen=True, slots=True)
class Resubmission:
    """Counts of rows that were rejected before, and of those rejected now."""

    before: int
    fixed: int
    remaining: int
    missing: int
    "Rows that a mended file of rejects does not hold any more."
    new: int

    def __str__(self) -> str:
        text = f"{self.fixed} of {self.before} fixed, {self.remaining} remain, {self.new} new"
        return f"{text}, {self.missing} missing" if self.missing else text


def compare(previous: Path, rejects: Sequence[RejectedRow], mended_rows: set[int]) -> Resubmission:
    """Compare with the report of the submission before.

    In a mended file of rejects every row carries its earlier number. In a whole file a row is the
    same when its text or its number is.

    Raises:
        DataError: the report is missing or is not one of ours.
    """
    earlier = {int(item["row"]): str(item["digest"]) for item in _earlier_rejects(previous)}
    now = {reject.row for reject in rejects}
    if mended_rows or (rejects and now <= set(earlier)):
        fixed = set(earlier) & mended_rows - now
        remaining = set(earlier) & now
        missing = set(earlier) - fixed - remaining
        return Resubmission(len(earlier), len(fixed), len(remaining), len(missing), len(now - set(earlier)))
    digests = set(earlier.values())
    known = [reject for reject in rejects if reject.digest in digests or reject.row in earlier]
    num_fixed = max(0, len(earlier) - len(known))
    return Resubmission(len(earlier), num_fixed, len(known), 0, len(rejects) - len(known))


def _earlier_rejects(previous: Path) -> list[dict[str, Any]]:
    try:
        report = json.loads(previous.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"the earlier report cannot be read: {error}", where=str(previous)) from error
    if not isinstance(report, dict) or report.get("schema") != "triptych/data-report":
        raise DataError("this is no report of `triptych data check`", where=str(previous))
    return [item for item in report.get("rejects", []) if {"row", "digest"} <= set(item)]
