"""Writes metrics.jsonl, the one source of metrics; dashboards and reports read it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

from pipeline.canonical import finite
from pipeline.tracking.lines import parse_line


class MetricsFile:
    """Appends lines of metrics; a stage that goes on from a checkpoint does not repeat steps.

    Each line holds the step, the time in seconds since 1970, the epoch if there is one, and
    the metrics by name. A line is flushed when written. When the first step logged lies at or
    before lines of an earlier attempt, those lines are dropped: they are about to be made again.

    Args:
        path: the file; continued when it exists.
        progress: told each progress report; it is not stored.
    """

    def __init__(self, path: Path, progress: Callable[[int, int, str], None] | None = None) -> None:
        self._path = path
        self._progress = progress
        self._stream: TextIO | None = None

    def log(self, metrics: Mapping[str, float], *, step: int, epoch: float | None = None) -> None:
        """Append one line. NaN and infinities are kept, as strings."""
        if self._stream is None:
            self._stream = self._reopen(step)
        line = {"step": step, "time": round(time.time(), 3)}
        if epoch is not None:
            line["epoch"] = epoch
        numbers = {name: finite(float(value)) for name, value in metrics.items()}
        self._stream.write(json.dumps({**line, "metrics": numbers}) + "\n")

    def progress(self, step: int, total: int, text: str = "") -> None:
        """Say how far the stage is."""
        if self._progress is not None:
            self._progress(step, total, text)

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _reopen(self, first_step: int) -> TextIO:
        """Keep the whole lines of earlier attempts before the first step of this one."""
        kept = b""
        if self._path.exists():
            for text in self._path.read_bytes().split(b"\n")[:-1]:
                line = parse_line(text)
                if line is not None and line.step < first_step:
                    kept += text + b"\n"
        self._path.write_bytes(kept)
        return self._path.open("a", encoding="utf-8", buffering=1)
