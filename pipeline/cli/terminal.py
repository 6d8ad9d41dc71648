"""Shows a run: a live line on a terminal, plain lines at most every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

QUIET_SECONDS = 10.0


class PlainDisplay:
    """Plain lines for logs and pipes."""

    def __init__(self) -> None:
        self._last = float("-inf")
        self._began: tuple[float, int] | None = None

    def say(self, text: str) -> None:
        """Print one line."""
        print(text, file=sys.stderr, flush=True)

    def stage(self, name: str, state: str, text: str = "") -> None:
        """Print a stage's new state."""
        self._last, self._began = float("-inf"), None
        self.say(f"{name}: {state}" + (f"  {text}" if text else ""))

    def progress(self, name: str, step: int, total: int, *, text: str) -> None:
        """Print how far a stage is, unless it was said a moment ago."""
        now = time.monotonic()
        # The first report comes after the first steps: the pace is that of those after it.
        began, first = self._began = self._began or (now, step)
        if now - self._last >= QUIET_SECONDS or step >= total:
            self._last = now
            left = time_left(now - began, step - first, total - step)
            self.say(" ".join(filter(None, [f"{name}: {step}/{total}", text, left])))


class RichDisplay:
    """A bar for the running stage, lines above it for what is done."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def say(self, text: str) -> None:
        """Print one line above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def stage(self, name: str, state: str, text: str = "") -> None:
        """Print a stage's new state; a running stage gets a bar."""
        if state == "running":
            self._open(name)
            return
        self._close()
        self.say(f"{name:<12} {state:<12} {text}".rstrip())

    def progress(self, name: str, step: int, total: int, *, text: str) -> None:
        """Move the bar."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, total=total, words=text)

    def _open(self, name: str) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._close()
        self._bar = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[words]}", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(name, total=None, words="")
        self._bar.start()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def time_left(seconds: float, done: int, left: int) -> str:
    """Return how long the steps to come will take at the pace of those done; nothing before it is known.

    Args:
        seconds: that the steps done took.
        done: steps that were timed.
        left: steps that are not done.
    """
    from pipeline.report.numbers import duration

    return f"({duration(seconds / done * left)} left)" if done > 0 and left > 0 else ""


def choose() -> PlainDisplay | RichDisplay:
    """Return the display that suits standard error."""
    return RichDisplay() if sys.stderr.isatty() else PlainDisplay()
