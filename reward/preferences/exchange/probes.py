"""Comparisons with a known answer, to see who reads with care."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.errors import DataError
from reward.preferences.pairs import pairs_of
from reward.preferences.records import PreferenceRecord
from reward.preferences.writers import read_records


def read_probes(path: Path) -> list[PreferenceRecord]:
    """Read probes: records with a gold order, or with votes that all name one side.

    Raises:
        DataError: a comparison has no clear answer, or the file cannot be read.
    """
    records, _ = read_records(path)
    return [_with_gold(record, path) for record in records]


def _with_gold(record: PreferenceRecord, path: Path) -> PreferenceRecord:
    if record.gold:
        return replace(record, votes=())
    clear = [pair for pair in pairs_of(record) if pair.label == 1]
    if len(record.responses) != 2 or not clear:
        raise DataError(
            "a probe needs an answer that nobody doubts",
            where=f"{path}:{record.line}",
            hint="give `gold: [better id, worse id]`",
        )
    better = next(response.id for response in record.responses if response.text == clear[0].chosen)
    worse = next(response.id for response in record.responses if response.id != better)
    return replace(record, votes=(), gold=(better, worse))
