"""`triptych compare`: two runs side by side, or what two of their stages answer to the same prompts."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli import arguments, voices

if TYPE_CHECKING:
    from pipeline.report.compare import StagePair


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("first", help="name of a run, or its run file; RUN:STAGE to compare what stages say")
    parser.add_argument("second", help="the run, or RUN:STAGE, to compare it with")
    parser.add_argument("--all", action="store_true", help="show every metric, not the telling ones only")
    parser.add_argument("--json", action="store_true", help="print JSON; of stages, one line a prompt")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write both runs, or both stages' answers, as one HTML page"
    )
    stages = parser.add_argument_group("of two stages")
    stages.add_argument("--prompts", type=Path, metavar="FILE", help="JSON Lines with a prompt")
    stages.add_argument("--max-prompts", type=int, help="only the first so many prompts")
    stages.add_argument(
        "--blind", type=Path, metavar="FILE", help="write a .csv or .xlsx for raters, and the key beside it"
    )
    voices.add_voice(stages, temperature=0.0)
    arguments.add_store(parser)


def main(args: argparse.Namespace) -> int:
    """Print what the runs share and where they part."""
    if ":" in args.first or ":" in args.second:
        from pipeline.cli.compare_text import compare_text

        return compare_text(args)
    from pipeline.cli import tables
    from pipeline.report.collect import collect
    from pipeline.report.compare import compare_runs, compare_tables
    from pipeline.report.numbers import short

    store = arguments.open_store(args)
    first = collect(store, arguments.run_name(args.first))
    second = collect(store, arguments.run_name(args.second))
    if args.html is not None:
        from pipeline.report.compare_page import render_comparison

        args.html.write_text(render_comparison(first, second), encoding="utf-8")
        print(args.html)
        return 0
    if args.json:
        stages = [pair.to_json() for pair in compare_runs(first, second)]
        print(json.dumps({"a": first.name, "b": second.name, "stages": stages}, indent=1))
        return 0
    print(f"a: {first.name}\nb: {second.name}\n")
    for pair in compare_runs(first, second):
        print(f"{pair.name}: {_verdict(pair)}")
        for change in (*pair.settings, *pair.inputs, *pair.environment):
            print(f"    {change.name}: {short(change.first)} -> {short(change.second)}")
        rows = [
            (change.name, short(change.first), short(change.second), short(change.change))
            for change in pair.metrics
            if args.all or not change.name.startswith(("handover/", "num_"))
        ]
        if rows:
            tables.show(["metric", "a", "b", "b - a"], rows)
    for table in compare_tables(first, second):
        cells = [[short(cell) for cell in row] for row in table.rows]
        tables.show(table.columns, cells, title=table.title)
    return 0


def _verdict(pair: StagePair) -> str:
    if pair.first is None or pair.second is None:
        return f"only in {'b' if pair.first is None else 'a'}"
    if pair.same:
        return f"the same result, {pair.first.key[:12]}"
    states = f"{pair.first.state} and {pair.second.state}"
    finished = {pair.first.state, pair.second.state} <= {"ran", "reused"}
    return "differs" if finished else f"differs ({states})"
