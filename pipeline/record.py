"""StageRecord: what one finished stage was made from, what it gave, and where it ran."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from pipeline.canonical import Migrations, read_sealed, sealed
from pipeline.config.strict import StrictModel
from pipeline.contract import ArtifactKind
from pipeline.cost import CostRecord
from pipeline.errors import StoreError
from pipeline.fingerprint import FileDigest, stage_key, tree_digest
from pipeline.paths import check_distinct, check_relative, is_digest

RECORD_TYPE = "stage-record"
RECORD_VERSION = 3
MIGRATIONS: Migrations = {1: lambda document: document, 2: lambda document: document}
"""Version -> function that brings a record of it to the next. Files are never rewritten.

Version 2 added rows of inputs, threads, and the environment of each attempt, all optional. Version 3
added the parts of a stage's time, empty in older ones.
"""
PACKAGES = (
    *("triptych-rlhf", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes"),
    *("safetensors", "tokenizers", "huggingface-hub", "numpy", "pydantic"),
)

Outcome = Literal[
    "running",
    "complete",
    "failed",
    "user-error",
    "interrupted",
    "out-of-memory",
    "out-of-disk",
    "killed",
    "bug",
]


class RowsRecord(StrictModel):
    """What a stage made of the rows of one input file."""

    read: int = Field(ge=0)
    accepted: int = Field(ge=0)
    rejected: int = Field(ge=0)
    reasons: dict[str, int] = Field(default_factory=dict)
    "Check -> rejected rows that it found."
    first_lines: tuple[int, ...] = ()
    "Lines of the first rejected rows."

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.accepted + self.rejected != self.read:
            raise ValueError(
                f"{self.accepted} accepted and {self.rejected} rejected are not {self.read} rows"
            )
        return self


class InputRecord(StrictModel):
    """One input of a stage: what it held and who made it."""

    kind: ArtifactKind
    fingerprint: str
    producer: str | None = None
    "Stage that made it; None for a file or Hub model of the user."
    producer_key: str | None = None
    source: str = ""
    "File name, Hub id with commit, or stage name. Never a whole path."
    rows: RowsRecord | None = None
    "None for what is not read row by row, and in records of stages that did not count."


class OutputRecord(StrictModel):
    """One output of a stage: a file or a folder inside the stage's folder."""

    kind: ArtifactKind
    path: str
    digest: str
    "sha256 of the file, or digest of the folder's listing."
    files: tuple[FileDigest, ...]
    "Every file, by its path inside the stage's folder."


class EnvironmentRecord(StrictModel):
    """Where a stage ran, without host, user or path."""

    python: str
    system: str
    machine: str
    device: str = "cpu"
    packages: dict[str, str]
    threads: int | None = None
    "Threads that torch computed with; the order of sums, and so the last bits, may depend on it."
    computing: dict[str, str] = Field(default_factory=dict)
    "Precision, attention and what else was chosen for the device; empty in records of before."


class AttemptRecord(StrictModel):
    """One start of a stage, whatever became of it."""

    number: int = Field(ge=1)
    started: str
    ended: str | None = None
    outcome: Outcome = "running"
    detail: str = ""
    environment: EnvironmentRecord | None = None
    "Where this start ran; the thread count is not known ahead of it."


class StageRecord(StrictModel):
    """The truth about one committed stage; it lies in the stage's folder as record.json."""

    type: Literal["stage-record"] = "stage-record"
    version: Literal[3] = 3
    key: str
    stage: str
    "Name in the run that made it."
    kind: str
    recipe: dict[str, Any]
    "What the key is the digest of."
    settings: dict[str, Any]
    "All settings that can change the result, defaults included."
    inputs: dict[str, InputRecord]
    outputs: dict[str, OutputRecord]
    files: tuple[FileDigest, ...] = ()
    "Committed files that are no output, such as metrics.jsonl."
    metrics: dict[str, float | str]
    notes: tuple[str, ...] = ()
    environment: EnvironmentRecord
    attempts: tuple[AttemptRecord, ...]
    started: str
    ended: str
    seconds: float = Field(ge=0)
    "Time of all attempts, in seconds."
    cost: CostRecord | None = None
    "Memory and tokens; None in records of older versions."

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        """Check names, digests and the key; a record is refused rather than trusted."""
        if self.key != stage_key(self.recipe):
            raise ValueError("the key is not the digest of the recipe")
        listed = [file.path for file in self.all_files()]
        for path in (*listed, *(output.path for output in self.outputs.values())):
            check_relative(path)
        check_distinct(listed)
        if len(set(listed)) != len(listed):
            raise ValueError("a file is listed twice")
        digests = [file.sha256 for file in self.all_files()]
        digests += [output.digest for output in self.outputs.values()]
        if not all(map(is_digest, digests)):
            raise ValueError("a digest is not sha256 in lower-case hex")
        for role, output in self.outputs.items():
            if output.digest != digest_of_output(output.path, output.files):
                raise ValueError(f"the digest of output {role!r} is not that of its files")
        return self

    def all_files(self) -> tuple[FileDigest, ...]:
        """Return every committed file but record.json itself."""
        return (*self.files, *(file for output in self.outputs.values() for file in output.files))

    def to_bytes(self) -> bytes:
        """Return record.json's bytes."""
        return sealed(self.model_dump(mode="json"))


def digest_of_output(path: str, files: tuple[FileDigest, ...]) -> str:
    """Return an output's digest: of its one file, or of the folder that its files fill."""
    if len(files) == 1 and files[0].path == path:
        return files[0].sha256
    prefix = f"{path}/"
    if not all(file.path.startswith(prefix) for file in files):
        raise ValueError(f"a file of output {path!r} lies outside it")
    return tree_digest([FileDigest(file.path.removeprefix(prefix), file.size, file.sha256) for file in files])


def read_record(path: Path) -> StageRecord:
    """Read a record.json and prove that it is whole and consistent.

    Raises:
        StoreError: missing, changed, of a newer version, or contradicting itself.
    """
    document = read_sealed(path, type_name=RECORD_TYPE, version=RECORD_VERSION, migrations=MIGRATIONS)
    try:
        return StageRecord.model_validate({name: value for name, value in document.items() if name != "self"})
    except (ValidationError, StoreError) as error:
        raise StoreError(f"not a valid record: {error}", where=str(path), code="damaged") from error


def environment(
    device: str = "cpu", *, threads: int | None = None, computing: Mapping[str, str] | None = None
) -> EnvironmentRecord:
    """Return this process's environment. Loads no package."""
    return EnvironmentRecord(
        python=platform.python_version(),
        system=platform.system(),
        machine=platform.machine(),
        device=device,
        packages=versions(PACKAGES),
        threads=threads,
        computing=dict(computing or {}),
    )


def versions(names: tuple[str, ...]) -> dict[str, str]:
    """Return the installed version of each package that is there."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment_changes(before: EnvironmentRecord, now: EnvironmentRecord) -> list[str]:
    """Return what differs between two environments, one plain line each."""
    names = sorted({*before.packages, *now.packages})
    pairs: list[tuple[str, str, str]] = [("python", before.python, now.python)]
    pairs += [("machine", before.machine, now.machine), ("system", before.system, now.system)]
    pairs += [(name, before.packages.get(name, "absent"), now.packages.get(name, "absent")) for name in names]
    return [f"{name} {old} -> {new}" for name, old, new in pairs if old != new]


def reasons_for_other_bits(last: EnvironmentRecord, attempts: tuple[AttemptRecord, ...]) -> list[str]:
    """Return why the same settings may give other bytes another time, one sentence each."""
    reasons = []
    if last.device != "cpu":
        reasons.append(f"made on {last.device}: the same settings may give other last bits there")
    known = [attempt.environment for attempt in attempts if attempt.environment is not None]
    changes = {change for before, after in pairwise(known) for change in environment_changes(before, after)}
    if changes:
        reasons.append(f"went on in another environment ({', '.join(sorted(changes))}): not an exact resume")
    return reasons


def timestamp(moment: datetime | None = None) -> str:
    """Return a UTC time as RFC 3339 with milliseconds."""
    moment = moment or datetime.now(UTC)
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds_between(start: str, end: str) -> float:
    """Return the seconds between two timestamps, never negative."""
    span = datetime.fromisoformat(end) - datetime.fromisoformat(start)
    return max(0.0, round(span.total_seconds(), 3))


def result_settings(config: StrictModel) -> dict[str, Any]:
    """Return all settings that can change a result, defaults included, as plain values."""
    settings: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        marks = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        value = getattr(config, name)
        if marks.get("in_key") is False:
            continue
        if isinstance(value, StrictModel):
            settings[name] = result_settings(value)
        elif marks.get("by_content") and isinstance(value, str):
            settings[name] = Path(value).name
        else:
            settings[name] = config.model_dump(mode="json", include={name})[name]
    return settings
