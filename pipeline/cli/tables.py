"""Prints tables: those of commands, and the table artifacts that stages give."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline.contract import ArtifactKind
from pipeline.record import StageRecord
from pipeline.store import Store

FILE_WIDTH = 240
"Characters a line when the output goes to a file or a pipe, which cannot say how wide it is."


def show(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str = "", notes: Sequence[str] = ()
) -> None:
    """Print a table on standard output."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, box=box.SIMPLE, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = FILE_WIDTH
    console.print(table)
    for note in notes:
        console.print(note, markup=False, highlight=False)


def show_artifact(store: Store, record: StageRecord, *, said: Collection[str] = ()) -> None:
    """Print every table that a stage gave; notes that the run has said already are not said again."""
    for output in record.outputs.values():
        if output.kind != ArtifactKind.TABLE:
            continue
        path = store.stage_folder(record.key) / output.path
        document = read_table(path / "table.json" if path.is_dir() else path)
        show(
            document["columns"],
            document["rows"],
            title=str(document.get("title", "")),
            notes=[str(note) for note in document.get("notes", ()) if str(note) not in said],
        )


def read_table(path: Path) -> dict[str, Any]:
    """Read a table.json: title, columns, rows, notes."""
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
