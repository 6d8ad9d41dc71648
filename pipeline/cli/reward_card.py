"""`triptych reward card`: the stored report card, or a new one on another preference file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli import arguments
from pipeline.contract import ArtifactKind, Checkpoint
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.record import StageRecord
    from pipeline.store import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "run", help="RUN, RUN:STAGE or a run file; without a stage, the run's only reward stage"
    )
    parser.add_argument(
        "--on", type=Path, metavar="FILE", help="measure on the pairs of this preference file"
    )
    parser.add_argument("--mapping", type=Path, help="YAML that says how to read FILE")
    parser.add_argument("--base", type=Path, help="folder of the base, when no stage of the store made it")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments.add_store(parser)


def main(args: argparse.Namespace) -> int:
    """Print the card."""
    from pipeline.cli import tables
    from reward.card_table import card_table

    store = arguments.open_store(args)
    record = reward_record(store, args.run)
    card = stored_card(store, record) if args.on is None else _measured(store, record, args)
    if args.json:
        print(json.dumps(card, indent=1, sort_keys=True))
        return 0
    title = f"{record.stage} on {args.on.name if args.on else 'its held-out pairs'}"
    table = card_table(card, title=title)
    tables.show(table["columns"], table["rows"], title=title, notes=table["notes"])
    return 0


def reward_record(store: Store, text: str) -> StageRecord:
    """Return the record of the reward stage that a person names.

    Raises:
        UserError: the run has no such stage, or several and none was named.
    """
    from pipeline.manifest import read_manifest

    run, stage = arguments.split_stage(text)
    stages = read_manifest(store, run).stages
    found = {
        name: record
        for name, status in stages.items()
        if status.key
        and stage in (None, name)
        and (record := store.find(status.key))
        and any(output.kind == ArtifactKind.REWARD_MODEL for output in record.outputs.values())
    }
    if len(found) == 1:
        return next(iter(found.values()))
    what = f"stage {stage!r} of run {run!r} has no finished reward model" if stage else None
    count = "several reward models" if found else "no finished reward model"
    hint = f"{run}:{next(iter(found))}" if found else f"triptych status {run}"
    raise UserError(what or f"run {run!r} has {count}", hint=hint, code="no-reward-model")


def stored_card(store: Store, record: StageRecord) -> dict[str, Any]:
    """Read the card that lies beside a reward model's weights.

    Raises:
        UserError: the model has none.
    """
    path = store.checkpoint(record, _role(record)).path / "card.json"
    if not path.is_file():
        hint = "measure it: --on FILE"
        raise UserError(f"{record.stage} has no report card", where=str(path), hint=hint, code="no-card")
    card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return card


def _measured(store: Store, record: StageRecord, args: argparse.Namespace) -> dict[str, Any]:
    from stages.reward import RewardConfig

    base, model = base_of(store, record, args.base), model_of(store, record)
    if record.kind == "reward_encoder":
        from stages.reward_encoder import EncoderRewardConfig
        from stages.trainers.reward_encoder import measure_encoder

        settings = EncoderRewardConfig.model_validate(record.settings)
        return measure_encoder(base, model, settings, args.on, mapping=args.mapping)
    from stages.trainers.reward_measure import measure_reward_model

    config = RewardConfig.model_validate(record.settings)
    return measure_reward_model(base, model, config, args.on, mapping=args.mapping)


def model_of(store: Store, record: StageRecord) -> Checkpoint:
    """Return the reward model that a stage gave."""
    return store.checkpoint(record, _role(record))


def _role(record: StageRecord) -> str:
    return next(role for role, out in record.outputs.items() if out.kind == ArtifactKind.REWARD_MODEL)


def base_of(store: Store, record: StageRecord, given: Path | None) -> Checkpoint:
    """Return the base that the reward model belongs to.

    Raises:
        UserError: a person gave it to the run, and must name it again.
    """
    held = record.inputs["base"]
    if given is not None:
        return Checkpoint(ArtifactKind.FULL_MODEL, given, held.fingerprint, source=held.source)
    producer = store.find(held.producer_key) if held.producer_key else None
    if producer is not None:
        for role, output in producer.outputs.items():
            if output.digest == held.fingerprint:
                return store.checkpoint(producer, role)
    raise UserError(
        f"the base {held.source!r} is not in this store", hint="--base FOLDER", code="missing-base"
    )
