"""`triptych provenance`: an in-toto statement for each stage of a run."""

from __future__ import annotations

import argparse
import json

from pipeline.cli import arguments
from pipeline.errors import StoreError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", help="RUN, RUN:STAGE or a run file")
    arguments.add_store(parser)


def main(args: argparse.Namespace) -> int:
    """Print one JSON statement a line, parents first."""
    from pipeline.manifest import read_manifest
    from pipeline.provenance import statement

    store = arguments.open_store(args)
    run, stage = arguments.split_stage(args.run)
    manifest = read_manifest(store, run)
    if stage is not None and stage not in manifest.stages:
        raise StoreError(f"run {run!r} has no stage {stage!r}", hint=f"one of {', '.join(manifest.order)}")
    for name in manifest.order if stage is None else [stage]:
        key = manifest.stages[name].key
        if key is not None and store.has(key):
            print(json.dumps(statement(store.load(key))))
    return 0
