"""Keeps the manifest of a run true while the run goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from pipeline.canonical import sealed
from pipeline.inputs import FromUser, Origin, RunFile, WiredStage
from pipeline.make import Made, NotMade
from pipeline.manifest import (
    CONFIG_NAME,
    LOCK_NAME,
    MANIFEST_NAME,
    GateStatus,
    RunManifest,
    SourceStatus,
    StageStatus,
    previous_manifest,
    relative_folder,
)
from pipeline.record import timestamp
from pipeline.store import Store


class Ledger:
    """The manifest of one run, written anew with each change. The run's lock is held.

    Args:
        run: the run file; it is copied beside the manifest, resolved too.
        stages: all stages, parents first.
        store: where the run's folder is.
    """

    def __init__(self, run: RunFile, stages: tuple[WiredStage, ...], store: Store) -> None:
        self._store = store
        self._folder = store.run_folder(run.config.name)
        before = previous_manifest(store, run.config.name)
        given = run.path.read_bytes()
        lock = sealed({"type": "run-config", "version": 1, "config": run.resolved()})
        now = timestamp()
        self.manifest = RunManifest(
            name=run.config.name,
            created=before.created if before else now,
            updated=now,
            generation=before.generation if before else 1,
            config_sha256=hashlib.sha256(given).hexdigest(),
            lock_sha256=hashlib.sha256(lock).hexdigest(),
            config_folder=relative_folder(run.path.parent, store),
            order=tuple(stage.name for stage in stages),
            stages={stage.name: _pending(stage, before) for stage in stages},
        )
        store.disk.make_folder(self._folder)
        store.disk.write(self._folder / CONFIG_NAME, given)
        store.disk.write(self._folder / LOCK_NAME, lock)
        self._write()

    def started(self, name: str, key: str, recipe: Mapping[str, Any]) -> None:
        """Note that a stage's child starts."""
        self._change(name, state="running", key=key, recipe=dict(recipe), message="", failure="")

    def complete(self, name: str, made: Made, gate: GateStatus | None) -> None:
        """Note that a stage is in the store, and whether its gate is open."""
        self._change(
            name,
            state="complete",
            key=made.key,
            recipe=dict(made.recipe),
            reused=made.reused,
            gate=gate,
            message="; ".join(gate.closed) if gate else _lender(self._store, made),
            failure="",
            metrics=made.record.metrics,
            seconds=made.record.seconds,
        )

    def not_made(self, name: str, answer: NotMade) -> None:
        """Note why a stage gave no result."""
        failure = answer.failure
        interrupted = failure.outcome == "interrupted"
        self._change(
            name,
            state="interrupted" if interrupted else "failed",
            key=answer.key,
            recipe=dict(answer.recipe),
            message="\n".join(map(str, failure.findings)),
            failure="" if interrupted else failure.outcome,
        )

    def blocked(self, name: str, reason: str) -> None:
        """Note that a stage cannot start, and why."""
        self._change(name, state="blocked", message=reason, failure="")

    def spent(self, times: Mapping[str, float]) -> None:
        """Note how long the parts of this command took, in seconds."""
        rounded = {part: round(seconds, 3) for part, seconds in times.items()}
        self.manifest = self.manifest.model_copy(update={"times": rounded})
        self._write()

    def _change(self, name: str, **changes: Any) -> None:
        status = self.manifest.stages[name].model_copy(update=changes)
        self.manifest = self.manifest.model_copy(update={"stages": {**self.manifest.stages, name: status}})
        self._write()

    def _write(self) -> None:
        changes = {"generation": self.manifest.generation + 1, "updated": timestamp()}
        self.manifest = self.manifest.model_copy(update=changes)
        self._store.disk.write(self._folder / MANIFEST_NAME, self.manifest.to_bytes())


def _lender(store: Store, made: Made) -> str:
    return "" if store.owns(made.key) else "lies in a shared store"


def _pending(stage: WiredStage, before: RunManifest | None) -> StageStatus:
    """A stage before its turn; key and recipe of the last time stay, to say later what changed."""
    last = before.stages.get(stage.name) if before else None
    return StageStatus(
        kind=stage.spec.kind,
        key=last.key if last else None,
        recipe=last.recipe if last else None,
        inputs={role: _source(origin) for role, origin in stage.inputs.items()},
    )


def _source(origin: Origin) -> SourceStatus:
    if isinstance(origin, FromUser):
        written = origin.written if not origin.written.startswith(("/", "~")) else origin.source
        return SourceStatus(written=written, fingerprint=origin.fingerprint)
    return SourceStatus(stage=origin.stage, output=origin.output)
