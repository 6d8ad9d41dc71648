"""`triptych data select`: what to have judged next, with a random arm beside it."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.cli.data_arguments import add_reading, mapping_of
from pipeline.errors import DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", type=Path, metavar="FILE", help="comparisons to choose from")
    add_reading(parser)
    parser.add_argument(
        "--margins", type=Path, required=True, help="JSON Lines: {cmp_id, margins: [one a reward model]}"
    )
    parser.add_argument("--count", type=int, required=True, help="comparisons to choose")
    parser.add_argument("--random-share", type=float, default=0.3, help="share drawn without looking (0.3)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random arm")
    parser.add_argument("--out", type=Path, default=Path("selected.jsonl"), help="file to write")


def main(args: argparse.Namespace) -> int:
    """Choose and write; `meta.arm` says which arm a comparison is of."""
    from reward.preferences.selection import RANDOM, read_margins, select
    from reward.preferences.writers import read_records, write_records

    records, _ = read_records(args.file, mapping_of(args))
    margins = read_margins(args.margins)
    try:
        chosen = select(records, margins, count=args.count, random_share=args.random_share, seed=args.seed)
    except ValueError as error:
        raise DataError(str(error), where=str(args.margins), code="bad-value") from error
    write_records(args.out, [item.record for item in chosen])
    num_random = sum(item.arm == RANDOM for item in chosen)
    print(f"{args.out}: {len(chosen) - num_random:,} disputed, {num_random:,} at random")
    return 0
