"""Writes metrics.jsonl, the one source of metrics; dashboards and reports read it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path

from pipeline.tracking.lines import parse_line
from pipeline.tracking.telling import telling

WORDS = {"nan": '"nan"', "inf": '"inf"', "-inf": '"-inf"'}
"How Python writes numbers that JSON lacks -> the strings that stand for them."

PROGRESS_SECONDS = 0.2
"Nobody reads faster, and each report wakes the parent."


class MetricsFile:
    """Appends lines of metrics; a stage that goes on from a checkpoint does not repeat steps.

    Each line holds the step, the time in seconds since 1970, the epoch if there is one, and
    the metrics by name. A line reaches the kernel when it is written: it outlives this process,
    not the machine; the stage's result is flushed to disk when it is committed. When the first
    step logged lies at or before lines of an earlier attempt, those lines are dropped: they are
    about to be made again.

    Args:
        path: the file; continued when it exists.
        progress: told each progress report; it is not stored.
    """

    def __init__(self, path: Path, progress: Callable[[int, int, str], None] | None = None) -> None:
        self._path = path
        self._progress = progress
        self._stream: FileIO | None = None
        self._forms: dict[tuple[str, ...], str] = {}
        self._latest: dict[str, float] = {}
        self._told = -math.inf

    def log(self, metrics: Mapping[str, float], *, step: int, epoch: float | None = None) -> None:
        """Append one line. NaN and infinities are kept, as strings."""
        if self._stream is None:
            self._stream = self._reopen(step)
        self._latest.update(metrics)
        values = list(map(float, metrics.values()))
        # A sum is finite when every number is; one that overflows takes the slow way for nothing.
        numbers = map(repr if math.isfinite(sum(values)) else _number, values)
        around = "" if epoch is None else f', "epoch": {_number(float(epoch))}'
        start = f'{{"step": {int(step)}, "time": {time.time():.3f}{around}, "metrics": {{'
        _write_all(self._stream, (start + self._form(tuple(metrics)) % tuple(numbers)).encode("ascii"))

    def _form(self, names: tuple[str, ...]) -> str:
        """Return the rest of a line with a gap for each number; worked out once for these names.

        Half the cost of json.dumps, which would count most beside a short step.
        """
        form = self._forms.get(names)
        if form is None:
            form = ", ".join(json.dumps(name).replace("%", "%%") + ": %s" for name in names) + "}}\n"
            self._forms[names] = form
        return form

    def progress(self, step: int, total: int, text: str = "") -> None:
        """Say how far the stage is, with the numbers logged last; a few times a second at most."""
        now = time.monotonic()
        if self._progress is None or (step < total and now - self._told < PROGRESS_SECONDS):
            return
        self._told = now
        # What a stage says of its own numbers goes before ours.
        own = any(sign.isdigit() for sign in text)
        self._progress(step, total, text if own else ", ".join(filter(None, [text, telling(self._latest)])))

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _reopen(self, first_step: int) -> FileIO:
        """Keep the whole lines of earlier attempts before the first step of this one."""
        kept = b""
        if self._path.exists():
            for text in self._path.read_bytes().split(b"\n")[:-1]:
                line = parse_line(text)
                if line is not None and line.step < first_step:
                    kept += text + b"\n"
        self._path.write_bytes(kept)
        return self._path.open("ab", buffering=0)


def _number(value: float) -> str:
    text = repr(value)
    return WORDS.get(text, text)


def _write_all(stream: FileIO, line: bytes) -> None:
    """Write a whole line; a full disk takes a part of it and then says so."""
    written = stream.write(line)
    while written < len(line):
        written += stream.write(line[written:])


class NoMetrics:
    """Writes nothing: the ranks of a stage that are not its main one."""

    def log(self, metrics: Mapping[str, float], *, step: int, epoch: float | None = None) -> None:
        """Drop the line."""

    def progress(self, step: int, total: int, text: str = "") -> None:
        """Drop the report."""

    def close(self) -> None:
        """Nothing is open."""
