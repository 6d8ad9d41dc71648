"""`triptych export-run`: a run and all that it was made from, as a folder of its own."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.cli import arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", help="a run's name or its run file")
    parser.add_argument("folder", type=Path, help="a new folder; it is a store and verifies by itself")
    arguments.add_store(parser)


def main(args: argparse.Namespace) -> int:
    """Copy the run."""
    from pipeline.portable import export_run

    count = export_run(arguments.open_store(args), arguments.run_name(args.run), args.folder)
    print(f"{count} stages in {args.folder}; take it in elsewhere with: triptych import-run {args.folder}")
    return 0
