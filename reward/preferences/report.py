"""The machine form of a reading: what the reward and dpo stages publish as report.json."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reward.preferences.pairs import PairSet

SCHEMA_VERSION = 1


def build(pair_set: PairSet) -> dict[str, Any]:
    """Describe a reading as JSON values: file, digest, format, counts, rejects and flags."""
    longer = [len(pair.chosen) > len(pair.rejected) for pair in pair_set.pairs]
    equal = sum(1 for pair in pair_set.pairs if len(pair.chosen) == len(pair.rejected))
    decided = len(longer) - equal
    return {
        "schema": "triptych/data-report",
        "schema_version": SCHEMA_VERSION,
        "file": pair_set.path.name,
        "sha256": file_sha256(pair_set.path),
        "format": pair_set.verdict.format.name,
        "reads_as": pair_set.verdict.format.reads_as,
        "declared": pair_set.verdict.declared,
        "rows": {
            "read": pair_set.report.read,
            "accepted": pair_set.report.accepted,
            "rejected": pair_set.report.rejected,
        },
        "counts": asdict(pair_set.report),
        "longer_share": sum(longer) / decided if decided else None,
        "rejects": [
            {"line": item.line, "check": item.check, "field": item.field, "message": item.message}
            for item in pair_set.rejects
        ],
        "flags": [asdict(item) for item in pair_set.flags],
    }


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, hex."""
    hashed = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            hashed.update(block)
    return hashed.hexdigest()
