"""Trackio as a reader of metrics: a group a run, a Trackio run a stage, in a database beside the manifest."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.run import TrackingConfig
from pipeline.tracking.lines import MetricLine
from pipeline.tracking.stage import Status, TrackedStage


class TrackioTracker:
    """Writes a local Trackio database; a stage that starts again is written anew.

    Trackio stamps each point with the time of writing; the steps are those of metrics.jsonl.
    """

    name = "trackio"

    def __init__(self, tracking: TrackingConfig, folder: Path) -> None:
        # Read when trackio is imported; its default is a cache in the home folder.
        os.environ.setdefault("TRACKIO_DIR", str(folder.absolute()))
        import trackio

        self.trackio: Any = trackio
        self.project = tracking.project
        self.run: Any = None
        self.last_step = 0

    def start(self, stage: TrackedStage) -> None:
        """Open the stage's run, in place of one that an earlier attempt or upload left."""
        name = f"{stage.run}/{stage.name} {stage.run_id}"
        try:
            earlier = [run for run in self.trackio.Api().runs(self.project) if run.name == name]
        except ValueError:
            # The project has no database yet.
            earlier = []
        for run in earlier:
            run.delete()
        self.last_step = 0
        config = {**stage.described(), "job_type": stage.kind}
        self.run = self.trackio.init(
            project=self.project,
            name=name,
            group=stage.run,
            config=config,
            resume="never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, lines: Sequence[MetricLine]) -> None:
        """Log lines under their own step."""
        for line in lines:
            self.last_step = line.step
            epoch = {} if line.epoch is None else {"epoch": line.epoch}
            self.run.log({**line.metrics, **epoch}, step=line.step)

    def finish(self, status: Status, record: Mapping[str, Any]) -> None:
        """Write the final metrics at the last step, and close the run."""
        if self.run is None:
            return
        final = {f"final/{name}": value for name, value in record.get("metrics", {}).items()}
        self.run.log({**final, "status": status}, step=self.last_step)
        self.run.finish()
        self.run = None
