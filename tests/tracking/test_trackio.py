"""Trackio holds what metrics.jsonl holds, once, however often a run is sent."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from pipeline.errors import ExitCode
from pipeline.tracking.upload import tracker_for, upload
from tests.fakes.engine import CHAIN, Engine

SEND = """
import sys
from pathlib import Path
from pipeline.store import Store
from pipeline.errors import ExitCode
from pipeline.tracking.upload import tracker_for, upload
store = Store(Path("store"))
upload(store, "chain", tracker=tracker_for(store, "chain", "trackio"))
"""
READ = """
import json, trackio
from trackio.sqlite_storage import SQLiteStorage
found = {}
for run in trackio.Api().runs("triptych"):
    rows = SQLiteStorage.get_logs("triptych", run.name, run_id=run.id)
    found[run.name] = {"rows": rows, "config": run.config}
print(json.dumps(found))
"""


@pytest.fixture
def engine(tmp_path):
    engine = Engine(tmp_path / "work")
    engine.run_here()
    return engine


def python(engine, code):
    """Trackio reads its folder when it is imported, so each look is a process of its own."""
    folder = engine.store.run_folder("chain") / "trackio"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=engine.folder,
        env={**os.environ, "TRACKIO_DIR": str(folder.absolute())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_trackio_holds_each_point_once_after_two_uploads(engine):
    pytest.importorskip("trackio")
    import json

    python(engine, SEND)
    python(engine, SEND)

    found = json.loads(python(engine, READ).splitlines()[-1])
    keys = {name: folder.name for name, folder in engine.stage_folders().items()}
    stages = {value["config"]["manifest"]["stage"]: value for value in found.values()}
    assert len(found) == len(stages) == 3
    for name, value in stages.items():
        points = [(row["step"], row["loss"]) for row in value["rows"] if "loss" in row]
        assert points == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
        assert value["config"]["manifest"]["key"] == keys[name]
    assert stages["third"]["config"]["manifest"]["parents"]["parent"] == keys["second"]
    assert [row["final/value"] for row in stages["third"]["rows"] if "final/value" in row] == [31.0]


def test_trackio_follows_a_run_while_it_goes_on(tmp_path):
    pytest.importorskip("trackio")
    import json

    engine = Engine(tmp_path / "work", text=CHAIN.replace('wandb: "off"', 'wandb: "off", trackio: true'))
    assert engine.run() == ExitCode.OK
    # The process that feeds it may still be at the last stage.
    for _ in range(60):
        found = json.loads(python(engine, READ).splitlines()[-1])
        rows = {value["config"]["manifest"]["stage"]: value["rows"] for value in found.values()}
        if sum(row.get("status") == "complete" for stage in rows.values() for row in stage) == 3:
            break
        time.sleep(1)

    assert {stage: [row["step"] for row in given if "loss" in row] for stage, given in rows.items()} == {
        "first": [1, 2, 3],
        "second": [1, 2, 3],
        "third": [1, 2, 3],
    }


class FakeTrackio:
    """The calls that the tracker makes, on a list in place of a database."""

    def __init__(self):
        self.stored = []

    def Api(self):
        return self

    def runs(self, project):
        if not self.stored:
            raise ValueError("no such project")
        return list(self.stored)

    def init(self, *, project, name, **options):
        assert options["resume"] == "never"
        run = FakeRun(self, name, options)
        self.stored.append(run)
        return run


class FakeRun:
    def __init__(self, server, name, options):
        self.server, self.name, self.options, self.rows, self.open = server, name, options, [], True

    def log(self, metrics, *, step):
        self.rows.append((step, metrics))

    def delete(self):
        self.server.stored.remove(self)

    def finish(self):
        self.open = False


def test_a_stage_that_is_sent_again_replaces_its_run(engine, monkeypatch):
    server = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", server)
    monkeypatch.setenv("TRACKIO_DIR", "unused")

    for _ in range(2):
        upload(engine.store, "chain", tracker=tracker_for(engine.store, "chain", "trackio"))

    assert len(server.stored) == 3
    first = next(run for run in server.stored if run.name.startswith("chain/first "))
    assert [step for step, metrics in first.rows if "loss" in metrics] == [1, 2, 3]
    assert first.rows[-1][1]["final/value"] == 10.0
    assert first.options["group"] == "chain"
    assert first.options["config"]["job_type"] == "tests.fakes.source"
    assert not first.open
