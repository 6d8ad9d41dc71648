"""`triptych data import`: judgements back into comparison records."""

from __future__ import annotations

import argparse
from pathlib import Path

REFUSED = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="exports or filled-in sheets")
    parser.add_argument("--key", type=Path, required=True, help="key.json of the export")
    parser.add_argument("--into", type=Path, metavar="FILE", help="comparisons of earlier rounds to add to")
    parser.add_argument("--out", type=Path, default=Path("judged.jsonl"), help="file to write")


def main(args: argparse.Namespace) -> int:
    """Import, write, and say what was refused; exit 2 when anything was."""
    from reward.preferences.exchange.judgements import import_judgements
    from reward.preferences.exchange.tasks import read_key
    from reward.preferences.writers import read_records, write_records

    earlier = read_records(args.into)[0] if args.into else []
    found = import_judgements(args.files, read_key(args.key), earlier=earlier)
    write_records(args.out, found.records)
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(found.kinds.items()))
    print(f"{found.votes:,} votes ({kinds or 'none'}), {found.repeats:,} of them repeats")
    print(f"{len(found.open_tasks):,} tasks without a judgement")
    for item in found.refused[:20]:
        print(f"refused {item.file}:{item.line}: {item.check}: {item.message}")
    if len(found.refused) > 20:
        print(f"and {len(found.refused) - 20:,} more")
    print(f"{args.out}: {len(found.records):,} comparisons")
    return REFUSED if found.refused else 0
