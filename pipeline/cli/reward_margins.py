"""`triptych reward margins`: what each member of a reward model says of comparisons nobody judged yet."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.cli import arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", help="RUN, RUN:STAGE or a run file; without a stage, its only reward stage")
    parser.add_argument("--on", type=Path, required=True, metavar="FILE", help="comparisons of two responses")
    parser.add_argument("--mapping", type=Path, help="YAML that says how to read FILE")
    parser.add_argument("--base", type=Path, help="folder of the base, when no stage of the store made it")
    parser.add_argument(
        "--out", type=Path, default=Path("margins.jsonl"), help="JSON Lines for triptych data select"
    )
    arguments.add_store(parser)


def main(args: argparse.Namespace) -> int:
    """Write {cmp_id, margins} lines."""
    from pipeline.cli.reward_card import base_of, model_of, reward_record
    from reward.preferences.mapping import load_mapping
    from reward.preferences.writers import json_line, read_records, write_text
    from stages.reward import RewardConfig
    from stages.trainers.reward_measure import margins_of

    store = arguments.open_store(args)
    record = reward_record(store, args.run)
    records, _ = read_records(args.on, load_mapping(args.mapping))
    config = RewardConfig.model_validate(record.settings)
    margins = margins_of(base_of(store, record, args.base), model_of(store, record), config, records)
    rows = [{"cmp_id": name, "margins": values} for name, values in margins.items()]
    write_text(args.out, "".join(map(json_line, rows)))
    members = len(rows[0]["margins"])
    print(f"{len(rows)} of {len(records)} comparisons, {members} members each, written to {args.out}")
    if members < 2:
        print("one member cannot disagree with itself: train with `ensemble: 4` to select by disagreement")
    return 0
