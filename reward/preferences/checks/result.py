"""What a check says: a verdict, numbers, examples with line numbers, and one sentence of advice."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum


class Verdict(IntEnum):
    """How bad it is; the worst verdict of all checks is the file's."""

    OK = 0
    INFO = 1
    WARN = 2
    FAIL = 3

    @property
    def word(self) -> str:
        """The verdict as it is printed."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Example:
    """One place where a check found something."""

    line: int
    field: str
    text: str


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The outcome of one check over a whole file."""

    id: str
    group: str
    "structure, consistency, bias, content, annotators or leakage."
    severity: str
    "R sets rows aside, W flags them, F is about the file."
    verdict: Verdict
    count: int
    "Rows, pairs, votes or people found."
    of: int
    "Out of how many."
    threshold: str
    "What would change the verdict, in words."
    advice: str
    "What to do, in one sentence."
    examples: tuple[Example, ...] = ()
    measured: dict[str, float | str | None] = field(default_factory=dict)
    "Further numbers by name."

    @property
    def share(self) -> float:
        """count / of; 0 when there was nothing to look at."""
        return self.count / self.of if self.of else 0.0
