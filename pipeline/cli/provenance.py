"""`triptych provenance`: an in-toto statement for each stage of a run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pipeline.cli import arguments
from pipeline.errors import StoreError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", help="RUN, RUN:STAGE or a run file")
    parser.add_argument(
        "--sign",
        type=Path,
        metavar="KEY",
        help="private key (PEM): print signed DSSE envelopes; extra `sign`",
    )
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
    if args.sign is not None:
        signing = arguments.signing()
        key = signing.private_key(args.sign)
    for name in manifest.order if stage is None else [stage]:
        stage_key = manifest.stages[name].key
        if stage_key is not None and store.has(stage_key):
            document = statement(store.load(stage_key))
            print(json.dumps(document if args.sign is None else signing.signed(document, key)))
    return 0
