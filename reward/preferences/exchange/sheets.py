"""CSV and XLSX sheets to fill in by hand: safe to open in Excel, and read back without loss."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import DataError
from reward.preferences.exchange.tasks import Task

COLUMNS = ("task_id", "prompt", "response_a", "response_b", "choice", "confidence", "reason")
CHOICES = ("a", "b", "tie", "both_bad", "skip")
MAX_CELL_CHARS = 32_767
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_WIDTHS = {"A": 20, "B": 50, "C": 60, "D": 60, "E": 12, "F": 12, "G": 40}


def guarded(text: str) -> str:
    """Put an apostrophe before a text that a spreadsheet would run as a formula."""
    return f"'{text}" if _needs_guard(text) else text


def unguarded(text: str) -> str:
    """Take that apostrophe off."""
    return text[1:] if text.startswith("'") and _needs_guard(text[1:]) else text


def _needs_guard(text: str) -> bool:
    """True for a formula, also behind apostrophes, so that a guard can always be told from the text."""
    return text.lstrip("'").startswith(_FORMULA_STARTS)


def sheet_rows(tasks: Sequence[Task]) -> list[list[str]]:
    """Return the rows of a sheet, the columns to fill in empty.

    Raises:
        DataError: a task has more than two answers, or a text does not fit into a cell.
    """
    rows: list[list[str]] = []
    for task in tasks:
        if len(task.texts) != 2:
            raise DataError(
                "a sheet holds pairs; a ranking needs Label Studio or Argilla", hint="--to labelstudio"
            )
        texts = [guarded(text) for text in (task.prompt, *task.texts)]
        longest = max(len(text) for text in texts)
        if longest > MAX_CELL_CHARS:
            raise DataError(
                f"a text of {longest:,} characters does not fit into a cell of {MAX_CELL_CHARS:,}",
                where=task.cmp_id,
                hint="--to labelstudio",
            )
        rows.append([task.task_id, *texts, "", "", ""])
    return rows


def write_csv(tasks: Sequence[Task], path: Path) -> None:
    """Write a CSV file in UTF-8 with a byte order mark, as Excel wants it."""
    stream = io.StringIO()
    writer = csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    writer.writerows(sheet_rows(tasks))
    path.write_bytes(stream.getvalue().encode("utf-8-sig", "replace"))


def write_xlsx(tasks: Sequence[Task], path: Path) -> None:
    """Write a workbook with text cells and a list of allowed choices."""
    from openpyxl import Workbook
    from openpyxl.styles import Alignment, Font
    from openpyxl.worksheet.datavalidation import DataValidation

    book = Workbook()
    sheet = book.active
    sheet.title = "comparisons"
    sheet.append(COLUMNS)
    for number, row in enumerate(sheet_rows(tasks), start=2):
        for column, text in enumerate(row, start=1):
            cell = sheet.cell(number, column)
            cell.number_format = "@"
            cell.alignment = Alignment(wrap_text=True, vertical="top")
            if text:
                cell.value = _writable(text)
                cell.data_type = "s"
    allowed = DataValidation(type="list", formula1=f'"{",".join(CHOICES)}"', allow_blank=True)
    allowed.error = f"one of {', '.join(CHOICES)}"
    sheet.add_data_validation(allowed)
    allowed.add(f"E2:E{len(tasks) + 1}")
    for letter, width in _WIDTHS.items():
        sheet.column_dimensions[letter].width = width
        sheet[f"{letter}1"].font = Font(bold=True)
    sheet.freeze_panes = "B2"
    book.save(path)


def _writable(text: str) -> str:
    """Leave out control characters that a workbook cannot hold; they are invisible anyway."""
    return "".join(char for char in text if char >= " " or char in "\t\n\r")
