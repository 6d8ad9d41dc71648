"""The folder in which one stage works: what it is asked, what it answers, how often it was tried."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from pipeline.canonical import parse, read_bounded, read_sealed, sealed
from pipeline.config.accelerate import AccelerateConfig
from pipeline.config.strict import StrictModel
from pipeline.contract import ArtifactKind, Checkpoint
from pipeline.cost import CostRecord
from pipeline.disk import Disk
from pipeline.errors import ExitCode, Finding, StoreError
from pipeline.record import AttemptRecord, EnvironmentRecord, Outcome, OutputRecord, RowsRecord
from pipeline.seal import damages

RESULT_TYPE = "stage-result"
ATTEMPTS_TYPE = "stage-attempts"


class InputRequest(StrictModel):
    """An input as the child needs it, path included; never committed."""

    kind: ArtifactKind
    path: str
    fingerprint: str
    producer: str | None = None
    source: str = ""

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> InputRequest:
        """Describe a checkpoint."""
        return cls(
            kind=checkpoint.kind,
            path=str(checkpoint.path),
            fingerprint=checkpoint.fingerprint,
            producer=checkpoint.producer,
            source=checkpoint.source,
        )

    def checkpoint(self) -> Checkpoint:
        """Return what the stage receives."""
        return Checkpoint(self.kind, Path(self.path), self.fingerprint, self.producer, self.source)


class Request(StrictModel):
    """What the child is asked to do."""

    name: str
    kind: str
    key: str
    config: dict[str, Any]
    inputs: dict[str, InputRequest]
    cache: str | None = None
    "Folder of results that the store's stages share; never committed."
    accelerate: AccelerateConfig = AccelerateConfig()
    "The processes that do it; never committed."


class Result(StrictModel):
    """What the child did: sealed outputs, ready to be published."""

    type: Literal["stage-result"] = "stage-result"
    version: Literal[1] = 1
    key: str
    outputs: dict[str, OutputRecord]
    metrics: dict[str, float | str]
    notes: tuple[str, ...]
    environment: EnvironmentRecord
    rows: dict[str, RowsRecord] = Field(default_factory=dict)
    "Rows of input files, by role."
    cost: CostRecord | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a child ended without a result."""

    outcome: Outcome
    findings: tuple[Finding, ...]
    exit_code: int = ExitCode.STAGE_FAILED

    def to_bytes(self) -> bytes:
        """Return failure.json's bytes."""
        findings = [
            {"message": finding.message, "where": finding.where, "hint": finding.hint, "code": finding.code}
            for finding in self.findings
        ]
        document = {"outcome": self.outcome, "exit_code": int(self.exit_code), "findings": findings}
        return json.dumps(document, indent=1, ensure_ascii=False).encode()


@dataclass(frozen=True, slots=True)
class WorkFolder:
    """Paths and small documents of a stage in progress. One process at a time, under the key's lock."""

    path: Path

    @property
    def output(self) -> Path:
        """What the stage writes and what one rename publishes."""
        return self.path / "output"

    @property
    def scratch(self) -> Path:
        """Checkpoints and caches; kept from attempt to attempt."""
        return self.path / "scratch"

    @property
    def metrics(self) -> Path:
        """metrics.jsonl, the one source of metrics."""
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """Everything that the child printed, attempt after attempt."""
        return self.path / "log.txt"

    @property
    def request(self) -> Path:
        """request.json, what the child is asked."""
        return self.path / "request.json"

    def write_request(self, disk: Disk, request: Request) -> None:
        """Write what the child is asked, and take away the answers of an attempt before it."""
        for name in ("failure.json", "result.json"):
            disk.remove(self.path / name)
        disk.write(self.request, request.model_dump_json(indent=1).encode())

    def read_request(self) -> Request:
        """Read what this child is asked.

        Raises:
            StoreError: the file is missing or is no request.
        """
        try:
            return Request.model_validate(parse(read_bounded(self.request), where=str(self.request)))
        except ValidationError as error:
            raise StoreError(f"not a request: {error}", where=str(self.request), code="damaged") from error

    def write_result(self, disk: Disk, result: Result) -> None:
        """Write the child's answer, durably: from here on the work need not be done again."""
        disk.write(self.path / "result.json", sealed(result.model_dump(mode="json")))

    def read_result(self, key: str) -> Result | None:
        """Return the child's answer when there is one for this key."""
        try:
            document = read_sealed(self.path / "result.json", type_name=RESULT_TYPE, version=1)
            result = Result.model_validate(
                {name: value for name, value in document.items() if name != "self"}
            )
        except (StoreError, ValidationError):
            return None
        return result if result.key == key else None

    def finished_before(self, key: str) -> Result | None:
        """Return the answer of an attempt whose parent died before it could publish it."""
        result = self.read_result(key)
        return result if result is not None and not damages(self.output, result.outputs) else None

    def read_failure(self) -> Failure | None:
        """Return why the child gave up, when it said so."""
        path = self.path / "failure.json"
        if not path.exists():
            return None
        try:
            document = parse(read_bounded(path), where=str(path))
            findings = tuple(Finding(**finding) for finding in document["findings"])
            return Failure(document["outcome"], findings, int(document["exit_code"]))
        except (StoreError, KeyError, TypeError, ValueError):
            return None

    def read_attempts(self) -> tuple[AttemptRecord, ...]:
        """Return all attempts so far; an unreadable list counts as none."""
        try:
            document = read_sealed(self.path / "attempts.json", type_name=ATTEMPTS_TYPE, version=1)
            return tuple(AttemptRecord.model_validate(attempt) for attempt in document["attempts"])
        except (StoreError, ValidationError, KeyError, TypeError):
            return ()

    def write_attempts(self, disk: Disk, attempts: tuple[AttemptRecord, ...]) -> None:
        """Replace the list of attempts."""
        listed = [attempt.model_dump(mode="json") for attempt in attempts]
        document: Mapping[str, Any] = {"type": ATTEMPTS_TYPE, "version": 1, "attempts": listed}
        disk.write(self.path / "attempts.json", sealed(document))
