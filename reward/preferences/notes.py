"""What was found in one row: reasons to set it aside, and flags on a row that is kept."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RowFinding:
    """One thing that is wrong with one field of one row."""

    check: str
    "Stable name of the check, such as empty_response."
    field: str
    "Name of the field as the source file calls it."
    message: str


class RowRejected(Exception):
    """Raised by a reader when a row cannot become a record."""

    def __init__(self, check: str, field_name: str, message: str) -> None:
        super().__init__(message)
        self.finding = RowFinding(check, field_name, message)


@dataclass(slots=True)
class RowNotes:
    """Collects every finding of one row, so that a person sees them all at once."""

    rejections: list[RowFinding] = field(default_factory=list)
    flags: list[RowFinding] = field(default_factory=list)

    def reject(self, check: str, field_name: str, message: str) -> None:
        """Set the row aside, and go on looking."""
        self.rejections.append(RowFinding(check, field_name, message))

    def flag(self, check: str, field_name: str, message: str) -> None:
        """Keep the row, and say what is odd about it."""
        self.flags.append(RowFinding(check, field_name, message))
