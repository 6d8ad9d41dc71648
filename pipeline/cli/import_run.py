"""`triptych import-run`: take in a folder that export-run made; nothing in it is trusted."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.cli import arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("folder", type=Path, help="a folder that export-run made")
    parser.add_argument("--name", help="another name for the run here")
    arguments.add_store(parser)


def main(args: argparse.Namespace) -> int:
    """Check and copy the run."""
    from pipeline.portable import import_run
    from pipeline.store import Store

    name, new = import_run(Store(args.store), args.folder, rename=args.name)
    print(f"run {name} is here; {new} stages are new, and every byte of them was checked")
    return 0
