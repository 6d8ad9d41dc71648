"""What a reader is: a name, a test of whether a row is its own, and a function from row to records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from reward.preferences.notes import RowNotes
from reward.preferences.records import PreferenceRecord

Row = dict[str, Any]
Options = Mapping[str, Any]
Read = Callable[[Row, RowNotes, Options], list[PreferenceRecord]]


@dataclass(frozen=True, slots=True)
class Format:
    """One file format of the catalogue."""

    name: str
    title: str
    "What a person calls it."
    matches: Callable[[Row], bool]
    "True when the row has the fields that no other format has."
    read: Read
    reads_as: str
    "One sentence that says which side is the better one."
    specificity: int = 1
    "The larger wins when several formats match."
    ask: str = ""
    "Why this format must be named by a person: the direction of a scale is not in the file."
    span: Callable[[Row], Any] | None = None
    "Neighbouring rows with an equal key are one comparison; None when each row stands alone."
    join: Callable[[list[Row], RowNotes, Options], list[PreferenceRecord]] | None = None
    "Reads the rows of one span."
    max_span: int | None = None
    "Rows a span may have."


def has(row: Row, *names: str) -> bool:
    """True when the row has all the fields."""
    return all(name in row for name in names)
