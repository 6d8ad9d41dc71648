"""`triptych plan`: what run would do, and why. Loads no weights and no torch."""

from __future__ import annotations

import argparse
import json

from pipeline.cli import arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    arguments.add_run_file(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(args: argparse.Namespace) -> int:
    """Show the plan."""
    return show_plan(args)


def show_plan(args: argparse.Namespace) -> int:
    """Check everything that can be checked before a run and print what would happen."""
    from pipeline.plan import make_plan
    from pipeline.preflight import outlooks, preflight

    run, store = arguments.load(args)
    if store.exists():
        store.check()
    store.share(args.shared_store, remember=False)
    plan = make_plan(run, store)
    preflight(plan, store)
    said = outlooks(plan, store)
    store.digests.save()
    if getattr(args, "json", False):
        stages = [
            {
                "name": stage.name,
                "kind": stage.wired.spec.kind,
                "action": stage.action,
                "reason": stage.reason,
                "key": stage.key,
                "parents": list(stage.wired.parents),
                "outlook": list(said.get(stage.name, ())),
            }
            for stage in plan.stages
        ]
        print(json.dumps({"run": run.config.name, "store": str(store.root), "stages": stages}, indent=1))
        return 0
    for stage in plan.stages:
        print(f"{stage.name:<12} {stage.wired.spec.kind:<10} {stage.action:<6} {stage.reason}")
        for note in said.get(stage.name, ()):
            print(f"{'':<12} {note}")
    print(f"{len(plan.stages) - len(plan.to_run)} reused, {len(plan.to_run)} to run; store: {store.root}")
    return 0
