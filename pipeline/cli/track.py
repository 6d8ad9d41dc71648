"""`triptych track`: send a finished run to a dashboard."""

from __future__ import annotations

import argparse

from pipeline.cli import arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", help="name of the run, or its run file")
    parser.add_argument(
        "--to", choices=["wandb", "tensorboard", "mlflow", "trackio"], required=True, help="which dashboard"
    )
    parser.add_argument(
        "--address", help="MLflow tracking address; default: the run file's, else a folder of the run"
    )
    arguments.add_store(parser)


def main(args: argparse.Namespace) -> int:
    """Send every complete stage; say what went where."""
    from pipeline.tracking.upload import tracker_for, upload

    store = arguments.open_store(args)
    name = arguments.run_name(args.run)
    tracker = tracker_for(store, name, args.to, address=args.address)

    def say(stage: str, lines: int) -> None:
        print(f"{stage}: {lines} lines of metrics to {args.to}")

    upload(store, name, tracker=tracker, progress=say)
    return 0
