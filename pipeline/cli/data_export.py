"""`triptych data export`: comparisons as tasks for people, with overlap, probes and hidden order."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.cli.data_arguments import add_reading, mapping_of
from pipeline.errors import DataError

TOOLS = ("labelstudio", "argilla", "csv", "xlsx")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", type=Path, metavar="FILE", help="comparisons, or prompts with completions")
    add_reading(parser)
    parser.add_argument("--to", choices=TOOLS, required=True, help="the annotation tool")
    parser.add_argument("--annotators", type=int, default=1, help="people who judge")
    parser.add_argument("--overlap", type=int, default=2, help="people who judge an overlapped comparison")
    parser.add_argument("--overlap-share", type=float, default=0.2, help="share of overlapped comparisons")
    parser.add_argument("--probes", type=Path, metavar="FILE", help="comparisons whose answer is known")
    parser.add_argument("--probe-share", type=float, default=0.05, help="probes in each list")
    parser.add_argument("--repeat-share", type=float, default=0.02, help="comparisons judged twice, swapped")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other orders and lists")
    parser.add_argument("--out", type=Path, default=Path("annotation"), help="folder to write")


def main(args: argparse.Namespace) -> int:
    """Write the tasks and the key."""
    from reward.preferences.exchange.assignment import Overlap
    from reward.preferences.exchange.outgoing import export
    from reward.preferences.exchange.probes import read_probes
    from reward.preferences.exchange.tasks import Plan
    from reward.preferences.writers import read_records

    if args.annotators < 1 or not 0 <= args.overlap_share <= 1:
        raise DataError(
            "--annotators is at least 1 and --overlap-share lies between 0 and 1", code="bad-value"
        )
    records, _ = read_records(args.file, mapping_of(args))
    overlap = Overlap(args.annotators, min(args.overlap, args.annotators), args.overlap_share)
    plan = Plan(overlap, args.probe_share, args.repeat_share, args.seed)
    probes = read_probes(args.probes) if args.probes else []
    written = export(records, args.out, tool=args.to, plan=plan, probes=probes)
    for path in written.files:
        print(path)
    print(f"{written.tasks:,} tasks; two people share at least {written.least_shared} comparisons")
    for item in written.dropped:
        print(f"left out {item.cmp_id}: {item.reason}")
    for note in written.notes:
        print(f"note: {note}")
    print(f"keep {written.key} to yourself: it names the sources and the order")
    return 0
