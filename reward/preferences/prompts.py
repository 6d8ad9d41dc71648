"""Reads only the prompts of a file: preference files, prompt lists, demonstrations, test sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from reward.preferences.dialogue import read_prompt
from reward.preferences.mapping import Mapping
from reward.preferences.notes import RowRejected
from reward.preferences.records import Prompt
from reward.preferences.source import open_source, raw_rows_of

FIELDS = ("prompt", "question", "instruction", "messages", "conversations", "text", "input")


def read_prompts(path: Path) -> Iterator[tuple[int, Prompt]]:
    """Yield the line and prompt of every row that has one.

    Raises:
        DataError: the file cannot be read, or no row has a prompt.
    """
    try:
        source = open_source(path)
    except DataError as error:
        if error.findings[0].code not in ("unknown-format", "direction-undeclared"):
            raise
        yield from _plain_prompts(path)
        return
    for row in source.rows:
        for record in row.records:
            yield record.line, record.prompt


def _plain_prompts(path: Path) -> Iterator[tuple[int, Prompt]]:
    found = False
    for raw in raw_rows_of(path, Mapping())[1]:
        prompt = _prompt_of(raw.value)
        if prompt is not None:
            found = True
            yield raw.line, prompt
    if not found:
        names = ", ".join(FIELDS)
        raise DataError(f"no row of {path.name} has a prompt", where=str(path), hint=f"one of {names}")


def _prompt_of(value: Any) -> Prompt | None:
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        return None
    name = next((name for name in FIELDS if isinstance(value.get(name), str | list)), None)
    if name is None:
        return None
    try:
        prompt = read_prompt(value[name], name)
    except RowRejected:
        return None
    if isinstance(prompt, list) and prompt and prompt[-1]["role"] == "assistant":
        return prompt[:-1]
    return prompt
