"""What the runner calls to have a run tracked: four calls a stage at most, none of which waits.

trackers = Trackers(run=name, tracking=config.tracking, folder=run_folder)
trackers.stage_started("ppo", kind="ppo", key=key, config=settings, parents={"policy": key_of_sft})
trackers.tail(work / "metrics.jsonl")
trackers.stage_ended(record)             # or stage_ended(None) when the stage failed
trackers.close()
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from pipeline.config.run import TrackingConfig
from pipeline.tracking.stage import Status, TrackedStage, enabled

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 5.0
ENDED_EARLY = "the process that feeds them ended early"


class Finished(Protocol):
    """A committed stage's record, as far as trackers read it."""

    @property
    def metrics(self) -> Mapping[str, float | str]:
        """Final metrics by name."""


class Trackers:
    """Tells a child process what to follow. Starts none when no tracker is on or no stage runs."""

    command: Sequence[str] = (sys.executable, "-P", "-m", "pipeline.tracking.follower")

    def __init__(self, *, run: str, tracking: TrackingConfig, folder: Path) -> None:
        self.run = run
        self.tracking = tracking
        self.folder = folder
        self.names = enabled(tracking)
        self.child: subprocess.Popen[str] | None = None
        self.listener: threading.Thread | None = None
        self.lost = False

    def stage_started(
        self, name: str, *, kind: str, key: str, config: Mapping[str, Any], parents: Mapping[str, str]
    ) -> None:
        """Begin to track a stage.

        Args:
            name: the stage's name in the run file.
            kind: its kind.
            key: its manifest key.
            config: its settings, resolved, as JSON-able values.
            parents: role -> key of the stage that made the input, or digest of the file.
        """
        stage = TrackedStage(self.run, name, kind, key, dict(config), dict(parents))
        self._tell({"do": "stage_started", "stage": stage.to_json()})

    def tail(self, metrics_file: Path) -> None:
        """Follow a metrics file that exists or will; it is read on after a rename."""
        self._tell({"do": "tail", "path": str(metrics_file.absolute())})

    def stage_ended(self, record: Finished | None, *, status: Status | None = None) -> None:
        """End the stage; its record's metrics go to the summary. None means that it failed."""
        ended: Status = status or ("complete" if record is not None else "failed")
        metrics = dict(record.metrics) if record is not None else {}
        self._tell({"do": "stage_ended", "status": ended, "record": {"metrics": metrics}})

    def close(self, *, wait_seconds: float = CLOSE_SECONDS) -> None:
        """Let the trackers finish, for a while; then they go on alone, and end by themselves."""
        if self.child is None:
            return
        try:
            if self.child.stdin is not None:
                self.child.stdin.close()
        except OSError:
            self._lose(ENDED_EARLY)
        try:
            if self.child.wait(wait_seconds) != 0:
                self._lose(ENDED_EARLY)
        except subprocess.TimeoutExpired:
            self._lose(f"they are still busy after {wait_seconds:g} s and go on alone")
        else:
            if self.listener is not None:
                self.listener.join(1.0)
        self.child = None

    def _tell(self, message: dict[str, Any]) -> None:
        if not self.names or self.lost:
            return
        try:
            if self.child is None:
                self.child = self._start()
            # A pipe does not always tell: a process that a tracker started may hold its other end.
            if self.child.poll() is not None:
                self._lose(ENDED_EARLY)
                return
            assert self.child.stdin is not None
            self.child.stdin.write(json.dumps(message) + "\n")
            self.child.stdin.flush()
        except OSError as error:
            self._lose(str(error.strerror or error))

    def _start(self) -> subprocess.Popen[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "tracking.log").open("ab") as log:
            child = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # Ctrl-C is for the stage; the follower ends when its input does.
                start_new_session=True,
            )
        assert child.stdin is not None
        assert child.stdout is not None
        opening = {
            "tracking": self.tracking.model_dump(mode="json"),
            "folder": str(self.folder.absolute()),
            "trackers": self.names,
        }
        child.stdin.write(json.dumps(opening) + "\n")
        # A child that hangs must not make the runner wait on a full pipe.
        os.set_blocking(child.stdin.fileno(), False)
        self.listener = threading.Thread(target=_listen, args=(child.stdout,), daemon=True)
        self.listener.start()
        return child

    def _lose(self, reason: str) -> None:
        if not self.lost:
            logger.warning(
                "trackers may miss points (%s); to send all: triptych track %s --to %s",
                reason,
                self.run,
                self.names[0],
            )
        self.lost = True


def _listen(stream: IO[str]) -> None:
    with stream:
        for line in stream:
            logger.warning("%s", line.rstrip())
