"""Streams a file as rows that each end as records or as a rejection: accepted + rejected = read."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from reward.preferences.checks.structure import check_structure
from reward.preferences.detect import SAMPLE_ROWS, Verdict, detect
from reward.preferences.lines import RawRow, text_rows
from reward.preferences.mapping import Mapping
from reward.preferences.notes import RowFinding, RowNotes, RowRejected
from reward.preferences.readers import ukp
from reward.preferences.readers.format import Format
from reward.preferences.records import PreferenceRecord
from reward.preferences.tables import read_parquet, read_workbook, read_xml
from reward.preferences.textfile import TextForm, data_suffix

LOGGER = logging.getLogger(__name__)

_MISSHAPEN = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError)
"What a reader meets in a row that only looks like its format."

LINE_MARK, ROW_MARK, CHECKS_MARK, MESSAGE_MARK, RAW_MARK = MARKS = (
    "_line",
    "_row",
    "_checks",
    "_message",
    "_raw",
)
"Fields that a file of rejects has beside the row's own."


@dataclass(frozen=True, slots=True)
class ReadRow:
    """A row of the source after reading: its records, or why it has none."""

    raw: RawRow
    records: tuple[PreferenceRecord, ...]
    rejections: tuple[RowFinding, ...]
    flags: tuple[RowFinding, ...]

    @property
    def accepted(self) -> bool:
        """True when nothing set the row aside."""
        return not self.rejections


@dataclass(frozen=True, slots=True)
class Source:
    """An opened preference file."""

    path: Path
    verdict: Verdict
    text_form: TextForm | None
    "None for workbooks and Parquet files."
    rows: Iterator[ReadRow]


def open_source(path: Path, mapping: Mapping | None = None) -> Source:
    """Open a file and decide its format; rows are read as they are asked for.

    Raises:
        DataError: missing, unreadable, empty, or of no known format.
    """
    mapping = mapping or Mapping()
    form, raw_rows = raw_rows_of(path, mapping)
    sample = list(itertools.islice(raw_rows, SAMPLE_ROWS))
    if not sample:
        raise DataError(f"{path.name} holds no row", where=str(path), code="empty-file")
    verdict = detect(sample, mapping, where=str(path))
    rows = _read_rows(itertools.chain(sample, raw_rows), verdict.format, mapping)
    return Source(path, verdict, form, rows)


def raw_rows_of(path: Path, mapping: Mapping) -> tuple[TextForm | None, Iterator[RawRow]]:
    """Open a file by its physical form; columns that an earlier check added are taken off."""
    suffix = data_suffix(path)
    form: TextForm | None = None
    if suffix in (".xlsx", ".xlsm"):
        rows = read_workbook(path, mapping.table)
    elif suffix == ".parquet":
        rows = read_parquet(path)
    elif suffix == ".xml":
        rows = read_xml(path, ukp.ELEMENT)
    else:
        form, rows = text_rows(path, suffix, mapping.table)
    return form, itertools.starmap(_without_marks, enumerate(rows, start=1))


def _without_marks(number: int, raw: RawRow) -> RawRow:
    if not isinstance(raw.value, dict) or ROW_MARK not in raw.value:
        return RawRow(raw.line, raw.text, raw.value, raw.problem, number)
    value = {name: cell for name, cell in raw.value.items() if name not in MARKS}
    earlier = _whole(raw.value.get(ROW_MARK)), _whole(raw.value.get(LINE_MARK))
    return replace(raw, number=number, value=value, earlier=earlier if earlier[0] else None)


def _whole(mark: Any) -> int:
    try:
        return int(mark)
    except (TypeError, ValueError, OverflowError):
        return 0


def _read_rows(raw_rows: Iterable[RawRow], form: Format, mapping: Mapping) -> Iterator[ReadRow]:
    options = mapping.options()
    if form.span is None:
        for raw in raw_rows:
            yield _read_row(raw, form, options)
        return
    for span in _spans(raw_rows, form):
        yield from _read_span(span, form, options)


def _read_row(raw: RawRow, form: Format, options: dict[str, Any]) -> ReadRow:
    notes = RowNotes()
    records: list[PreferenceRecord] = []
    if raw.problem is not None:
        notes.rejections.append(raw.problem)
    elif not isinstance(raw.value, dict):
        notes.reject("wrong_type", "", "the row is not an object")
    else:
        try:
            records = [replace(record, line=raw.line) for record in form.read(raw.value, notes, options)]
        except RowRejected as rejected:
            notes.rejections.append(rejected.finding)
        except _MISSHAPEN as error:
            _reject_shape(raw, form, notes, error)
    return _finished(raw, records, notes)


def _reject_shape(raw: RawRow, form: Format, notes: RowNotes, error: Exception) -> None:
    """Set aside a row that no reader foresaw: what a field may hold instead of its own has no end."""
    LOGGER.debug("line %s does not have the shape of %s", raw.line, form.name, exc_info=error)
    notes.reject("wrong_type", "", f"the row does not have the shape of {form.name}: {error!r}")


def _finished(raw: RawRow, records: list[PreferenceRecord], notes: RowNotes) -> ReadRow:
    for record in records:
        check_structure(record, notes)
    kept = () if notes.rejections else tuple(records)
    return ReadRow(raw, kept, tuple(notes.rejections), tuple(notes.flags))


def _spans(raw_rows: Iterable[RawRow], form: Format) -> Iterator[list[RawRow]]:
    """Group neighbouring rows that are one comparison."""
    if form.span is None:
        raise ValueError("the format has no span")
    span: list[RawRow] = []
    last: Any = None
    for raw in raw_rows:
        readable = raw.problem is None and isinstance(raw.value, dict)
        key = form.span(raw.value) if readable else None
        full = form.max_span is not None and len(span) >= form.max_span
        if span and (key is None or key != last or full):
            yield span
            span = []
        last = key
        span.append(raw)
    if span:
        yield span


def _read_span(span: list[RawRow], form: Format, options: dict[str, Any]) -> Iterator[ReadRow]:
    """Read rows that are one comparison; its records hang on the first row."""
    if form.join is None:
        raise ValueError("a format with a span has a join")
    if len(span) == 1 and (span[0].problem is not None or not isinstance(span[0].value, dict)):
        yield _read_row(span[0], form, options)
        return
    notes = RowNotes()
    records: list[PreferenceRecord] = []
    try:
        found = form.join([raw.value for raw in span], notes, options)
        records = [replace(record, line=span[0].line) for record in found]
    except RowRejected as rejected:
        notes.rejections.append(rejected.finding)
    except _MISSHAPEN as error:
        _reject_shape(span[0], form, notes, error)
    first = _finished(span[0], records, notes)
    yield first
    for raw in span[1:]:
        yield ReadRow(raw, (), first.rejections, ())
