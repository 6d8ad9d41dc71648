"""A tracker that is killed in the middle of a run: training does not notice, and an upload completes it."""

from __future__ import annotations

import os
import time

import pytest

from pipeline.errors import ExitCode
from pipeline.tracking.trackers import Trackers
from pipeline.tracking.upload import tracker_for, upload
from tests.fakes.engine import CHAIN, VALUES, Engine
from tests.tracking.offline_file import read_run

TRACKED = CHAIN.replace('wandb: "off"', "wandb: offline")


@pytest.fixture(autouse=True)
def _no_account(monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)


def runs_of(engine):
    """Return what the offline files say; one that a killed process had only opened says nothing."""
    files = list(engine.store.run_folder("chain").glob("wandb/offline-run-*/*.wandb"))
    return [run for run in map(read_run, files) if "name" in run or run["history"]]


def wait_for(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("the tracker never started")


def test_a_tracker_killed_in_the_middle_harms_nothing_and_an_upload_completes_it(
    tmp_path, monkeypatch, caplog
):
    engine = Engine(tmp_path / "work", text=TRACKED)
    told = Trackers.tail

    def tail_and_kill(self, metrics_file):
        told(self, metrics_file)
        # The second stage has begun: the first one's file is open, its last lines may not be in it.
        if len(list(engine.store.root.glob("stages/*/*"))) == 1 and self.child is not None:
            wait_for(lambda: list(self.folder.glob("wandb/offline-run-*/*.wandb")))
            self.child.kill()
            self.child.wait()

    monkeypatch.setattr(Trackers, "tail", tail_and_kill)
    assert engine.run_here() == ExitCode.OK

    alone = Engine(tmp_path / "alone")
    alone.run_here()
    assert engine.values() == VALUES
    assert engine.outputs() == alone.outputs()
    assert any("triptych track chain --to wandb" in record.getMessage() for record in caplog.records)
    time.sleep(1.1)  # offline folders are named by the second

    upload(engine.store, "chain", tracker=tracker_for(engine.store, "chain", "wandb"))

    # W&B's own process writes the last records a moment after it said that it is done.
    wait_for(lambda: [run.get("exit_code") for run in runs_of(engine)] == [0, 0, 0])
    runs = {run["name"]: run for run in runs_of(engine)}
    assert len(runs) == len(runs_of(engine)) == 3
    for run in runs.values():
        points = [(row["_step"], row["loss"]) for row in run["history"] if "loss" in row]
        assert points == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
        assert run["exit_code"] == 0


def test_every_metric_of_every_stage_is_in_the_offline_files(tmp_path):
    engine = Engine(tmp_path / "work", text=TRACKED)
    engine.run_here()
    keys = {name: folder.name for name, folder in engine.stage_folders().items()}
    # Two stages log through the store's file as it stands: what it holds is what the dashboard holds.
    wait_for(lambda: sum(run.get("exit_code") == 0 for run in runs_of(engine)) == 3)

    runs = {run["name"]: run for run in runs_of(engine)}

    assert {run["group"] for run in runs.values()} == {"chain"}
    assert runs["first"]["job_type"] == "tests.fakes.source"
    assert {name: run["config"]["manifest"]["key"] for name, run in runs.items()} == keys
    assert runs["third"]["config"]["manifest"]["parents"] == {
        "parent": keys["second"],
        "other": keys["first"],
    }
    for name, run in runs.items():
        record = engine.store.load(keys[name])
        assert {metric: run["summary"][metric] for metric in record.metrics} == record.metrics
