"""Reads rows of JSON Lines, JSON, CSV and TSV files one at a time, each with its first line number.

Nothing is skipped in silence: text that cannot be a row comes out as a row with a problem.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from pipeline.errors import DataError
from reward.preferences.notes import RowFinding
from reward.preferences.textfile import READ_ERRORS, TextForm, inspect, open_text

MAX_ROW_CHARS = 32 << 20
MAX_CSV_LINES = 20_000
"A quoted cell longer than this many lines is an unclosed quote."
_CHUNK = 1 << 16
_ESCAPED = re.compile(r"[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as the file holds it."""

    line: int
    "1-based first line of the row; for a sheet, the sheet's own row number."
    text: str
    "The row exactly as written, without its line end."
    value: Any = None
    "The parsed row: a dict for a table, any JSON value for JSON."
    problem: RowFinding | None = None
    "Why there is no value."
    number: int = 0
    "1-based place of the row in the file: several rows of a JSON array may share a line."
    earlier: tuple[int, int] | None = None
    "Number and line of this row in the file that was checked before, when it comes from its rejects."


@dataclass(frozen=True, slots=True)
class TableForm:
    """What a mapping file may fix about a delimited file or a sheet."""

    delimiter: str | None = None
    header: bool = True
    sheet: str | None = None
    encoding: str | None = None


def read_jsonl(path: Path, form: TextForm) -> Iterator[RawRow]:
    """Yield each non-blank line of a JSON Lines file."""
    for line, text in _physical_lines(path, form):
        if isinstance(text, RowFinding):
            yield RawRow(line, "", problem=text)
        elif text.strip():
            yield parse_json_row(line, text)


def read_json(path: Path, form: TextForm) -> Iterator[RawRow]:
    """Yield the elements of a top-level array, or one value after another, without holding the file."""
    try:
        with open_text(path, form) as stream:
            yield from _json_elements(stream)
    except READ_ERRORS as error:
        yield RawRow(0, "", problem=_broken_archive(error))


def read_delimited(path: Path, form: TextForm, table: TableForm) -> Iterator[RawRow]:
    """Yield the records of a CSV or TSV file; the header names the fields.

    Raises:
        DataError: two columns have one name, or there is no header.
    """
    records = _csv_records(path, form, table.delimiter or sniff_delimiter(path, form))
    names: list[str] | None = None
    for line, text, cells in records:
        if isinstance(cells, RowFinding):
            yield RawRow(line, text, problem=cells)
        elif names is None and table.header:
            names = _header(cells, path, line)
        else:
            names = names or [f"column_{number}" for number in range(1, len(cells) + 1)]
            yield _csv_row(line, text, cells, names)


def sniff_delimiter(path: Path, form: TextForm) -> str:
    """Return the character that splits the first record best, whatever the file is called."""
    head = _first_line(path, form)
    outside = re.sub(r'"(?:[^"]|"")*"', "", head)
    counts = {mark: outside.count(mark) for mark in ("\t", ",", ";", "|")}
    best = max(counts, key=lambda mark: counts[mark])
    return best if counts[best] else ","


def parse_json_row(line: int, text: str) -> RawRow:
    """Parse one JSON value, or say at which character it stops being JSON."""
    text = text.rstrip("\r\n")
    stray = _ESCAPED.search(text)
    if stray:
        byte = f"byte 0x{ord(stray.group()) - 0xDC00:02x}"
        message = f"{byte} at character {stray.start() + 1} is not in the file's encoding"
        return RawRow(line, text, problem=RowFinding("encoding_not_utf8", "", message))
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        near = text[max(0, error.pos - 40) : error.pos + 40]
        message = f"not JSON at character {error.pos + 1}: {error.msg}; near {near!r}"
        return RawRow(line, text, problem=RowFinding("parse_error", "", message))
    except (RecursionError, ValueError) as error:
        return RawRow(line, text, problem=RowFinding("parse_error", "", f"not JSON: {error}"))
    return RawRow(line, text, value)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _broken_archive(error: Exception) -> RowFinding:
    return RowFinding("truncated_file", "", f"the file ends before its data does: {error}")


def _physical_lines(path: Path, form: TextForm) -> Iterator[tuple[int, str | RowFinding]]:
    line = 0
    try:
        with open_text(path, form) as stream:
            while text := stream.readline(MAX_ROW_CHARS + 1):
                line += 1
                if len(text) > MAX_ROW_CHARS and not text.endswith(form.newline):
                    while (rest := stream.readline(MAX_ROW_CHARS)) and not rest.endswith(form.newline):
                        pass
                    limit = f"the line is longer than {MAX_ROW_CHARS:,} characters"
                    yield line, RowFinding("parse_error", "", limit)
                else:
                    yield line, text.rstrip("\r\n") if form.newline == "\n" else text.rstrip("\r")
    except READ_ERRORS as error:
        yield line + 1, _broken_archive(error)


_JSON_MARKS = re.compile(r'["\\{}\[\],]')


def _json_elements(stream: TextIO) -> Iterator[RawRow]:
    """Cut a stream into JSON values by counting brackets outside strings."""
    cutter = _Cutter()
    while chunk := stream.read(_CHUNK):
        yield from cutter.feed(chunk)
    yield from cutter.finish()


class _Cutter:
    """Holds the value that is being read; knows whether it stands in a top-level array."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.size = 0
        self.line = 1
        self.start_line = 1
        self.depth = 0
        self.in_string = False
        self.array: bool | None = None
        self.closed = False
        self.skip = False
        "True when the character after a backslash falls into the next chunk."

    def feed(self, chunk: str) -> Iterator[RawRow]:
        start = position = 0
        if self.skip:
            self.skip, position = False, 1
        if self.array is None:
            body = chunk.lstrip()
            if not body:
                self._keep(chunk)
                return
            self.array = body[0] == "["
            if self.array:
                start = position = len(chunk) - len(body) + 1
                self.line += chunk[:start].count("\n")
        while match := _JSON_MARKS.search(chunk, position):
            mark, position = match.group(), match.end()
            if mark == "\\":
                if self.in_string:
                    if position == len(chunk):
                        self.skip = True
                    position += 1
            elif mark == '"':
                self.in_string = not self.in_string
            elif self.in_string:
                continue
            elif mark in "{[":
                self.depth += 1
            elif mark in "}]" and self.depth:
                self.depth -= 1
                if self.depth == 0 and not self.array:
                    self._keep(chunk[start:position])
                    start = position
                    yield from self._value()
            elif mark == "]" and self.array:
                self._keep(chunk[start : match.start()])
                start = position
                yield from self._value()
                self.closed, self.array = True, False
            elif mark == "," and self.depth == 0 and self.array:
                self._keep(chunk[start : match.start()])
                start = position
                yield from self._value()
        self._keep(chunk[start:])

    def finish(self) -> Iterator[RawRow]:
        rest = "".join(self.parts).strip()
        if rest and self.closed:
            yield self._problem(rest, f"text after the end of the array: {rest[:80]!r}")
        elif rest and (self.depth or self.in_string):
            yield self._problem(rest, f"the value is not closed before the file ends: {rest[:80]!r}")
        elif rest:
            yield from self._value()
        if self.array and not self.closed:
            yield RawRow(self.line, "", problem=RowFinding("truncated_file", "", "the array is not closed"))

    def _problem(self, rest: str, message: str) -> RawRow:
        return RawRow(self.start_line, rest, problem=RowFinding("parse_error", "", message))

    def _keep(self, text: str) -> None:
        if not self.parts:
            body = text.lstrip()
            self.line += text.count("\n", 0, len(text) - len(body))
            text = body
            self.start_line = self.line
        if text:
            self.parts.append(text)
            self.line += text.count("\n")

    def _value(self) -> Iterator[RawRow]:
        text = "".join(self.parts).strip()
        self.parts.clear()
        if text:
            yield parse_json_row(self.start_line, text)


def _csv_records(
    path: Path, form: TextForm, delimiter: str
) -> Iterator[tuple[int, str, list[str] | RowFinding]]:
    """Join physical lines until quotes balance; an unclosed quote costs one line, not the file."""
    lines = _physical_lines(path, form)
    again: deque[tuple[int, str]] = deque()
    open_record: list[tuple[int, str]] = []
    num_quotes = 0
    unclosed = RowFinding("parse_error", "", "a quote is opened and never closed")
    while True:
        line, text = again.popleft() if again else next(lines, (0, ""))
        if line == 0:
            if not open_record:
                return
            cells: list[str] | RowFinding = unclosed
        elif isinstance(text, RowFinding):
            yield line, "", text
            continue
        elif not open_record and not text.strip():
            continue
        else:
            open_record.append((line, text))
            num_quotes += text.count('"')
            if num_quotes % 2 == 0:
                cells = _cells("\n".join(part for _, part in open_record), delimiter)
            elif len(open_record) < MAX_CSV_LINES:
                continue
            else:
                cells = unclosed
        first_line, first_text = open_record[0]
        if isinstance(cells, RowFinding) and len(open_record) > 1:
            again.extendleft(reversed(open_record[1:]))
            yield first_line, first_text, cells
        else:
            yield first_line, "\n".join(part for _, part in open_record), cells
        open_record, num_quotes = [], 0


def _cells(text: str, delimiter: str) -> list[str] | RowFinding:
    stray = _ESCAPED.search(text)
    if stray:
        message = f"byte 0x{ord(stray.group()) - 0xDC00:02x} is not in the file's encoding"
        return RowFinding("encoding_not_utf8", "", message)
    csv.field_size_limit(MAX_ROW_CHARS)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        return RowFinding("parse_error", "", f"not CSV: {error}")
    return rows[0] if len(rows) == 1 else RowFinding("parse_error", "", "not one CSV record")


def _header(cells: list[str], path: Path, line: int) -> list[str]:
    names = [cell.strip() or f"column_{number}" for number, cell in enumerate(cells, start=1)]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise DataError(
            f"two columns are called {doubled[0]!r}", where=f"{path}:{line}", code="duplicate-column"
        )
    return names


def _csv_row(line: int, text: str, cells: list[str], names: list[str]) -> RawRow:
    if len(cells) != len(names):
        message = f"{len(cells)} cells where the header names {len(names)}"
        return RawRow(line, text, problem=RowFinding("parse_error", "", message))
    return RawRow(line, text, dict(zip(names, cells, strict=True)))


def text_rows(path: Path, suffix: str, table: TableForm) -> tuple[TextForm, Iterator[RawRow]]:
    """Choose the reader of a text file by its suffix, and by its first character when that is unknown."""
    form = inspect(path, encoding=table.encoding)
    if suffix in (".csv", ".tsv", ".tab") or table.delimiter:
        return form, read_delimited(path, form, table)
    head = _first_line(path, form)
    if head[:1] == "[" or (head[:1] == "{" and suffix == ".json" and _is_part(head)) or head == "{":
        return form, read_json(path, form)
    if suffix in (".jsonl", ".ndjson", ".json") or head[:1] == "{":
        return form, read_jsonl(path, form)
    return form, read_delimited(path, form, table)


def _first_line(path: Path, form: TextForm) -> str:
    """Return the first line that is not blank; empty when the file is damaged before its end."""
    try:
        with open_text(path, form) as stream:
            while head := stream.readline(MAX_ROW_CHARS):
                if head.strip():
                    return head.strip("\r\n ")
    except READ_ERRORS:
        # The reader meets the same damage and reports it as a row.
        return ""
    return ""


def _is_part(head: str) -> bool:
    """True when the first line does not hold a whole JSON value."""
    return parse_json_row(1, head).problem is not None
