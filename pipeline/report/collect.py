"""Gathers what the report shows of a run from its manifest, records and metrics. Writes nothing."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.config.load import load_run
from pipeline.contract import ArtifactKind
from pipeline.cost import DEFAULT_CURRENCY
from pipeline.errors import StoreError, UserError
from pipeline.manifest import CONFIG_NAME, LOCK_NAME, RunManifest, StageStatus, read_manifest
from pipeline.record import StageRecord
from pipeline.report.artifacts import read_data_report, read_samples, read_tables
from pipeline.report.view import (
    AlarmView,
    DataView,
    InputView,
    OutputView,
    RunView,
    SamplesView,
    StageView,
    State,
    TableView,
)
from pipeline.store import METRICS_NAME, Store
from pipeline.tracking.lines import Series, read_series
from pipeline.work import WorkFolder

ALARM = "alarm/"
MAX_CONFIG_CHARACTERS = 60_000
STATES: dict[str, State] = {
    "pending": "waiting",
    "running": "running",
    "complete": "ran",
    "failed": "failed",
    "interrupted": "interrupted",
    "blocked": "blocked",
}


def collect(store: Store, name: str, *, live: bool = False) -> RunView:
    """Return everything the report shows of a run.

    Args:
        store: where the run is.
        name: its name.
        live: the run goes on.

    Raises:
        StoreError: there is no such run, or its manifest was changed.
    """
    manifest = read_manifest(store, name)
    records = {stage: _record(store, status) for stage, status in manifest.stages.items()}
    stages = [_stage(store, stage, manifest.stages[stage], records[stage]) for stage in manifest.order]
    tables, samples, data = _artifacts(store, manifest, records)
    folder = store.run_folder(name)
    return RunView(
        name=name,
        made=day_and_time(datetime.now(UTC)),
        stages=stages,
        command=_command(folder),
        config_text=_text(folder / CONFIG_NAME),
        resolved_text=_resolved(folder),
        tables=tables,
        samples=samples,
        data=data,
        finished="" if live else day_and_time(datetime.fromisoformat(manifest.updated)),
        seconds=sum(status.seconds for status in manifest.stages.values() if not status.reused),
        updated=manifest.updated,
        price_per_hour=_price(folder),
        currency=_currency(folder),
        times=manifest.times,
        live=live,
    )


def day_and_time(moment: datetime) -> str:
    """Return a moment as a reader expects it, in UTC."""
    moment = moment.astimezone(UTC)
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def alarms_of(series: Mapping[str, Series]) -> list[AlarmView]:
    """Return what the stage's monitor found wrong: metrics alarm/NAME that were ever 1."""
    found = []
    for name, curve in series.items():
        steps = [step for step, value in zip(curve.steps, curve.values, strict=True) if value > 0]
        if name.startswith(ALARM) and steps:
            found.append(AlarmView(name.removeprefix(ALARM), steps[0], len(steps)))
    return sorted(found, key=lambda alarm: alarm.step)


def joined(data: list[DataView]) -> list[DataView]:
    """Show what several stages found alike in the same file once, under all their names."""
    groups: list[list[DataView]] = []
    for item in data:
        alike = [group for group in groups if replace(item, stage=group[0].stage) == group[0]]
        if alike:
            alike[0].append(item)
        else:
            groups.append([item])
    return [replace(group[0], stage=", ".join(item.stage for item in group)) for group in groups]


def metrics_file(store: Store, status: StageStatus) -> Path | None:
    """Return where a stage's metrics are: with its result, or where it works now."""
    if status.key is None:
        return None
    published = store.stage_folder(status.key) / METRICS_NAME
    return published if published.is_file() else WorkFolder(store.work_folder(status.key)).metrics


def _record(store: Store, status: StageStatus) -> StageRecord | str | None:
    """Return a complete stage's record, a sentence when it cannot be read, else None."""
    if status.state != "complete" or status.key is None:
        return None
    try:
        return store.load(status.key)
    except StoreError as error:
        return str(error)


def _stage(store: Store, name: str, status: StageStatus, record: StageRecord | str | None) -> StageView:
    if isinstance(record, StageRecord):
        return _complete(store, name, status, record)
    inputs = [
        InputView(role, "", item.written or item.stage or "", item.fingerprint or "", item.stage)
        for role, item in status.inputs.items()
    ]
    series = _series(store, status) if status.state != "pending" else {}
    return StageView(
        name=name,
        kind=status.kind,
        state="damaged" if record else STATES[status.state],
        reason=record or status.message,
        key=status.key or "",
        inputs=inputs,
        series=series,
        alarms=alarms_of(series),
    )


def _complete(store: Store, name: str, status: StageStatus, record: StageRecord) -> StageView:
    series = _series(store, status)
    inputs = []
    for role, item in record.inputs.items():
        here = status.inputs.get(role)
        inputs.append(InputView(role, item.kind, item.source, item.fingerprint, here.stage if here else None))
    return StageView(
        name=name,
        kind=status.kind,
        state="reused" if status.reused else "ran",
        reason=_reason(status),
        key=record.key,
        seconds=record.seconds,
        inputs=inputs,
        outputs=[
            OutputView(role, item.kind, item.digest, len(item.files), sum(file.size for file in item.files))
            for role, item in record.outputs.items()
        ],
        metrics={metric: float(value) for metric, value in record.metrics.items()},
        settings=_flat(record.settings),
        notes=record.notes,
        attempts=[
            f"{attempt.started[:16].replace('T', ' ')} UTC: {attempt.outcome}"
            + (f" ({attempt.detail})" if attempt.detail else "")
            for attempt in record.attempts
        ],
        environment={
            "device": record.environment.device,
            "system": f"{record.environment.system} {record.environment.machine}",
            "python": record.environment.python,
            **record.environment.computing,
            **record.environment.packages,
            **({} if record.environment.threads is None else {"threads": str(record.environment.threads)}),
        },
        series=series,
        cost=record.cost,
        gate_bounds=status.gate.bounds if status.gate else {},
        gate_closed=status.gate.closed if status.gate else (),
        alarms=alarms_of(series),
    )


def _reason(status: StageStatus) -> str:
    if status.gate is not None and status.gate.closed:
        return "gate closed: " + "; ".join(status.gate.closed)
    return "same settings and inputs as before" if status.reused else ""


def _series(store: Store, status: StageStatus) -> Mapping[str, Series]:
    path = metrics_file(store, status)
    return read_series(path) if path is not None else {}


def _artifacts(
    store: Store, manifest: RunManifest, records: Mapping[str, StageRecord | str | None]
) -> tuple[list[TableView], list[SamplesView], list[DataView]]:
    tables: list[TableView] = []
    samples: list[SamplesView] = []
    data: list[DataView] = []
    for stage in manifest.order:
        record = records[stage]
        if not isinstance(record, StageRecord):
            continue
        for output in record.outputs.values():
            place = store.stage_folder(record.key) / output.path
            if output.kind == ArtifactKind.TABLE:
                tables += read_tables(place, stage)[::-1]
            elif output.kind == ArtifactKind.SAMPLES and (shown := read_samples(place, stage)):
                samples.append(shown)
            elif output.kind == ArtifactKind.DATA_REPORT and (found := read_data_report(place, stage)):
                data.append(found)
    data = joined(data)
    # The last stage's table is the result; those before it lead there.
    return tables[::-1], samples[::-1], data


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _command(folder: Path) -> str:
    """Return the command that makes the run again: the run file, and what was overridden."""
    resolved = _lock(folder)
    try:
        given = load_run(folder / CONFIG_NAME).resolved()
    except UserError:
        # Without its overrides, or with today's cards, the file may not load.
        return f"triptych run {CONFIG_NAME}"
    before, after = _flat(given), _flat(resolved)
    changed = {key: value for key, value in after.items() if key not in before or before[key] != value}
    words = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in changed.items()]
    return " ".join(["triptych run", CONFIG_NAME, *map(shlex.quote, words)])


def _resolved(folder: Path) -> str:
    resolved = _lock(folder)
    text = json.dumps(resolved, indent=2, ensure_ascii=False) if resolved else ""
    return text[:MAX_CONFIG_CHARACTERS]


def _price(folder: Path) -> float | None:
    price = _lock(folder).get("price_per_hour")
    return float(price) if isinstance(price, int | float) and not isinstance(price, bool) else None


def _currency(folder: Path) -> str:
    currency = _lock(folder).get("currency")
    return currency if isinstance(currency, str) else DEFAULT_CURRENCY


def _lock(folder: Path) -> dict[str, Any]:
    """Return the run as resolved, or nothing when that file is damaged."""
    try:
        config = json.loads((folder / LOCK_NAME).read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return config if isinstance(config, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")[:MAX_CONFIG_CHARACTERS]
    except (OSError, ValueError):
        return ""
