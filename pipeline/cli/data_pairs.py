"""`triptych data pairs`: the pairs that training would see, with soft labels, weights and lines."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.cli.data_arguments import add_reading, mapping_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", type=Path, metavar="FILE")
    add_reading(parser)
    parser.add_argument("--out", type=Path, default=Path("pairs.jsonl"), help="JSON Lines file to write")
    parser.add_argument(
        "--aggregate",
        choices=("share", "majority", "dawid-skene"),
        default="share",
        help="how votes become a label: their share (default), the majority for certain, or EM over people",
    )
    parser.add_argument("--ties", action="store_true", help="also write pairs whose votes are even")


def main(args: argparse.Namespace) -> int:
    """Write the pairs and print the counts."""
    from dataclasses import asdict

    from reward.preferences.aggregation import Rule, aggregate
    from reward.preferences.pairs import read_pairs
    from reward.preferences.writers import json_line, read_records, write_text

    found = read_pairs(args.file, mapping_of(args))
    rule = Rule(args.aggregate)
    labelled = [*found.pairs, *found.ties]
    if rule is not Rule.SHARE:
        labelled = aggregate(read_records(args.file, found.mapping)[0], rule)
    even = [pair for pair in labelled if pair.label == 0.5]
    pairs = [pair for pair in labelled if pair.label > 0.5] + (even if args.ties else [])
    write_text(args.out, "".join(json_line(asdict(pair)) for pair in pairs))
    report = found.report
    print(found.verdict)
    print(f"rows: {report.read:,} read, {report.accepted:,} accepted, {report.rejected:,} rejected")
    decided = f"{len(labelled) - len(even):,} decided, {len(even):,} even by {rule}"
    print(f"pairs: {decided}; {len(pairs):,} written to {args.out}")
    return 0
