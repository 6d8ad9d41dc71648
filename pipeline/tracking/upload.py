"""Sends a finished run to a dashboard from the store alone; sending it again adds nothing twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from pipeline.config.run import TrackingConfig
from pipeline.errors import StoreError, UserError
from pipeline.manifest import LOCK_NAME, RunManifest, StageStatus, read_manifest
from pipeline.record import StageRecord
from pipeline.store import METRICS_NAME, Store
from pipeline.tracking.lines import read_lines, without_repeats
from pipeline.tracking.stage import TrackedStage, Tracker, make

BATCH_LINES = 1000
EXTRAS = {
    "wandb": "wandb",
    **{name: f"triptych-rlhf[{name}]" for name in ("tensorboard", "mlflow", "trackio")},
}


def upload(
    store: Store, name: str, *, tracker: Tracker, progress: Callable[[str, int], None] | None = None
) -> int:
    """Send every complete stage of a run to a tracker.

    Args:
        store: where the run is.
        name: its name.
        tracker: where it goes.
        progress: told each stage and how many lines of metrics it had.

    Returns:
        How many stages were sent.

    Raises:
        StoreError: there is no such run, or a record is damaged.
        UserError: the tracker refused.
    """
    manifest = read_manifest(store, name)
    sent = 0
    for stage in manifest.order:
        status = manifest.stages[stage]
        if status.state != "complete" or status.key is None:
            continue
        record = store.load(status.key)
        tracked = _tracked(manifest, stage, status, record)
        lines = without_repeats(read_lines(store.stage_folder(record.key) / METRICS_NAME))
        try:
            tracker.start(tracked)
            for first in range(0, len(lines), BATCH_LINES):
                tracker.log(lines[first : first + BATCH_LINES])
            tracker.finish("complete", {"metrics": dict(record.metrics)})
        except Exception as error:
            reason = " ".join(str(error).split())[:400]
            raise UserError(
                f"{tracker.name} did not take stage {stage}: {reason}",
                hint="run the same command again; nothing is sent twice",
                code="tracker",
            ) from error
        sent += 1
        if progress is not None:
            progress(stage, len(lines))
    return sent


def tracker_for(store: Store, name: str, to: str, *, address: str | None = None) -> Tracker:
    """Return a tracker by its name, set up as the run file says, but switched on.

    Raises:
        UserError: its package is not installed.
    """
    tracking = _tracking(store.run_folder(name) / LOCK_NAME)
    if tracking.wandb == "off":
        tracking = tracking.model_copy(update={"wandb": "auto"})
    if address is not None:
        tracking = tracking.model_copy(update={"mlflow": address})
    try:
        return make(to, tracking=tracking, folder=store.run_folder(name).absolute())
    except ModuleNotFoundError as error:
        raise UserError(
            f"the package {error.name!r} is not installed",
            hint=f"pip install '{EXTRAS[to]}'",
            code="missing-package",
        ) from error


def _tracking(lock: Path) -> TrackingConfig:
    try:
        return TrackingConfig.model_validate(
            json.loads(lock.read_text(encoding="utf-8"))["config"]["tracking"]
        )
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise StoreError(
            "the run's resolved config cannot be read", where=str(lock), code="damaged"
        ) from error


def _tracked(manifest: RunManifest, name: str, status: StageStatus, record: StageRecord) -> TrackedStage:
    parents = {role: item.producer_key or item.fingerprint for role, item in record.inputs.items()}
    return TrackedStage(manifest.name, name, status.kind, record.key, record.settings, parents)
