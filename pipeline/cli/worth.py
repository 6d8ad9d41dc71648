"""`triptych worth`: did PPO earn its cost? Quality of each policy beside time, memory and tokens."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from pipeline.cli import arguments
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.report.worth import Worth


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run's name or run file; several are averaged"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--columns", type=int, default=4, help="columns of the evaluation to show (default: 4)"
    )
    arguments.add_store(parser)


def main(args: argparse.Namespace) -> int:
    """Print one row a policy.

    Raises:
        UserError: a run holds no evaluation that compares two trained stages.
    """
    from pipeline.report.collect import collect
    from pipeline.report.worth import averaged, worth

    store = arguments.open_store(args)
    found = []
    for given in args.runs:
        name = arguments.run_name(given)
        entries = worth(collect(store, name))
        if not entries:
            raise UserError(
                f"run {name!r} holds no evaluation that compares two trained stages",
                hint="an evaluate stage with inputs such as {sft: sft, dpo: dpo, ppo: ppo}",
                code="nothing-compared",
            )
        found.append(entries)
    entries = averaged(found)
    if args.json:
        print(json.dumps([asdict(entry) for entry in entries], indent=1, ensure_ascii=False))
        return 0
    _show(entries, most=args.columns, num_runs=len(found))
    return 0


def _show(entries: list[Worth], *, most: int, num_runs: int) -> None:
    from pipeline.cli import tables
    from pipeline.report.numbers import duration, short, size

    quality = list(entries[0].quality)[:most] if entries else []
    gpu = any(entry.peak_gpu_memory_bytes is not None for entry in entries)
    columns = [
        "policy",
        *quality,
        "own stages",
        "time",
        "peak memory",
        *(["peak GPU"] if gpu else []),
        "tokens",
    ]
    rows = []
    for entry in entries:
        memory = [entry.peak_memory_bytes, *([entry.peak_gpu_memory_bytes] if gpu else [])]
        rows.append(
            [
                entry.name,
                *(entry.quality.get(name) for name in quality),
                " + ".join(entry.stages) or "the start of all",
                duration(entry.seconds) if entry.stages else None,
                *(None if held is None else size(held) for held in memory),
                None if entry.num_tokens is None else short(entry.num_tokens),
            ]
        )
    notes = ["A policy is charged for the stages that not every policy here was made from."]
    if num_runs > 1:
        notes.append(
            f"Mean of {num_runs} runs, +- half of the 95 % interval over runs; memory is the largest."
        )
    tables.show(columns, rows, title="What each policy is worth and cost", notes=notes)
