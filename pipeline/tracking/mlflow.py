"""MLflow as a reader of metrics: an experiment a project, an MLflow run a stage."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.run import TrackingConfig
from pipeline.tracking.lines import MetricLine
from pipeline.tracking.stage import Status, TrackedStage

MAX_BATCH = 1000
MAX_PARAM_CHARACTERS = 500
STATUS = {"complete": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class MlflowTracker:
    """Sends the metrics of one stage after another; a stage key keeps its MLflow run."""

    name = "mlflow"

    def __init__(self, tracking: TrackingConfig, folder: Path) -> None:
        from mlflow.tracking import MlflowClient

        # MLflow 3 refuses plain folders; a database file needs no server.
        local = f"sqlite:///{(folder / 'mlflow.db').resolve().as_posix()}"
        self.client = MlflowClient(tracking_uri=tracking.mlflow or local)
        self.project = tracking.project
        self.run_id = ""
        self.known: dict[str, set[int]] = {}

    def start(self, stage: TrackedStage) -> None:
        """Open the stage's MLflow run, or go on with the one that holds its key."""
        experiment = self.client.get_experiment_by_name(self.project)
        experiment_id = (
            experiment.experiment_id if experiment else self.client.create_experiment(self.project)
        )
        found = self.client.search_runs(
            [experiment_id], filter_string=f"tags.triptych_id = '{stage.run_id}'", max_results=1
        )
        self.known = {}
        if found:
            self.run_id = found[0].info.run_id
            self.client.update_run(self.run_id, status="RUNNING")
            for name in found[0].data.metrics:
                history = self.client.get_metric_history(self.run_id, name)
                self.known[name] = {point.step for point in history}
            return
        tags = {
            "mlflow.runName": f"{stage.run}/{stage.name}",
            "triptych_id": stage.run_id,
            "triptych_run": stage.run,
            "triptych_kind": stage.kind,
            "triptych_key": stage.key,
            **{f"triptych_parent.{role}": key for role, key in stage.parents.items()},
        }
        self.run_id = self.client.create_run(experiment_id, tags=tags).info.run_id
        for name, value in _flat(stage.config, ""):
            self.client.log_param(self.run_id, name, value)

    def log(self, lines: Sequence[MetricLine]) -> None:
        """Send points that MLflow does not hold yet, in batches it accepts."""
        from mlflow.entities import Metric

        points = []
        for line in lines:
            for name, value in line.metrics.items():
                steps = self.known.setdefault(name, set())
                if line.step not in steps:
                    steps.add(line.step)
                    points.append(Metric(name, value, int(line.time * 1000), line.step))
        for first in range(0, len(points), MAX_BATCH):
            self.client.log_batch(self.run_id, metrics=points[first : first + MAX_BATCH])

    def finish(self, status: Status, record: Mapping[str, Any]) -> None:
        """Close the MLflow run with the stage's final metrics."""
        if not self.run_id:
            return
        for name, value in record.get("metrics", {}).items():
            number = isinstance(value, (int, float)) and math.isfinite(value)
            if number and f"final/{name}" not in self.known:
                self.client.log_metric(self.run_id, f"final/{name}", value)
        self.client.set_terminated(self.run_id, status=STATUS[status])
        self.run_id = ""


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            yield f"{prefix}{key}", text[:MAX_PARAM_CHARACTERS]
