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
    parser.add_argument("--ties", action="store_true", help="also write pairs whose votes are even")


def main(args: argparse.Namespace) -> int:
    """Write the pairs and print the counts."""
    from dataclasses import asdict

    from reward.preferences.pairs import read_pairs
    from reward.preferences.writers import json_line, write_text

    found = read_pairs(args.file, mapping_of(args))
    pairs = [*found.pairs, *(found.ties if args.ties else [])]
    write_text(args.out, "".join(json_line(asdict(pair)) for pair in pairs))
    report = found.report
    print(found.verdict)
    print(f"rows: {report.read:,} read, {report.accepted:,} accepted, {report.rejected:,} rejected")
    print(f"pairs: {report.pairs:,} decided, {report.ties:,} even; {len(pairs):,} written to {args.out}")
    return 0
