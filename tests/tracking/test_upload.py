"""A finished run goes to a dashboard from the store alone, as often as one likes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.tracking.lines import MetricLine
from pipeline.tracking.stage import TrackedStage
from pipeline.tracking.upload import tracker_for, upload
from tests.fakes.engine import Engine
from tests.tracking.offline_file import read_run


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    engine = Engine(tmp_path / "work")
    engine.run_here()
    return engine


@pytest.fixture(autouse=True)
def _no_account(monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)


class Recording:
    name = "recording"

    def __init__(self) -> None:
        self.stages: dict[str, TrackedStage] = {}
        self.points: dict[str, list[int]] = {}
        self.ends: dict[str, Mapping[str, Any]] = {}

    def start(self, stage: TrackedStage) -> None:
        self.now = stage.name
        self.stages[stage.name] = stage
        self.points[stage.name] = []

    def log(self, lines: Sequence[MetricLine]) -> None:
        self.points[self.now] += [line.step for line in lines]

    def finish(self, status: str, record: Mapping[str, Any]) -> None:
        self.ends[self.now] = record


def test_every_stage_is_sent_with_its_key_parents_points_and_final_metrics(engine):
    tracker = Recording()

    assert upload(engine.store, "chain", tracker=tracker) == 3

    keys = {name: folder.name for name, folder in engine.stage_folders().items()}
    assert {name: stage.key for name, stage in tracker.stages.items()} == keys
    assert tracker.stages["third"].parents["parent"] == keys["second"]
    assert tracker.points == {"first": [1, 2, 3], "second": [1, 2, 3], "third": [1, 2, 3]}
    assert tracker.ends["third"]["metrics"]["value"] == 31.0


def test_sending_a_run_twice_leaves_one_offline_file_a_stage(engine, monkeypatch):
    for _ in range(2):
        tracker = tracker_for(engine.store, "chain", "wandb")
        upload(engine.store, "chain", tracker=tracker)

    files = list(engine.store.run_folder("chain").glob("wandb/offline-run-*/*.wandb"))
    runs = {run["name"]: run for run in map(read_run, files)}
    assert sorted(runs) == ["first", "second", "third"]
    assert len(files) == 3
    assert all(run["group"] == "chain" for run in runs.values())
    assert [row["_step"] for row in runs["first"]["history"] if "loss" in row] == [1, 2, 3]


def test_a_tracker_that_refuses_is_one_clear_error(engine):
    class Refusing(Recording):
        def log(self, lines: Sequence[MetricLine]) -> None:
            raise ConnectionError("no route")

    with pytest.raises(UserError, match="recording did not take stage first: no route"):
        upload(engine.store, "chain", tracker=Refusing())


def test_a_package_that_is_not_installed_is_named_with_the_remedy(engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)

    with pytest.raises(UserError, match="mlflow") as caught:
        tracker_for(engine.store, "chain", "mlflow")

    assert "pip install" in str(caught.value)


class FakeMlflow:
    """The calls of MLflow's client that the tracker makes, on a dict in place of a server."""

    def __init__(self) -> None:
        self.runs: dict[str, SimpleNamespace] = {}

    def client(self, tracking_uri: str) -> FakeMlflow:
        return self

    def get_experiment_by_name(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(experiment_id="7")

    def search_runs(self, experiments: list[str], filter_string: str, max_results: int) -> list[Any]:
        wanted = filter_string.split("'")[1]
        return [run for run in self.runs.values() if run.tags["triptych_id"] == wanted]

    def create_run(self, experiment: str, tags: dict[str, str]) -> SimpleNamespace:
        run_id = str(len(self.runs))
        data = SimpleNamespace(metrics={}, params={})
        self.runs[run_id] = SimpleNamespace(
            info=SimpleNamespace(run_id=run_id), tags=tags, data=data, history={}, status="RUNNING"
        )
        return self.runs[run_id]

    def update_run(self, run_id: str, status: str) -> None:
        self.runs[run_id].status = status

    def get_metric_history(self, run_id: str, name: str) -> list[Any]:
        return self.runs[run_id].history[name]

    def log_param(self, run_id: str, name: str, value: str) -> None:
        self.runs[run_id].data.params[name] = value

    def log_batch(self, run_id: str, metrics: list[Any]) -> None:
        for point in metrics:
            self.runs[run_id].data.metrics[point.key] = point.value
            self.runs[run_id].history.setdefault(point.key, []).append(point)

    def log_metric(self, run_id: str, name: str, value: float) -> None:
        self.log_batch(run_id, [SimpleNamespace(key=name, value=value, step=0)])

    def set_terminated(self, run_id: str, status: str) -> None:
        self.runs[run_id].status = status


def test_mlflow_holds_each_point_once_after_two_uploads(engine, monkeypatch):
    server = FakeMlflow()
    tracking, entities = ModuleType("mlflow.tracking"), ModuleType("mlflow.entities")
    tracking.MlflowClient = server.client  # type: ignore[attr-defined]
    entities.Metric = lambda key, value, time, step: SimpleNamespace(  # type: ignore[attr-defined]
        key=key, value=value, step=step
    )
    for name, module in {
        "mlflow": ModuleType("mlflow"),
        "mlflow.tracking": tracking,
        "mlflow.entities": entities,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)

    for _ in range(2):
        upload(
            engine.store, "chain", tracker=tracker_for(engine.store, "chain", "mlflow", address="http://x")
        )

    assert len(server.runs) == 3
    first = next(run for run in server.runs.values() if run.tags["mlflow.runName"] == "chain/first")
    assert [point.step for point in first.history["loss"]] == [1, 2, 3]
    assert len(first.history["final/value"]) == 1
    assert first.tags["triptych_kind"] == "tests.fakes.source"
    assert first.data.params["rate"] == "1.0"
    assert first.status == "FINISHED"
