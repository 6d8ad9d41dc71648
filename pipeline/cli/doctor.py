"""`triptych doctor`: what on this machine would stop a run, and what to do about it."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.cli import arguments
from pipeline.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--store", type=Path, default=Path(arguments.DEFAULT_STORE), help="where the store is, or will be"
    )


def main(args: argparse.Namespace) -> int:
    """Print every finding; exit 1 when one is a fault."""
    from pipeline.doctor import Machine, examine

    found = examine(Machine(args.store))
    for said in found:
        print(f"{said.level:<6} {said.name:<13} {said.text}")
        if said.remedy and said.level != "fine":
            print(f"{'':<20} try: {said.remedy}")
    faults = sum(said.level == "fault" for said in found)
    print(f"{faults} fault{'' if faults == 1 else 's'}")
    return ExitCode.STAGE_FAILED if faults else ExitCode.OK
