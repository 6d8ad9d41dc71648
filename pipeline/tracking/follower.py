"""The child process that follows metrics files and feeds the trackers.

It is told what to follow by JSON lines on its standard input, and says what failed on its
standard output. When its input ends it finishes what it has: training never waits for it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from pipeline.config.run import TrackingConfig
from pipeline.store import METRICS_NAME, Store
from pipeline.tracking.lines import MetricsTail, without_repeats
from pipeline.tracking.stage import Status, TrackedStage, Tracker, make

POLL_SECONDS = 0.5
LAST_SECONDS = 120.0
"How long trackers may go on sending after the run has ended."
END: dict[str, Any] = {"do": "close"}


@dataclass(slots=True)
class Guarded:
    """A tracker behind the one place where any failure of it ends: it is dropped and named."""

    name: str
    make: Callable[[], Tracker]
    say: Callable[[str], None]
    dropped: bool = False
    tracker: Tracker | None = None

    def call(self, method: str, *arguments: Any) -> None:
        """Call a method of the tracker; after a first failure, do nothing."""
        if self.dropped:
            return
        try:
            self.tracker = self.tracker or self.make()
            getattr(self.tracker, method)(*arguments)
        except Exception as error:  # noqa: BLE001 - a dashboard may fail in any way and must not matter
            self.dropped = True
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self.say(f"{self.name} is left out from here on ({reason}); metrics.jsonl has everything")


@dataclass(slots=True)
class Follower:
    """Follows one stage after another."""

    trackers: list[Guarded]
    published: Callable[[str], Path]
    "Stage key -> where its metrics file goes when the stage is committed."
    tail: MetricsTail | None = None
    stage: TrackedStage | None = None
    last_step: int = -1

    def handle(self, message: Mapping[str, Any]) -> None:
        """Do what one message says."""
        if message["do"] == "stage_started":
            self.end("interrupted", {})
            self.stage = TrackedStage(**message["stage"])
            self.last_step = -1
            self.each("start", self.stage)
        elif message["do"] == "tail" and self.stage is not None:
            self.tail = MetricsTail(Path(message["path"]), self.published(self.stage.key))
        elif message["do"] == "stage_ended":
            self.end(message["status"], message["record"])

    def poll(self) -> None:
        """Pass on the lines that were written since the last time."""
        if self.tail is None:
            return
        lines = without_repeats(self.tail.read(), last_step=self.last_step)
        if lines:
            self.last_step = lines[-1].step
            self.each("log", lines)

    def end(self, status: Status, record: Mapping[str, Any]) -> None:
        """Pass on the last lines and close the stage."""
        if self.stage is None:
            return
        self.poll()
        if self.tail is not None:
            self.tail.close()
            self.tail = None
        self.each("finish", status, record)
        self.stage = None

    def each(self, method: str, *arguments: Any) -> None:
        for tracker in self.trackers:
            tracker.call(method, *arguments)


def follow(
    messages: TextIO,
    say: Callable[[str], None],
    *,
    poll_seconds: float = POLL_SECONDS,
    at_end: Callable[[], None] = lambda: None,
) -> None:
    """Follow until the messages end; the first one names the trackers and the run's folder.

    Args:
        messages: JSON lines.
        say: told what a person must know.
        poll_seconds: time between two looks at the metrics file.
        at_end: called by another thread when the messages end.
    """
    inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    opening = json.loads(messages.readline())
    threading.Thread(target=_read, args=(messages, inbox, at_end), daemon=True).start()
    tracking = TrackingConfig.model_validate(opening["tracking"])
    folder = Path(opening["folder"])
    store = Store(folder.parent.parent)
    follower = Follower(
        [_guarded(name, tracking, folder, say) for name in opening["trackers"]],
        published=lambda key: store.stage_folder(key) / METRICS_NAME,
    )
    while True:
        try:
            message = inbox.get(timeout=poll_seconds)
        except queue.Empty:
            follower.poll()
            continue
        if message == END:
            follower.end("interrupted", {})
            return
        follower.handle(message)


def _guarded(name: str, tracking: TrackingConfig, folder: Path, say: Callable[[str], None]) -> Guarded:
    return Guarded(name, lambda: make(name, tracking=tracking, folder=folder), say)


def _read(messages: TextIO, inbox: queue.SimpleQueue[dict[str, Any]], at_end: Callable[[], None]) -> None:
    try:
        for text in messages:
            inbox.put(json.loads(text))
    finally:
        inbox.put(END)
        at_end()


def _give_up_later(seconds: float) -> None:
    """End this process after a while, whatever a tracker waits for."""
    timer = threading.Timer(seconds, os._exit, args=(1,))
    timer.daemon = True
    timer.start()


def main() -> None:
    """Follow what standard input says; keep standard output for what the parent must hear.

    Both are this process's own: what trackers start inherits an empty input and the log.
    """
    messages = os.fdopen(os.dup(0), encoding="utf-8")
    spoken = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)

    def say(text: str) -> None:
        # The run may have ended before a tracker gave up.
        with contextlib.suppress(BrokenPipeError):
            spoken.write(text + "\n")
            spoken.flush()

    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    follow(messages, say, at_end=lambda: _give_up_later(LAST_SECONDS))


if __name__ == "__main__":
    main()
