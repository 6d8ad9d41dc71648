"""`triptych plan`: what run would do, and why. Loads no weights and no torch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.cli import arguments
from pipeline.cli.models import add_hardware

if TYPE_CHECKING:
    from pipeline.plan import Plan
    from pipeline.store import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    arguments.add_run_file(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--gpu",
        metavar="CARD",
        help="also plan memory on a card: 24GiB, or a name; default: the one nvidia-smi names",
    )
    add_hardware(parser)


def main(args: argparse.Namespace) -> int:
    """Show the plan."""
    return show_plan(args)


def show_plan(args: argparse.Namespace) -> int:
    """Check everything that can be checked before a run and print what would happen."""
    from pipeline.cli.plan_memory import as_json, card_of, plan_memory, refuse, show_memory
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
    card = card_of(getattr(args, "gpu", None), getattr(args, "hardware", None))
    rows = plan_memory(plan, store, card)
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
        answer: dict[str, Any] = {"run": run.config.name, "store": str(store.root), "stages": stages}
        if card is not None:
            answer["memory"] = as_json(rows, card)
        print(json.dumps(answer, indent=1))
    else:
        _show(plan, store, said)
        if card is not None:
            show_memory(rows, card)
    if card is not None:
        refuse(plan, rows, card)
    return 0


def _show(plan: Plan, store: Store, said: Mapping[str, Sequence[str]]) -> None:
    for stage in plan.stages:
        print(f"{stage.name:<12} {stage.wired.spec.kind:<10} {stage.action:<6} {stage.reason}")
        for note in said.get(stage.name, ()):
            print(f"{'':<12} {note}")
    print(f"{len(plan.stages) - len(plan.to_run)} reused, {len(plan.to_run)} to run; store: {store.root}")
