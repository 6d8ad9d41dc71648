"""Reads metrics.jsonl: one JSON object a line, written by a stage, followed by every tracker."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

logger = logging.getLogger(__name__)

NOT_FINITE = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


@dataclass(frozen=True, slots=True)
class MetricLine:
    """One line of metrics.jsonl."""

    step: int
    time: float
    "Seconds since 1970, UTC."
    metrics: Mapping[str, float]
    epoch: float | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """One metric over a stage; steps rise strictly."""

    steps: list[int]
    values: list[float]
    times: list[float]


def parse_line(text: bytes | str) -> MetricLine | None:
    """Return a line's numbers, or None when it is not a line of metrics (a torn one, say)."""
    try:
        entry: Any = json.loads(text)
        metrics = {str(name): _number(value) for name, value in entry["metrics"].items()}
        epoch = entry.get("epoch")
        return MetricLine(
            step=int(entry["step"]),
            time=float(entry.get("time", 0.0)),
            metrics={name: value for name, value in metrics.items() if value is not None},
            epoch=None if epoch is None else float(epoch),
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def read_lines(path: Path) -> Iterator[MetricLine]:
    """Yield every complete line of a metrics file; nothing when there is no file."""
    if not path.is_file():
        return
    with MetricsTail(path) as tail:
        yield from tail.read()


def read_series(path: Path) -> dict[str, Series]:
    """Return every metric of a file by name, in the order of first appearance.

    A stage that goes on from a checkpoint repeats some steps; of equal steps the last line counts.
    """
    points: dict[str, dict[int, tuple[float, float]]] = {}
    for line in read_lines(path):
        for name, value in line.metrics.items():
            points.setdefault(name, {})[line.step] = (value, line.time)
    series: dict[str, Series] = {}
    for name, found in points.items():
        steps = sorted(found)
        series[name] = Series(steps, [found[s][0] for s in steps], [found[s][1] for s in steps])
    return series


def without_repeats(lines: Iterable[MetricLine], *, last_step: int = -1) -> list[MetricLine]:
    """Leave out lines below a step that was there before.

    A stage that goes on from a checkpoint repeats the steps after it, with equal numbers;
    dashboards see each step once.
    """
    kept = []
    for line in lines:
        if line.step >= last_step:
            last_step = line.step
            kept.append(line)
    return kept


@dataclass(slots=True)
class MetricsTail:
    """Follows a growing metrics file; keeps reading it after a rename."""

    path: Path
    published: Path | None = None
    "Where the file goes when its stage is committed; read there when it was never opened before."
    _file: BinaryIO | None = None
    _rest: bytes = b""
    _damaged: int = field(default=0)

    def read(self) -> Iterator[MetricLine]:
        """Yield the lines written since the last call. A line without its end waits."""
        if self._file is None:
            self._file = self._open()
        if self._file is None:
            return
        while block := self._file.read(1 << 20):
            *lines, self._rest = (self._rest + block).split(b"\n")
            for text in lines:
                line = parse_line(text)
                if line is not None:
                    yield line
                elif text.strip():
                    self._damaged += 1
                    if self._damaged == 1:
                        logger.warning("%s holds a line that is not a line of metrics", self.path)

    def _open(self) -> BinaryIO | None:
        for path in (self.path, self.published):
            with contextlib.suppress(FileNotFoundError):
                if path is not None:
                    return path.open("rb")
        return None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> MetricsTail:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        return NOT_FINITE.get(value)
    return None if isinstance(value, bool) or value is None else float(value)
