"""The manifest of a run: which stage is where, in what state, and why. A view over the records."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from pipeline.canonical import Migrations, read_bounded, read_sealed, sealed
from pipeline.config.strict import StrictModel
from pipeline.errors import Finding, StoreError
from pipeline.store import Store

MANIFEST_TYPE = "run-manifest"
MANIFEST_VERSION = 2
MIGRATIONS: Migrations = {1: lambda document: document}
"Version 2 added the parts of a command's time, empty in older ones."
MANIFEST_NAME = "manifest.json"
CONFIG_NAME = "config.yaml"
LOCK_NAME = "config.lock.json"

State = Literal["pending", "running", "complete", "failed", "interrupted", "blocked"]


class GateStatus(StrictModel):
    """Whether a stage's metrics met the bounds that its children wait for."""

    bounds: dict[str, float]
    closed: tuple[str, ...] = ()
    "One sentence for each bound that was missed; empty means open."


class SourceStatus(StrictModel):
    """Where an input of a run comes from, for readers and for `verify`."""

    stage: str | None = None
    "Stage of this run that gives it."
    output: str | None = None
    written: str = ""
    "As the run file has it."
    fingerprint: str | None = None
    "Content digest at the time of the run."


class StageStatus(StrictModel):
    """One stage of a run."""

    kind: str
    state: State = "pending"
    key: str | None = None
    recipe: dict[str, Any] | None = None
    reused: bool = False
    "True when the result was there before this run asked for it."
    inputs: dict[str, SourceStatus] = Field(default_factory=dict)
    gate: GateStatus | None = None
    message: str = ""
    "Why it failed, waits or is blocked."
    failure: str = ""
    "Kind of failure: user-error, out-of-memory, out-of-disk, killed, bug."
    metrics: dict[str, float | str] = Field(default_factory=dict)
    seconds: float = 0.0


class RunManifest(StrictModel):
    """All stages of a run, parents first."""

    type: Literal["run-manifest"] = "run-manifest"
    version: Literal[2] = 2
    name: str
    created: str
    updated: str
    generation: int = Field(ge=1)
    "Grows by one with each write."
    config_sha256: str
    lock_sha256: str
    config_folder: str = ""
    "Folder of the run file, relative to the store; empty when there is no such path."
    order: tuple[str, ...]
    stages: dict[str, StageStatus]
    times: dict[str, float] = Field(default_factory=dict)
    """Seconds of the last command by part: `start` of the program, `plan`, `stages` that it made, `publish`
    between them, `report`. What is missing to its wall time is the end of the process."""

    def to_bytes(self) -> bytes:
        """Return manifest.json's bytes."""
        return sealed(self.model_dump(mode="json"))


def read_manifest(store: Store, name: str) -> RunManifest:
    """Read a run's manifest.

    Raises:
        StoreError: there is no such run, or the manifest was changed.
    """
    path = store.run_folder(name) / MANIFEST_NAME
    if not path.is_file():
        known = ", ".join(run_names(store)) or "none"
        raise StoreError(
            f"there is no run {name!r} in this store",
            where=str(store.root),
            hint=f"runs here: {known}",
            code="unknown-run",
        )
    document = read_sealed(path, type_name=MANIFEST_TYPE, version=MANIFEST_VERSION, migrations=MIGRATIONS)
    try:
        return RunManifest.model_validate({key: value for key, value in document.items() if key != "self"})
    except ValidationError as error:
        raise StoreError(f"not a valid manifest: {error}", where=str(path), code="damaged") from error


def previous_manifest(store: Store, name: str) -> RunManifest | None:
    """Return a run's manifest when there is a readable one; it is a view and can be made again."""
    try:
        return read_manifest(store, name)
    except StoreError:
        return None


def run_names(store: Store) -> list[str]:
    """Return the names of all runs of a store."""
    return sorted(path.parent.name for path in (store.root / "runs").glob(f"*/{MANIFEST_NAME}"))


def config_damages(store: Store, manifest: RunManifest) -> list[Finding]:
    """Return what differs between a run's stored config files and its manifest."""
    folder = store.run_folder(manifest.name)
    wanted = {CONFIG_NAME: manifest.config_sha256, LOCK_NAME: manifest.lock_sha256}
    findings: list[Finding] = []
    for name, digest in wanted.items():
        try:
            found = hashlib.sha256(read_bounded(folder / name)).hexdigest()
        except StoreError as error:
            findings += error.findings
            continue
        if found != digest:
            findings.append(Finding(f"{name} changed since the run", str(folder / name), code="damaged"))
    return findings


def relative_folder(folder: Path, store: Store) -> str:
    """Return a folder relative to the store, or nothing when only an absolute path would do."""
    try:
        return Path(os.path.relpath(folder.resolve(), store.root.resolve())).as_posix()
    except ValueError:
        return ""


def gate_status(bounds: Mapping[str, float], metrics: Mapping[str, float | str]) -> GateStatus | None:
    """Compare final metrics with a stage's gate; None when it has no gate."""
    if not bounds:
        return None
    closed = []
    for bound, limit in bounds.items():
        side, _, metric = bound.partition("_")
        value = float(metrics[metric]) if metric in metrics else float("nan")
        # A metric that is absent or NaN meets no bound.
        met = value >= limit if side == "min" else value <= limit
        if not met:
            closed.append(f"{metric} is {value:.6g}, and the gate wants {bound}: {limit:g}")
    return GateStatus(bounds=dict(bounds), closed=tuple(closed))
