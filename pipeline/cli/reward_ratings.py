"""`triptych reward ratings`: Bradley-Terry ratings of the models that people compared. No model, no torch."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reward.preferences.records import PreferenceRecord


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="comparisons whose responses name their model"
    )
    parser.add_argument("--mapping", type=Path, help="YAML that says how to read FILE")
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(args: argparse.Namespace) -> int:
    """Print the ratings, best first."""
    from pipeline.cli import tables
    from reward.preferences.mapping import load_mapping
    from reward.preferences.writers import read_records
    from reward.ranking import bradley_terry

    records, _ = read_records(args.file, load_mapping(args.mapping))
    wins = model_wins(records)
    if not wins:
        hint = "rows whose responses name the model that wrote them, such as model_a and model_b"
        message = "no two responses of different models were compared"
        raise DataError(message, where=str(args.file), hint=hint, code="no-comparisons")
    ratings = bradley_terry(wins)
    if args.json:
        print(json.dumps([asdict(rating) for rating in ratings], indent=1))
        return 0
    rows = [
        [r.name, f"{r.rating:+.3f}", f"{r.low:+.3f} to {r.high:+.3f}", f"{r.num_comparisons:g}"]
        for r in ratings
    ]
    note = "rating: log-odds of winning against the mean; a difference of 1 wins 73 % of comparisons"
    tables.show(["model", "rating", "95 %", "comparisons"], rows, title=args.file.name, notes=[note])
    return 0


def model_wins(records: Iterable[PreferenceRecord]) -> dict[tuple[str, str], float]:
    """Count how often each model's response was preferred to another's; a tie is half a win for either."""
    import itertools

    from reward.preferences.pairs import tally_of

    wins: dict[tuple[str, str], float] = {}
    for record in records:
        counted = [vote for vote in record.votes if vote.kind.counts]
        for first, second in itertools.combinations(record.responses, 2):
            if not first.source or not second.source or first.source == second.source:
                continue
            tally = tally_of(counted, first.id, second.id)
            for pair, won in (
                ((first.source, second.source), tally.wins),
                ((second.source, first.source), tally.losses),
            ):
                count = won + tally.ties / 2
                if count:
                    wins[pair] = wins.get(pair, 0.0) + count
    return wins
