"""`triptych data noise`: pairs whose label is doubted, to be judged again."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.cli.data_arguments import add_reading, mapping_of
from pipeline.errors import DataError

SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", type=Path, metavar="FILE", help="comparisons with votes")
    add_reading(parser)
    parser.add_argument(
        "--margins",
        type=Path,
        help="JSON Lines {cmp_id, margins: [one a model]}, from models that did not train on the row",
    )
    parser.add_argument(
        "--below", type=float, default=0.5, help="largest chance that the label is right (0.5)"
    )
    parser.add_argument("--count", type=int, help="keep only so many, the most doubtful")
    parser.add_argument("--out", type=Path, default=Path("doubted.jsonl"), help="file to write")


def main(args: argparse.Namespace) -> int:
    """Find, print the worst, and write all for `triptych data export`."""
    from reward.preferences.exchange.tasks import cmp_id_of
    from reward.preferences.noise import find_suspects
    from reward.preferences.selection import read_margins
    from reward.preferences.writers import read_records, write_records

    if not 0 < args.below <= 1:
        raise DataError(f"--below lies between 0 and 1, not {args.below:g}", code="bad-value")
    records, _ = read_records(args.file, mapping_of(args))
    margins = read_margins(args.margins) if args.margins else None
    found = find_suspects(records, margins, below=args.below)[: args.count]
    write_records(args.out, [item.record for item in found])
    for item in found[:SHOWN]:
        said = ", ".join(f"{name} {chance:.2f}" for name, chance in item.reasons.items())
        print(f"line {item.record.line}: the label is right with chance {item.confidence:.2f} ({said})")
    if margins is None:
        print("no --margins: only votes and circles were heard")
    else:
        known = sum(cmp_id_of(record) in margins for record in records)
        print(f"{known:,} of {len(records):,} comparisons have margins")
    print(f"{args.out}: {len(found):,} of {len(records):,} comparisons to be judged again")
    return 0
