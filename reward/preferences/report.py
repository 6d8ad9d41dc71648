"""The machine form of an inspection: report.json, with a versioned schema that only grows."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reward.preferences.agreement_summary import summarise_agreement
from reward.preferences.annotators import AnnotatorRow
from reward.preferences.checks.result import CheckResult, Verdict
from reward.preferences.inspection import Inspection, inspect_file
from reward.preferences.mapping import Mapping
from reward.preferences.pairs import PairSet
from reward.preferences.resubmission import Resubmission

SCHEMA = "triptych/data-report"
SCHEMA_VERSION = 1
"Raised when a field changes its meaning or goes away; new fields do not raise it."
MAX_REJECTS = 10_000
HISTOGRAM_BINS = 25


def build(pair_set: PairSet) -> dict[str, Any]:
    """Describe the file of a pair set with all checks, as JSON values.

    Raises:
        DataError: the file is not there any more.
    """
    found = inspect_file(pair_set.path, mapping=pair_set.mapping)
    report = to_json(found)
    report["pairs"] = asdict(pair_set.report)
    return report


def to_json(
    found: Inspection,
    *,
    resubmission: Resubmission | None = None,
    show_annotators: bool = False,
    salt: str = "",
) -> dict[str, Any]:
    """Return an inspection as JSON values without NaN; annotators are hashed unless shown."""
    tally = found.tally
    clean = tally.accepted - tally.flagged
    length = next((check for check in found.checks if check.id == "length_bias"), None)
    report = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "file": found.path.name,
        "sha256": file_sha256(found.path),
        "bytes": found.path.stat().st_size,
        "format": found.format.format.name,
        "format_title": found.format.format.title,
        "reads_as": found.format.format.reads_as,
        "confidence": found.format.confidence,
        "declared": found.format.declared,
        "encoding": found.text_form.encoding if found.text_form else None,
        "verdict": found.verdict.word,
        "rows": {
            "read": tally.read,
            "accepted": tally.accepted,
            "rejected": tally.rejected,
            "flagged": tally.flagged,
            "clean": clean,
        },
        "flags": [said(check) for check in found.checks if check.verdict >= Verdict.WARN],
        "longer_share": length.measured.get("longer_share") if length else None,
        "examples": [asdict(item) for item in found.rendered],
        "checks": [check_to_json(check) for check in found.checks],
        "agreement": summarise_agreement(found.votes, found.settings.seed),
        "annotators": [_annotator(row, show=show_annotators, salt=salt) for row in found.annotators],
        "plots": plot_data(found),
        "rejects": [asdict(item) for item in found.rejects[:MAX_REJECTS]],
        "resubmission": asdict(resubmission) if resubmission else None,
        "settings": found.settings.model_dump(mode="json"),
    }
    return _without_nan(report)


def said(check: CheckResult) -> str:
    """Return one line about a check: name, count and advice."""
    counted = f"{check.count:,} of {check.of:,} ({check.share:.1%})" if check.of else f"{check.count:,}"
    return f"{check.id}: {counted}. {check.advice}"


def check_to_json(check: CheckResult) -> dict[str, Any]:
    """Return one check as JSON values."""
    return {
        "id": check.id,
        "group": check.group,
        "severity": check.severity,
        "verdict": check.verdict.word,
        "count": check.count,
        "of": check.of,
        "share": check.share,
        "threshold": check.threshold,
        "advice": check.advice,
        "examples": [asdict(example) for example in check.examples],
        "measured": dict(check.measured),
    }


def _annotator(row: AnnotatorRow, *, show: bool, salt: str) -> dict[str, Any]:
    values = asdict(row)
    if not show:
        values["name"] = hashed_name(row.name, salt)
    values["flags"] = list(row.flags)
    return values


def hashed_name(name: str, salt: str) -> str:
    """Return a short name that does not tell who it is, the same for one salt."""
    return "a" + hashlib.sha256(f"{salt}\0{name}".encode()).hexdigest()[:10]


def plot_data(found: Inspection) -> dict[str, Any]:
    """Return the numbers behind the plots: how winners and losers differ in length, and how often ties."""
    import numpy as np

    votes = found.votes
    winners = votes.winners()
    usable = (winners != 0) & (votes.pair_chars > 0).all(axis=1)
    ratio = np.log2(votes.pair_chars[usable, 0] / votes.pair_chars[usable, 1]) * winners[usable]
    edges = np.linspace(-4, 4, HISTOGRAM_BINS + 1)
    counts, _ = np.histogram(np.clip(ratio, -4, 4), edges)
    tallies = votes.tallies()
    totals = tallies.sum(axis=1)
    shares = tallies.max(axis=1)[totals > 1] / totals[totals > 1]
    certainty, _ = np.histogram(shares, np.linspace(0.3, 1.0, 8))
    return {
        "length_ratio": {"edges": edges.tolist(), "counts": counts.tolist()},
        "vote_share": {"edges": np.linspace(0.3, 1.0, 8).tolist(), "counts": certainty.tolist()},
    }


def _without_nan(value: Any) -> Any:
    """Replace NaN and infinities by None, and numpy numbers by plain ones."""
    if isinstance(value, dict):
        return {str(name): _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, bool) or value is None or isinstance(value, str | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, hex."""
    hashed = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            hashed.update(block)
    return hashed.hexdigest()


def inspect_to_json(path: Path, mapping: Mapping | None = None) -> dict[str, Any]:
    """Check a file and return its report, for a plan that must decide before a model is loaded."""
    return to_json(inspect_file(path, mapping=mapping))
