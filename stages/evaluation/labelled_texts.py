"""Reads a text classification task: JSON Lines with a text and its label. No torch here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DataError, Finding

MAX_SHOWN = 20
MAX_LABELS = 100
"More labels than this are hardly a classification; each is scored for each row."


@dataclass(frozen=True, slots=True)
class LabelledText:
    """One row: what the model is asked, and the label that is right."""

    text: str
    label: str
    line: int


def read_labelled_texts(path: Path) -> tuple[list[LabelledText], list[str]]:
    """Read a task `{"text": ..., "label": ...}` a line, and its labels in order of first appearance.

    Raises:
        DataError: rows cannot be used, each named by line, or there are not two labels.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the task cannot be read: {error}", where=str(path), code="unreadable") from error
    rows: list[LabelledText] = []
    findings: list[Finding] = []
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        found = _row(text, number)
        if isinstance(found, str):
            hint = '{"text": "...", "label": "..."}'
            findings.append(Finding(found, f"{path}:{number}", hint, "bad-row"))
        else:
            rows.append(found)
    labels = list(dict.fromkeys(row.label for row in rows))
    if not findings and not 2 <= len(labels) <= MAX_LABELS:
        message = f"a classification needs 2 to {MAX_LABELS} labels, the file has {len(labels)}"
        findings.append(Finding(message, str(path), "", "bad-labels"))
    if findings:
        raise DataError.from_findings(findings[:MAX_SHOWN])
    return rows, labels


def _row(text: str, line: int) -> LabelledText | str:
    """Return a row, or a sentence on why it cannot be used."""
    try:
        row = json.loads(text)
    except ValueError as error:
        return f"the line is not JSON: {error}"
    if not isinstance(row, dict):
        return "the line is not an object"
    label = row.get("label")
    if isinstance(label, int) and not isinstance(label, bool):
        label = str(label)
    for name, value in (("text", row.get("text")), ("label", label)):
        if not isinstance(value, str) or not value.strip():
            return f"the row has no {name} that is text"
    return LabelledText(row["text"], str(label), line)
