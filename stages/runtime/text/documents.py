"""Reads raw text for pretraining: plain documents or JSON Lines. No torch here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, Finding
from reward.preferences.lines import RawRow, TableForm, text_rows
from reward.preferences.textfile import READ_ERRORS, data_suffix, inspect, open_text

Document = str | Sequence[Mapping[str, Any]]
"A text, or a conversation to be written with the chat template."
_ROW_SUFFIXES = (".jsonl", ".ndjson", ".json")
_BLANK_LINES = re.compile(r"\n[ \t\r]*\n\s*")
_MAX_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Corpus:
    """The documents of a file, cut into those to train on and those to measure on."""

    training: tuple[Document, ...]
    held_out: tuple[Document, ...]


def read_documents(path: Path, *, text_field: str = "text") -> list[Document]:
    """Read every document of a file, in its order; empty ones are left out.

    Args:
        path: JSON Lines by its suffix, else plain text with blank lines between documents or, where it
            has none, a document a line; also compressed with gzip or zstd.
        text_field: field of a row that holds the document.

    Raises:
        DataError: the file cannot be read or holds no document, or rows lack the field; each is named.
    """
    has_rows = data_suffix(path) in _ROW_SUFFIXES
    documents = _row_documents(path, text_field) if has_rows else _text_documents(path)
    if not documents:
        hint = "text with blank lines between documents, or JSON Lines with a text field"
        raise DataError(f"{path.name} holds no text", where=str(path), hint=hint, code="no-documents")
    return documents


def split(documents: Sequence[Document], *, fraction: float, seed: int) -> Corpus:
    """Hold out a share of the documents by a digest of their text; equal documents stay together.

    At least one document is held out when the fraction is above 0 and two differ.
    """
    ranks = {_text_of(document): _rank(document, seed) for document in documents}
    count = min(len(ranks) - 1, max(1, round(fraction * len(ranks)))) if fraction > 0 else 0
    chosen = set(sorted(ranks, key=lambda text: ranks[text])[:count])
    return Corpus(
        training=tuple(document for document in documents if _text_of(document) not in chosen),
        held_out=tuple(document for document in documents if _text_of(document) in chosen),
    )


def _row_documents(path: Path, text_field: str) -> list[Document]:
    documents: list[Document] = []
    findings: list[Finding] = []
    _, rows = text_rows(path, data_suffix(path), TableForm())
    for row in rows:
        document = _document(row, text_field)
        if document is None:
            message = row.problem.message if row.problem else f"the row has no text in {text_field!r}"
            findings.append(Finding(message, f"{path}:{row.line}", _field_hint(row), "no-text"))
        elif document:
            documents.append(document)
    if findings:
        more = len(findings) - _MAX_SHOWN
        shown = findings[:_MAX_SHOWN]
        if more > 0:
            shown.append(Finding(f"{more} more rows without text", str(path), code="no-text"))
        raise DataError.from_findings(shown)
    return documents


def _document(row: RawRow, text_field: str) -> Document | None:
    value = row.value.get(text_field) if isinstance(row.value, dict) else None
    if isinstance(value, str):
        return value.strip("\n")
    turns = isinstance(value, list) and all(isinstance(turn, dict) and "content" in turn for turn in value)
    return value if turns else None


def _field_hint(row: RawRow) -> str:
    fields = sorted(row.value) if isinstance(row.value, dict) else []
    return f"text_field: one of {', '.join(fields)}" if fields else ""


def _text_documents(path: Path) -> list[Document]:
    """Cut plain text at blank lines; text without a blank line holds a document a line."""
    try:
        with open_text(path, inspect(path)) as stream:
            text = stream.read()
    except READ_ERRORS as error:
        raise DataError(f"{path} cannot be read: {error}", where=str(path), code="unreadable") from error
    text = text.replace("\r\n", "\n").encode("utf-8", "replace").decode().strip()
    pieces = _BLANK_LINES.split(text) if _BLANK_LINES.search(text) else text.split("\n")
    return [piece.strip("\n").rstrip() for piece in pieces if piece.strip()]


def _text_of(document: Document) -> str:
    return document if isinstance(document, str) else repr(document)


def _rank(document: Document, seed: int) -> str:
    return hashlib.sha256(f"{seed}|{_text_of(document)}".encode("utf-8", "replace")).hexdigest()
