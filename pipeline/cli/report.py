"""`triptych report`: one HTML page about a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.cli import arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", help="name of the run, or its run file")
    parser.add_argument("--out", type=Path, help="write to this file; default: beside the run's manifest")
    arguments.add_store(parser)


def main(args: argparse.Namespace) -> int:
    """Write the page and say where it is."""
    from pipeline.report.write import write_report

    store = arguments.open_store(args)
    print(write_report(store, arguments.run_name(args.run), out=args.out))
    return 0
