"""Writes rows back: rejects in the format they came in, accepted rows as comparison records."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, TextIO

from reward.preferences.mapping import Mapping
from reward.preferences.pairs import merge_votes
from reward.preferences.records import PreferenceRecord, Rating, Response, Vote
from reward.preferences.source import (
    CHECKS_MARK,
    LINE_MARK,
    MARKS,
    MESSAGE_MARK,
    RAW_MARK,
    ROW_MARK,
    ReadRow,
    open_source,
)
from reward.preferences.textfile import data_suffix

PARTIAL = ".partial"
MAX_MEMORY_BYTES = 32 << 20
"Rejected rows beyond this size wait in a temporary file."


class Rows(Protocol):
    """Rows that can be walked more than once."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the rows."""

    def __len__(self) -> int:
        """Number of rows."""


class RowSink(Protocol):
    """Something that takes rows and can be finished."""

    def __call__(self, row: ReadRow) -> None:
        """Take one row."""

    def close(self) -> None:
        """Finish the file and give it its final name."""

    def discard(self) -> None:
        """Leave no file behind."""


def rejects_name(source: Path) -> str:
    """Return the file name of the rejects of a source: the same format, never compressed."""
    suffix = data_suffix(source)
    known = {".csv", ".tsv", ".tab", ".json", ".jsonl", ".ndjson", ".xlsx", ".parquet"}
    return f"rejects{suffix if suffix in known else '.jsonl'}"


def marked_row(row: ReadRow) -> dict[str, Any]:
    """Return a row as it was, with its line, its checks and the reasons beside it."""
    value = dict(row.raw.value) if isinstance(row.raw.value, dict) else {}
    number, line = row.raw.earlier or (row.raw.number, row.raw.line)
    marks = {
        LINE_MARK: line,
        ROW_MARK: number,
        CHECKS_MARK: ", ".join(dict.fromkeys(item.check for item in row.rejections)),
        MESSAGE_MARK: "; ".join(
            f"{item.field}: {item.message}" if item.field else item.message for item in row.rejections
        ),
    }
    if not isinstance(row.raw.value, dict):
        marks[RAW_MARK] = row.raw.text
    return value | marks


class RowSpool:
    """Rows of JSON values that wait to be written; many of them wait in a temporary file."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=MAX_MEMORY_BYTES)  # noqa: SIM115
        self._size = 0

    def __len__(self) -> int:
        """Number of rows."""
        return self._size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the rows in the order in which they came."""
        self._file.seek(0)
        return (json.loads(line) for line in self._file)

    def append(self, row: dict[str, Any]) -> None:
        """Add a row."""
        self._size += 1
        self._file.write(json.dumps(row).encode() + b"\n")

    def clear(self) -> None:
        """Forget all rows."""
        self._size = 0
        self._file.seek(0)
        self._file.truncate()


class RejectsWriter:
    """Gathers rejected rows into `folder / rejects.<format of the source>`; no file when there is none."""

    def __init__(self, folder: Path, source: Path, *, delimiter: str | None = None) -> None:
        self.path = folder / rejects_name(source)
        self.delimiter = delimiter or ("\t" if self.path.suffix in (".tsv", ".tab") else ",")
        typed = self.path.suffix in (".xlsx", ".parquet")
        self.rows: list[dict[str, Any]] | RowSpool = [] if typed else RowSpool()

    def __call__(self, row: ReadRow) -> None:
        """Keep a row when it was rejected."""
        if not row.accepted:
            self.rows.append(marked_row(row))

    def discard(self) -> None:
        """Forget the rows."""
        self.rows.clear()

    def close(self) -> None:
        """Write the file, or remove an older one when nothing was rejected."""
        if not self.rows:
            self.path.unlink(missing_ok=True)
            return
        write_rows(self.path, self.rows, delimiter=self.delimiter)


def write_rows(path: Path, rows: Rows, *, delimiter: str = ",") -> None:
    """Write rows in the format that the suffix names; the file appears whole or not at all."""
    partial = path.with_name(path.name + PARTIAL)
    if path.suffix == ".xlsx":
        _write_workbook(partial, rows)
    elif path.suffix == ".parquet":
        _write_parquet(partial, rows)
    elif path.suffix in (".csv", ".tsv", ".tab"):
        with partial.open("w", encoding="utf-8", errors="surrogatepass", newline="") as stream:
            write_csv(stream, rows, delimiter)
    elif path.suffix == ".json":
        with partial.open("w", encoding="ascii") as stream:
            stream.writelines(
                f"{',' if place else '['}\n{json.dumps(row, indent=1)}" for place, row in enumerate(rows)
            )
            stream.write("\n]\n" if rows else "[]\n")
    else:
        with partial.open("w", encoding="utf-8") as stream:
            stream.writelines(map(json_line, rows))
    partial.replace(path)


def json_line(value: Any) -> str:
    """Return one JSON line; text that UTF-8 cannot hold is written with escapes."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, ensure_ascii=True)
    return text + "\n"


def write_csv(stream: TextIO, rows: Rows, delimiter: str) -> None:
    """Write rows as CSV under one header that has every column."""
    names = column_names(rows)
    writer = csv.DictWriter(stream, names, delimiter=delimiter, lineterminator="\r\n", restval="")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def column_names(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Return all columns in order of appearance, the marks of a check last."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if name not in MARKS] + [name for name in MARKS if name in names]


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def _write_workbook(path: Path, rows: Rows) -> None:
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell

    book = Workbook(write_only=True)
    sheet = book.create_sheet("rejects")
    names = column_names(rows)
    sheet.append(names)
    for row in rows:
        cells = []
        for name in names:
            value = _cell(row.get(name))
            cell = WriteOnlyCell(sheet, value=_sheet_text(value) if isinstance(value, str) else value)
            if isinstance(value, str):
                cell.data_type = "s"
                cell.number_format = "@"
            cells.append(cell)
        sheet.append(cells)
    book.save(path)


def _sheet_text(text: str) -> str:
    """Return text without the control characters that a workbook cannot hold."""
    return "".join(char for char in text if char >= " " or char in "\t\n\r")[:32_767]


def _write_parquet(path: Path, rows: Rows) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)


Change = Callable[[PreferenceRecord], PreferenceRecord]


class AcceptedWriter:
    """Writes accepted rows as comparison records, one a line; change is made to each before."""

    def __init__(self, folder: Path, source: Path, *, change: Change | None = None) -> None:
        self.path = folder / "accepted.jsonl"
        self.change = change
        self.source = source.name
        self.partial = self.path.with_name(self.path.name + PARTIAL)
        self.stream = self.partial.open("w", encoding="utf-8")

    def __call__(self, row: ReadRow) -> None:
        """Write the records of a row."""
        for record in row.records:
            written = self.change(record) if self.change else record
            self.stream.write(json_line(record_to_json(written, source=self.source)))

    def discard(self) -> None:
        """Remove what was written."""
        self.stream.close()
        self.partial.unlink(missing_ok=True)

    def close(self) -> None:
        """Give the file its name."""
        self.stream.close()
        self.partial.replace(self.path)


def write_text(path: Path, text: str) -> None:
    """Write a text file; it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_records(path: Path, records: Iterable[PreferenceRecord], *, source: str = "") -> None:
    """Write comparison records in the project's own form."""
    write_text(path, "".join(json_line(record_to_json(record, source=source)) for record in records))


def read_records(path: Path, mapping: Mapping | None = None) -> tuple[list[PreferenceRecord], int]:
    """Read all accepted records of a file, votes gathered, and count the rows set aside.

    Raises:
        DataError: the file cannot be read.
    """
    records: list[PreferenceRecord] = []
    num_rejected = 0
    for row in open_source(path, mapping).rows:
        records += row.records
        num_rejected += not row.accepted
    return merge_votes(records), num_rejected


def record_to_json(record: PreferenceRecord, *, source: str = "") -> dict[str, Any]:
    """Return a comparison record in the project's own form, without empty fields."""
    meta = {**record.meta, **({"source_file": source, "source_line": record.line} if source else {})}
    return _filled(
        {
            "id": record.id,
            "prompt": record.prompt,
            "responses": [_response(response) for response in record.responses],
            "votes": [_vote(vote) for vote in record.votes],
            "ratings": [_rating(rating) for rating in record.ratings],
            "margin": record.margin,
            "share": record.share,
            "weight": record.weight,
            "gold": list(record.gold) if record.gold else None,
            "meta": meta,
        },
        keep=("prompt", "responses"),
    )


def _response(response: Response) -> dict[str, Any]:
    return _filled(
        {"id": response.id, "text": response.text, "source": response.source, "finish": response.finish},
        keep=("id", "text"),
    )


def _vote(vote: Vote) -> dict[str, Any]:
    return _filled(
        {
            "annotator": vote.annotator,
            "tiers": [list(tier) for tier in vote.tiers],
            "kind": str(vote.kind),
            "strength": vote.strength,
            "confidence": vote.confidence,
            "shown_order": list(vote.shown_order) if vote.shown_order else None,
            "started_at": vote.started_at,
            "submitted_at": vote.submitted_at,
            "seconds": vote.seconds,
            "reason": vote.reason,
            "is_gold_probe": vote.is_gold_probe or None,
            "guideline": vote.guideline,
            "batch": vote.batch,
        }
    )


def _rating(rating: Rating) -> dict[str, Any]:
    return _filled(
        {
            "annotator": rating.annotator,
            "response": rating.response,
            "scale": list(rating.scale),
            "value": rating.value,
            "axis": rating.axis,
        }
    )


def _filled(values: dict[str, Any], *, keep: tuple[str, ...] = ()) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in keep or value not in (None, "", [], {})}
