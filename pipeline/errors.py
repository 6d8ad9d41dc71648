"""Errors a person can cause, each with a place, a remedy and an exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Self


class ExitCode(IntEnum):
    """What the process tells the shell; documented in docs/errors.md."""

    OK = 0
    STAGE_FAILED = 1
    USER_ERROR = 2
    GATE_CLOSED = 3
    BUSY = 4
    OUT_OF_MEMORY = 5
    OUT_OF_DISK = 6
    KILLED = 7
    INTERRUPTED = 75


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: what, where, what to do."""

    message: str
    "One sentence that holds the offending value."
    where: str = ""
    "file:line, dotted key or stage name."
    hint: str = ""
    "The command or value to try."
    code: str = "error"
    "Stable name of the kind of finding, such as unknown-key."

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        remedy = f"\n    try: {self.hint}" if self.hint else ""
        return f"{place}{self.message}{remedy}"


class UserError(Exception):
    """A mistake that a person can mend. Shown without a traceback."""

    exit_code: ExitCode = ExitCode.USER_ERROR

    def __init__(self, message: str, *, where: str = "", hint: str = "", code: str = "error") -> None:
        super().__init__(message)
        self.findings: tuple[Finding, ...] = (Finding(message, where, hint, code),)

    @classmethod
    def from_findings(cls, findings: Sequence[Finding]) -> Self:
        """Build one error that shows every finding at once."""
        if not findings:
            raise ValueError("an error needs at least one finding")
        first = findings[0]
        error = cls(first.message, where=first.where, hint=first.hint, code=first.code)
        error.findings = tuple(findings)
        return error

    def __str__(self) -> str:
        return "\n".join(str(finding) for finding in self.findings)


class ConfigError(UserError):
    """The run file, an override or a stage's settings."""


class DataError(UserError):
    """A data file: missing, unreadable, or with rows that cannot be used."""


class ModelError(UserError):
    """A model, tokenizer or adapter that cannot be loaded or does not fit."""


class HandOverError(ModelError):
    """A stage does not start from what its parent gave."""


class StoreError(UserError):
    """The store: damaged, full, read-only or of another version."""


class BusyError(StoreError):
    """Another process holds what this one needs."""

    exit_code = ExitCode.BUSY


class DiskFull(StoreError):
    """There is no room left for what must be written."""

    exit_code = ExitCode.OUT_OF_DISK


class StageFailed(UserError):
    """A stage ended without a result; the log says why."""

    exit_code = ExitCode.STAGE_FAILED


class VerificationFailed(StoreError):
    """Committed bytes differ from what their record says."""

    exit_code = ExitCode.STAGE_FAILED


class Interrupted(UserError):
    """Stopped by Ctrl-C or SIGTERM after saving; the same command goes on."""

    exit_code = ExitCode.INTERRUPTED
