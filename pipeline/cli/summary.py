"""`triptych summary`: what each stage of a run gave and cost, as a table or as stable JSON."""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

from pipeline.cli import arguments
from pipeline.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", help="a run's name or its run file")
    parser.add_argument("--json", action="store_true", help="print JSON; its schema has a version")
    parser.add_argument(
        "--price-per-hour", type=float, help="price of the machine an hour; default: the run file's"
    )
    parser.add_argument("--currency", help="what that price is in, such as EUR; default: the run file's")
    arguments.add_store(parser)


def main(args: argparse.Namespace) -> int:
    """Print the summary."""
    from pipeline.report.collect import collect
    from pipeline.summary import summarise

    if args.price_per_hour is not None and not 0 <= args.price_per_hour < float("inf"):
        raise UserError(f"a price of {args.price_per_hour:g} an hour is out of range", code="bad-value")
    run = collect(arguments.open_store(args), arguments.run_name(args.run))
    if args.currency is not None and not re.fullmatch("[A-Z]{3}", args.currency):
        raise UserError(
            f"{args.currency!r} is no currency", hint="three capital letters, such as EUR", code="bad-value"
        )
    found = summarise(run, price_per_hour=args.price_per_hour, currency=args.currency)
    if args.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return 0
    _show(found)
    return 0


def _show(found: dict[str, Any]) -> None:
    from pipeline.cli import tables
    from pipeline.report.cost import time_of
    from pipeline.report.numbers import duration, short, size

    columns = ["stage", "kind", "state", "time", "tokens", "tokens/s", "peak memory", "peak GPU"]
    columns.append(f"price, {found['currency']}")
    totals = {
        "name": "all",
        "kind": "",
        "state": found["state"],
        "tokens_per_second": None,
        **found["totals"],
    }
    rows = []
    for row in (*found["stages"], totals):
        memory = [row[name] for name in ("peak_memory_bytes", "peak_gpu_memory_bytes")]
        rows.append(
            (
                *(row[name] for name in ("name", "kind", "state")),
                duration(row["seconds"]),
                short(row["tokens"]),
                short(row["tokens_per_second"]),
                *(None if held is None else size(held) for held in memory),
                None if row["price"] is None else f"{row['price']:.4f}",
            )
        )
    # A price that nobody gave, or a GPU that nobody had, needs no column.
    kept = [at for at in range(len(columns)) if any(row[at] not in (None, "") for row in rows)]
    tables.show([columns[at] for at in kept], [[row[at] for at in kept] for row in rows], title=found["name"])
    if found["command_seconds"]:
        print(time_of(found["command_seconds"]))
    for stage in found["stages"]:
        for text in stage["gate"]["closed"]:
            print(f"{stage['name']}: gate closed: {text}")
        for alarm in stage["alarms"]:
            print(f"{stage['name']}: alarm {alarm['name']} at step {alarm['step']}")
