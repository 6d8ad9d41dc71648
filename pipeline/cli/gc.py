"""`triptych gc`: what no run and no pin needs; shown, and deleted only on demand."""

from __future__ import annotations

import argparse

from pipeline.cli import arguments
from pipeline.errors import StoreError
from pipeline.store import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--delete", action="store_true", help="delete it; without this it is only shown")
    parser.add_argument("--pin", metavar="RUN[:STAGE]", help="keep these stages even when no run names them")
    parser.add_argument("--name", help="name of the pin; default: RUN or RUN-STAGE")
    parser.add_argument("--note", default="", help="why it is kept")
    parser.add_argument("--unpin", metavar="NAME", help="take a pin away")
    arguments.add_store(parser)


def main(args: argparse.Namespace) -> int:
    """Show or delete garbage, or change a pin."""
    from pipeline import gc
    from pipeline.disk import size_text

    store = arguments.open_store(args)
    if args.unpin is not None:
        gc.unpin(store, args.unpin)
        return 0
    if args.pin is not None:
        return _pin(store, args)
    with gc.alone(store):
        garbage = gc.find_garbage(store)
        for item in garbage:
            print(f"{size_text(item.num_bytes):>10}  {item.path.relative_to(store.root)}  {item.what}")
        total = size_text(sum(item.num_bytes for item in garbage))
        if args.delete:
            gc.delete(store, garbage)
            print(f"{total} deleted")
        elif garbage:
            print(f"{total} may go: triptych gc --delete")
        else:
            print("nothing may go: every stage belongs to a run or a pin, or is younger than an hour")
    return 0


def _pin(store: Store, args: argparse.Namespace) -> int:
    from pipeline import gc
    from pipeline.manifest import read_manifest

    run, stage = arguments.split_stage(args.pin)
    stages = read_manifest(store, run).stages
    if stage is not None and stage not in stages:
        raise StoreError(f"run {run!r} has no stage {stage!r}", hint=f"one of {', '.join(stages)}")
    chosen = [stages[stage]] if stage is not None else list(stages.values())
    keys = [status.key for status in chosen if status.key is not None and store.has(status.key)]
    if not keys:
        raise StoreError(f"{args.pin} has no result to keep", code="pin")
    path = gc.pin(store, args.name or args.pin.replace(":", "-"), keys, note=args.note)
    print(f"{len(keys)} stages are kept by {path.stem}")
    return 0
