"""Makes one stage: takes its result from the store, or runs a child and publishes what it gave."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipeline.contract import Checkpoint
from pipeline.cost import with_attempts
from pipeline.display import Display
from pipeline.errors import ExitCode, Finding, StoreError, VerificationFailed
from pipeline.fingerprint import FileDigest, describe, stage_key
from pipeline.inputs import FromUser, Origin, WiredStage, origin_digest
from pipeline.launch import Listener, StopRequests, launch
from pipeline.locks import Holder, held
from pipeline.plan import input_fingerprints, recipe_of
from pipeline.record import (
    AttemptRecord,
    InputRecord,
    StageRecord,
    environment,
    reasons_for_other_bits,
    result_settings,
    seconds_between,
    timestamp,
)
from pipeline.store import METRICS_NAME, Store
from pipeline.tracking.trackers import Trackers
from pipeline.work import Failure, InputRequest, Request, Result, WorkFolder


class Launch(Protocol):
    """Starts a stage's child; tests pass one that stays in the process."""

    def __call__(
        self, work: WorkFolder, *, listen: Listener, stop: StopRequests, lock: Path
    ) -> Failure | None:
        """Run a work folder's request; None means that a result lies there."""


@dataclass(frozen=True, slots=True)
class Made:
    """A stage that is in the store."""

    record: StageRecord
    key: str
    recipe: Mapping[str, Any]
    reused: bool


@dataclass(frozen=True, slots=True)
class NotMade:
    """A stage whose child ended without a result."""

    failure: Failure
    key: str
    recipe: Mapping[str, Any]
    log: Path


@dataclass(slots=True)
class StageMaker:
    """Makes the stages of one run, one after another."""

    run_name: str
    store: Store
    display: Display
    trackers: Trackers
    stop: StopRequests
    launch: Launch = launch
    records: dict[str, StageRecord] = field(default_factory=dict)
    "Records of the stages made so far, by the name in this run."
    seconds: float = 0.0
    "Time of the attempts started here."

    def make(self, wired: WiredStage, on_start: Callable[[str, Mapping[str, Any]], None]) -> Made | NotMade:
        """Bring a stage whose parents are made into the store, whoever computes it.

        Args:
            wired: the stage.
            on_start: told key and recipe before a child starts.
        """
        fingerprints = input_fingerprints(wired, self.records)
        if fingerprints is None:
            raise ValueError(f"stage {wired.name} was asked for before its parents")
        recipe = recipe_of(wired, fingerprints, self.store.digests)
        key = stage_key(recipe)
        made = self._stored(wired, key, recipe)
        if made is None:
            with held(self._lock(f"key-{key}"), holder(self.run_name), waiting=self._waits(wired.name)):
                # While this process waited, another may have made it.
                made = self._stored(wired, key, recipe)
                if made is None:
                    on_start(key, recipe)
                    return self._run(wired, recipe, key)
        return made

    def take(self, wired: WiredStage) -> Made | None:
        """Take a stage from the store without making anything; None when it, or a parent, is not there."""
        fingerprints = input_fingerprints(wired, self.records)
        if fingerprints is None:
            return None
        recipe = recipe_of(wired, fingerprints, self.store.digests)
        return self._stored(wired, stage_key(recipe), recipe)

    def _stored(self, wired: WiredStage, key: str, recipe: Mapping[str, Any]) -> Made | None:
        """Take a whole result from the store; set a damaged one aside."""
        try:
            record = self.store.find(key)
        except VerificationFailed as error:
            self.display.say(f"{wired.name}: its stored result is damaged and is made again\n{error}")
            if self.store.owns(key):
                aside = self.store.quarantine(key)
                self.display.say(f"{wired.name}: the damaged one is kept in {aside}")
            return None
        if record is None:
            return None
        if self.store.work_folder(key).exists():
            self.store.discard_work(key)
        self.records[wired.name] = record
        return Made(record, key, recipe, reused=True)

    def _run(self, wired: WiredStage, recipe: Mapping[str, Any], key: str) -> Made | NotMade:
        """Run the stage's child and publish what it gave. The key's lock is held."""
        work = WorkFolder(self.store.work_folder(key))
        self.store.disk.make_folder(work.path)
        attempts = _with_crashes_noted(work.read_attempts())
        result = work.finished_before(key)
        if result is None:
            failure, attempts = self._attempt(wired, key, work, before=attempts)
            if failure is not None:
                interrupted = failure.outcome == "interrupted"
                self.trackers.stage_ended(None, status="interrupted" if interrupted else "failed")
                return NotMade(failure, key, recipe, work.log)
            result = work.read_result(key)
            if result is None:
                raise StoreError("the stage's result cannot be read", where=str(work.path), code="damaged")
        record = self.store.commit(self._record(wired, recipe, result, attempts=attempts))
        self.trackers.stage_ended(record)
        self.records[wired.name] = record
        return Made(record, key, recipe, reused=False)

    def _attempt(
        self, wired: WiredStage, key: str, work: WorkFolder, *, before: tuple[AttemptRecord, ...]
    ) -> tuple[Failure | None, tuple[AttemptRecord, ...]]:
        """Run the child once and write down when and how."""
        disk = self.store.disk
        attempt = AttemptRecord(number=len(before) + 1, started=timestamp(), environment=environment())
        work.write_attempts(disk, (*before, attempt))
        work.write_request(disk, self._request(wired, key))
        self._tell_trackers(wired, key, work)

        def listen(step: int, total: int, text: str) -> None:
            self.display.progress(wired.name, step, total, text=text)

        failure = self.launch(work, listen=listen, stop=self.stop, lock=self._lock(f"worker-{key}"))
        if failure is None:
            failure = self._changed_under_way(wired)
            if failure is not None:
                # Checkpoints and outputs saw the edited file: the old one must not find them.
                disk.remove(work.path / "result.json")
                disk.remove_tree(work.scratch)
                disk.remove_tree(work.output)
        outcome = failure.outcome if failure else "complete"
        detail = failure.findings[0].message if failure else ""
        changes = {"ended": timestamp(), "outcome": outcome, "detail": detail}
        attempts = (*before, attempt.model_copy(update=changes))
        self.seconds += seconds_between(attempt.started, str(changes["ended"]))
        work.write_attempts(disk, attempts)
        return failure, attempts

    def _changed_under_way(self, wired: WiredStage) -> Failure | None:
        """Refuse a result whose inputs were edited while it was made: its key would not be true."""
        findings = []
        for role, origin in wired.inputs.items():
            if not isinstance(origin, FromUser) or origin.path is None or origin.model is not None:
                continue
            if origin_digest(origin.path, origin.kind, self.store.digests) != origin.fingerprint:
                message = f"input {role!r} ({origin.written}) changed while the stage ran"
                hint = "run the same command; the stage is made anew from the file as it is now"
                findings.append(Finding(message, str(origin.path), hint, "input-changed"))
        return Failure("user-error", tuple(findings), ExitCode.USER_ERROR) if findings else None

    def _request(self, wired: WiredStage, key: str) -> Request:
        inputs = {role: InputRequest.of(self._checkpoint(origin)) for role, origin in wired.inputs.items()}
        config = wired.config.model_dump(mode="json")
        cache = str(self.store.shared_cache.resolve())
        return Request(
            name=wired.name,
            kind=wired.spec.kind,
            key=key,
            config=config,
            inputs=inputs,
            cache=cache,
            accelerate=wired.accelerate,
        )

    def _checkpoint(self, origin: Origin) -> Checkpoint:
        if isinstance(origin, FromUser):
            if origin.path is None or origin.fingerprint is None:
                raise ValueError(f"{origin.source} was not fetched")
            return Checkpoint(origin.kind, origin.path, origin.fingerprint, source=origin.source)
        return self.store.checkpoint(self.records[origin.stage], origin.output)

    def _tell_trackers(self, wired: WiredStage, key: str, work: WorkFolder) -> None:
        parents = {role: self._origin_name(origin) for role, origin in wired.inputs.items()}
        settings = wired.config.model_dump(mode="json")
        self.trackers.stage_started(
            wired.name, kind=wired.spec.kind, key=key, config=settings, parents=parents
        )
        self.trackers.tail(work.metrics)

    def _origin_name(self, origin: Origin) -> str:
        """Return what dashboards link: the producer's key, or the digest of the user's input."""
        if isinstance(origin, FromUser):
            return origin.fingerprint or ""
        return self.records[origin.stage].key

    def _record(
        self,
        wired: WiredStage,
        recipe: Mapping[str, Any],
        result: Result,
        *,
        attempts: tuple[AttemptRecord, ...],
    ) -> StageRecord:
        """Write down where everything came from; metrics.jsonl joins the outputs."""
        work = WorkFolder(self.store.work_folder(result.key))
        ended = timestamp()
        spans = [seconds_between(a.started, a.ended) for a in attempts if a.ended]
        seen = bool(attempts and attempts[-1].ended)
        cost = result.cost
        if cost is not None:
            earlier, last = (sum(spans[:-1]), spans[-1]) if seen else (sum(spans), None)
            cost = with_attempts(cost, earlier=earlier, last=last)
        # Of an attempt whose parent died before its end, what the child measured counts.
        unseen = sum(result.cost.parts.values()) if result.cost is not None and not seen else 0.0
        return StageRecord(
            key=result.key,
            stage=wired.name,
            kind=wired.spec.kind,
            recipe=dict(recipe),
            settings=result_settings(wired.config),
            inputs={
                role: self._input_record(origin).model_copy(update={"rows": result.rows.get(role)})
                for role, origin in wired.inputs.items()
            },
            outputs=result.outputs,
            files=self._metrics_file(work),
            metrics=result.metrics,
            notes=(*result.notes, *reasons_for_other_bits(result.environment, attempts)),
            environment=result.environment,
            attempts=attempts,
            started=attempts[0].started if attempts else ended,
            ended=ended,
            cost=cost,
            seconds=round(sum(spans) + unseen, 3),
        )

    def _metrics_file(self, work: WorkFolder) -> tuple[FileDigest, ...]:
        if not work.metrics.exists():
            return ()
        target = work.output / METRICS_NAME
        self.store.disk.remove(target)
        self.store.disk.copy(work.metrics, target)
        self.store.disk.protect(target)
        return (describe(work.output, METRICS_NAME),)

    def _input_record(self, origin: Origin) -> InputRecord:
        if isinstance(origin, FromUser):
            return InputRecord(kind=origin.kind, fingerprint=origin.fingerprint or "", source=origin.source)
        record = self.records[origin.stage]
        return InputRecord(
            kind=origin.kind,
            fingerprint=record.outputs[origin.output].digest,
            producer=record.stage,
            producer_key=record.key,
            source=f"{record.stage}.{origin.output}",
        )

    def _waits(self, name: str) -> Callable[[str], None]:
        return lambda other: self.display.say(f"{name}: waiting, it is being made by {other}")

    def _lock(self, name: str) -> Path:
        return self.store.lock_path(name)


def holder(run_name: str) -> Holder:
    """Return who this process is, for the locks it takes."""
    return Holder(os.getpid(), f"triptych run of {run_name!r}", timestamp())


def _with_crashes_noted(attempts: tuple[AttemptRecord, ...]) -> tuple[AttemptRecord, ...]:
    """An attempt without an end did not live to write one."""
    return tuple(
        attempt.model_copy(update={"outcome": "killed", "detail": "the run itself ended"})
        if attempt.outcome == "running"
        else attempt
        for attempt in attempts
    )
