"""`triptych run`: run a file, or go on with it."""

from __future__ import annotations

import argparse

from pipeline.cli import arguments
from pipeline.manifest import MANIFEST_NAME, RunManifest
from pipeline.store import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    arguments.add_run_file(parser)
    parser.add_argument("--dry-run", action="store_true", help="check and show the plan; run nothing")
    parser.add_argument(
        "--keep-going", action="store_true", help="after a failure, run the stages that do not need it"
    )
    parser.add_argument(
        "--until", nargs="+", default=[], metavar="STAGE", help="run these stages and what they are made from"
    )


def main(args: argparse.Namespace) -> int:
    """Run the file and say where its results are."""
    if args.dry_run:
        from pipeline.cli.plan import show_plan

        return show_plan(args)
    from pipeline.cli.plan_memory import refuse_hopeless
    from pipeline.cli.terminal import choose
    from pipeline.cost import process_age_seconds
    from pipeline.report.live import LivePage
    from pipeline.runner import Runner

    run, store = arguments.load(args)
    if args.shared_store:
        store.create()
        store.share(args.shared_store, remember=True)
    refuse_hopeless(run, store)
    if run.config.accelerate.machine_rank > 0:
        from pipeline.helper import Helper

        return Helper(run, store, choose(), until=args.until).go()
    runner = Runner(run, store, choose(), keep_going=args.keep_going, until=args.until)
    with LivePage(store, run.config.name) as page:

        def finish() -> None:
            # The last page is the finished one.
            page.end()
            _show_results(runner.manifest, store)

        return runner.go(before_seconds=process_age_seconds() if args.own_process else 0.0, finish=finish)


def _show_results(manifest: RunManifest, store: Store) -> None:
    from pipeline.cli import tables
    from pipeline.report.write import write_report

    for name in manifest.order:
        status = manifest.stages[name]
        if status.state == "complete" and status.key is not None:
            record = store.load(status.key)
            tables.show_artifact(store, record, said=() if status.reused else record.notes)
    print(f"manifest: {store.run_folder(manifest.name) / MANIFEST_NAME}")
    print(f"report:   {write_report(store, manifest.name)}")
