"""`triptych data split`: nearly equal prompts never stand on both sides."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.cli.data_arguments import add_reading, mapping_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", type=Path, metavar="FILE")
    add_reading(parser)
    parser.add_argument("--share", type=float, default=0.1, help="share of comparisons to hold out (0.1)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives another split")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of train.jsonl and heldout.jsonl")


def main(args: argparse.Namespace) -> int:
    """Write both sides as comparison records."""
    from reward.preferences.split import split_groups
    from reward.preferences.writers import read_records, write_records

    records, num_rejected = read_records(args.file, mapping_of(args))
    train, held_out = split_groups(records, args.share, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("heldout", held_out)):
        path = args.out / f"{name}.jsonl"
        write_records(path, [records[row] for row in rows], source=args.file.name)
        print(f"{path}: {len(rows):,} comparisons")
    if num_rejected:
        print(f"{num_rejected:,} rows were set aside; see `triptych data check {args.file}`")
    return 0
