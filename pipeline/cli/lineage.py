"""`triptych lineage`: what a result was made from."""

from __future__ import annotations

import argparse
import json

from pipeline.cli import arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", help="RUN, RUN:STAGE or a run file")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments.add_store(parser)


def main(args: argparse.Namespace) -> int:
    """Print the tree of a stage, or of every last stage of a run."""
    from pipeline.lineage import lineage, lines

    store = arguments.open_store(args)
    run, stage = arguments.split_stage(args.run)
    nodes = lineage(store, run, stage)
    if args.json:
        print(json.dumps([node.to_json() for node in nodes], indent=1))
        return 0
    for node in nodes:
        for line in lines(node):
            print(line)
    return 0
