"""Reads rows of workbooks, Parquet files and XML files; cells keep their types."""

from __future__ import annotations

import datetime
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.parsers import expat

from pipeline.errors import DataError
from reward.preferences.lines import RawRow, TableForm
from reward.preferences.notes import RowFinding
from reward.preferences.textfile import READ_ERRORS, open_bytes

BATCH_ROWS = 1024


def read_workbook(path: Path, table: TableForm) -> Iterator[RawRow]:
    """Yield the rows of the first sheet, or of the named one; the line is the sheet's row number.

    Raises:
        DataError: not a workbook, no such sheet, or two columns of one name.
    """
    import openpyxl
    from openpyxl.utils.exceptions import InvalidFileException

    if not path.exists():
        raise DataError(f"there is no file {str(path)!r}", where=str(path), code="missing-file")
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (InvalidFileException, zipfile.BadZipFile, KeyError, OSError, ValueError) as error:
        raise DataError(f"{path.name} is not a workbook: {error}", where=str(path)) from error
    try:
        if table.sheet is not None and table.sheet not in book.sheetnames:
            known = ", ".join(book.sheetnames)
            raise DataError(f"there is no sheet {table.sheet!r}", where=str(path), hint=f"one of {known}")
        sheet = book[table.sheet or book.sheetnames[0]]
        names: list[str] | None = None
        for number, cells in enumerate(sheet.iter_rows(values_only=True), start=1):
            if all(cell is None for cell in cells):
                continue
            if names is None:
                width = max(place for place, cell in enumerate(cells, start=1) if cell is not None)
                names = _column_names(cells[:width], path, header=table.header)
                if table.header:
                    continue
            yield _workbook_row(number, cells, names)
    finally:
        book.close()


def _column_names(cells: tuple[Any, ...], path: Path, *, header: bool) -> list[str]:
    named = [str(cell).strip() if header and cell is not None else "" for cell in cells]
    names = [name or f"column_{number}" for number, name in enumerate(named, start=1)]
    doubled = [name for name in names if names.count(name) > 1]
    if doubled:
        raise DataError(f"two columns are called {doubled[0]!r}", where=str(path), code="duplicate-column")
    return names


def _workbook_row(number: int, cells: tuple[Any, ...], names: list[str]) -> RawRow:
    extra = [cell for cell in cells[len(names) :] if cell is not None]
    value = {name: _plain(cell) for name, cell in zip(names, cells, strict=False)}
    value |= {name: None for name in names[len(cells) :]}
    text = json.dumps(value, ensure_ascii=False)
    if extra:
        message = f"a cell stands outside the {len(names)} named columns: {str(extra[0])[:40]!r}"
        return RawRow(number, text, problem=RowFinding("parse_error", "", message))
    return RawRow(number, text, value)


def _plain(cell: Any) -> Any:
    """Bring dates to ISO text in a one-item object, so that a date in a text column is an error."""
    if isinstance(cell, datetime.datetime | datetime.date | datetime.time):
        return {"date": cell.isoformat()}
    if isinstance(cell, datetime.timedelta):
        return cell.total_seconds()
    return cell


def read_parquet(path: Path) -> Iterator[RawRow]:
    """Yield the rows of a Parquet file; the line is the row number, counted from 1.

    Raises:
        DataError: not a Parquet file.
    """
    import pyarrow
    import pyarrow.parquet

    if not path.exists():
        raise DataError(f"there is no file {str(path)!r}", where=str(path), code="missing-file")
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                for value in batch.to_pylist():
                    number += 1
                    yield RawRow(number, json.dumps(value, ensure_ascii=False, default=str), value)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, OSError) as error:
        raise DataError(
            f"{path.name} cannot be read as Parquet after row {number}: {error}", where=str(path)
        ) from error


def read_xml(path: Path, element: str) -> Iterator[RawRow]:
    """Yield each element of one name as nested objects, with the line where it begins.

    Entities are not expanded: a document type with its own entities is refused.
    """
    parser = expat.ParserCreate()
    builder = _ElementBuilder(parser, element)
    try:
        with open_bytes(path) as stream:
            while block := stream.read(1 << 16):
                parser.Parse(block, False)
                yield from builder.take()
            parser.Parse(b"", True)
            yield from builder.take()
    except expat.ExpatError as error:
        yield RawRow(error.lineno, "", problem=RowFinding("parse_error", "", f"not XML: {error}"))
    except READ_ERRORS as error:
        finding = RowFinding("truncated_file", "", f"the file ends before its data does: {error}")
        yield RawRow(parser.CurrentLineNumber, "", problem=finding)


class _ElementBuilder:
    """Turns the elements of one name into nested dictionaries; repeated children become lists."""

    def __init__(self, parser: expat.XMLParserType, element: str) -> None:
        self.parser, self.element = parser, element
        self.stack: list[tuple[str, dict[str, Any], list[str]]] = []
        self.line = 0
        self.done: list[RawRow] = []
        parser.buffer_text = True
        parser.StartElementHandler = self.start
        parser.EndElementHandler = self.end
        parser.CharacterDataHandler = self.text
        parser.EntityDeclHandler = self.refuse

    def take(self) -> list[RawRow]:
        """Hand over the finished elements."""
        done, self.done = self.done, []
        return done

    def refuse(self, *_: Any) -> None:
        raise DataError("an XML file with its own entities is not read", code="xml-entities")

    def start(self, name: str, _: dict[str, str]) -> None:
        if self.stack or name == self.element:
            if not self.stack:
                self.line = self.parser.CurrentLineNumber
            self.stack.append((name, {}, []))

    def text(self, data: str) -> None:
        if self.stack:
            self.stack[-1][2].append(data)

    def end(self, _: str) -> None:
        if not self.stack:
            return
        name, children, parts = self.stack.pop()
        value: Any = children if children else "".join(parts).strip()
        if not self.stack:
            self.done.append(RawRow(self.line, json.dumps(value, ensure_ascii=False), value))
            return
        siblings = self.stack[-1][1]
        if name not in siblings:
            siblings[name] = value
        elif isinstance(siblings[name], list):
            siblings[name].append(value)
        else:
            siblings[name] = [siblings[name], value]
