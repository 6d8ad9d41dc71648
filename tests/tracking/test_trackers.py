"""Dashboards hold what metrics.jsonl holds, and none of them can hurt a run."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.config.run import TrackingConfig
from pipeline.tracking.follower import Follower, Guarded
from pipeline.tracking.lines import MetricLine
from pipeline.tracking.stage import TrackedStage, enabled
from pipeline.tracking.trackers import Trackers
from pipeline.tracking.wandb import mode
from tests.tracking.offline_file import read_run

KEY = "ab" * 32
PARENT = "cd" * 32
RECORD = SimpleNamespace(metrics={"accuracy": 0.75})


@pytest.fixture(autouse=True)
def _no_account(monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)


def write(path: Path, steps: Sequence[int]) -> None:
    with path.open("a") as file:
        for step in steps:
            row = {"step": step, "time": 1.7e9 + step, "metrics": {"loss": 1 / (step + 1)}, "epoch": 0.5}
            file.write(json.dumps(row) + "\n")


def track(folder: Path, metrics: Path, steps: Sequence[int], tracking: TrackingConfig, **end: Any) -> None:
    trackers = Trackers(run="demo", tracking=tracking, folder=folder)
    trackers.stage_started("align", kind="dpo", key=KEY, config={"beta": 0.1}, parents={"policy": PARENT})
    trackers.tail(metrics)
    write(metrics, steps)
    trackers.stage_ended(end.get("record", RECORD), status=end.get("status"))
    trackers.close(wait_seconds=120)


def offline_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"))


def test_an_offline_file_holds_group_job_type_keys_and_every_point(tmp_path):
    track(tmp_path, tmp_path / "metrics.jsonl", range(40), TrackingConfig())

    (file,) = offline_files(tmp_path)
    run = read_run(file)
    assert (run["group"], run["job_type"], run["name"], run["project"]) == (
        "demo",
        "dpo",
        "align",
        "triptych",
    )
    assert run["config"]["beta"] == 0.1
    assert run["config"]["manifest"]["key"] == KEY
    assert run["config"]["manifest"]["parents"] == {"policy": PARENT}
    points = {row["_step"]: row["loss"] for row in run["history"] if "loss" in row}
    assert points == {step: pytest.approx(1 / (step + 1)) for step in range(40)}
    assert run["history"][7]["_timestamp"] == 1.7e9 + 7
    assert run["summary"]["accuracy"] == 0.75
    assert run["exit_code"] == 0
    (artifact,) = run["artifacts"]
    assert json.loads(artifact.metadata) == {"key": KEY, "parents": {"policy": PARENT}}


def test_an_offline_file_names_neither_the_machine_nor_its_folders(tmp_path):
    track(tmp_path, tmp_path / "metrics.jsonl", range(3), TrackingConfig())

    content = offline_files(tmp_path)[0].read_bytes()
    for word in (str(tmp_path), str(Path.home()), sys.executable):
        assert word.encode() not in content
    assert read_run(offline_files(tmp_path)[0])["host"] == "triptych" != socket.gethostname()


def test_a_stage_that_goes_on_keeps_its_run_id_and_no_point_twice(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    track(tmp_path, metrics, range(10), TrackingConfig(), record=None, status="interrupted")
    (first,) = offline_files(tmp_path)
    first_id = read_run(first)["id"]
    time.sleep(1.1)  # offline folders are named by the second

    track(tmp_path, metrics, range(10, 20), TrackingConfig())

    (second,) = offline_files(tmp_path)
    run = read_run(second)
    assert second != first
    assert run["id"] == first_id
    assert [row["_step"] for row in run["history"] if "loss" in row] == list(range(20))


def test_a_failed_stage_is_marked_as_failed(tmp_path):
    track(tmp_path, tmp_path / "metrics.jsonl", range(2), TrackingConfig(), record=None)

    run = read_run(offline_files(tmp_path)[0])
    assert run["exit_code"] == 1
    assert run["summary"]["status"] == "failed"
    assert run["artifacts"] == []


def test_tensorboard_holds_every_point_once_after_a_second_attempt(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracking = TrackingConfig(wandb="off", tensorboard=True)
    metrics = tmp_path / "metrics.jsonl"
    track(tmp_path, metrics, range(5), tracking, record=None)
    track(tmp_path, metrics, range(5, 9), tracking)

    (file,) = (tmp_path / "tensorboard" / "align").iterdir()
    events = EventAccumulator(str(file.parent))
    events.Reload()
    points = [(point.step, point.wall_time) for point in events.Scalars("loss")]
    assert points == [(step, 1.7e9 + step) for step in range(9)]
    assert socket.gethostname() not in file.name.split(".")
    assert KEY.encode() in events.Tensors("config")[0].tensor_proto.string_val[0]


def test_switched_off_no_child_is_started(tmp_path):
    trackers = Trackers(run="demo", tracking=TrackingConfig(wandb="off"), folder=tmp_path)

    trackers.stage_started("sft", kind="sft", key=KEY, config={}, parents={})
    trackers.stage_ended(RECORD)
    trackers.close()

    assert trackers.child is None
    assert list(tmp_path.iterdir()) == []


def test_the_end_of_a_killed_child_is_said_once_and_disturbs_nothing(tmp_path, caplog):
    metrics = tmp_path / "metrics.jsonl"
    trackers = Trackers(run="demo", tracking=TrackingConfig(), folder=tmp_path)
    trackers.stage_started("sft", kind="sft", key=KEY, config={}, parents={})
    assert trackers.child is not None
    trackers.child.kill()
    trackers.child.wait()

    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            trackers.tail(metrics)
            trackers.stage_ended(RECORD)
            trackers.stage_started("dpo", kind="dpo", key=PARENT, config={}, parents={})
        trackers.close()

    (message,) = [record.getMessage() for record in caplog.records]
    assert "triptych track demo --to wandb" in message


HOLDS_THE_PIPE = """\
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("ready", flush=True)
time.sleep(60)
"""


def test_a_killed_child_is_noticed_while_another_process_holds_its_pipe(tmp_path, caplog):
    trackers = Trackers(run="demo", tracking=TrackingConfig(), folder=tmp_path)
    trackers.command = (sys.executable, "-c", HOLDS_THE_PIPE)
    trackers.stage_started("sft", kind="sft", key=KEY, config={}, parents={})
    child = trackers.child
    assert child is not None
    assert trackers.listener is not None
    while not caplog.records:
        trackers.listener.join(0.05)
    child.kill()
    child.wait()
    caplog.clear()

    trackers.stage_ended(RECORD)
    os.killpg(child.pid, signal.SIGKILL)

    (message,) = [record.getMessage() for record in caplog.records]
    assert "triptych track demo --to wandb" in message


TELLS_ITS_PIPES = (
    "import os; print(*(os.readlink(f'/proc/self/fd/{number}') for number in (0, 1)), flush=True)"
)


def test_what_a_tracker_starts_inherits_neither_pipe_of_the_follower(tmp_path):
    code = (
        "import subprocess, sys; import pipeline.tracking.follower as f; "
        f"tell = [sys.executable, '-c', {TELLS_ITS_PIPES!r}]; "
        "f.make = lambda *a, **k: subprocess.run(tell).missing; f.main()"
    )
    opening = {"tracking": {}, "folder": str(tmp_path / "runs" / "demo"), "trackers": ["wandb"]}
    lines = [opening, message("stage_started", stage=TrackedStage("demo", "sft", "sft", KEY, {}).to_json())]
    log = tmp_path / "log.txt"

    with log.open("w") as heard:
        done = subprocess.run(
            [sys.executable, "-c", code],
            input="".join(json.dumps(line) + "\n" for line in lines),
            stdout=subprocess.PIPE,
            stderr=heard,
            text=True,
            timeout=120,
            check=True,
        )

    assert log.read_text().split() == [os.devnull, str(log)]
    assert done.stdout.startswith("wandb is left out")


def test_a_child_that_hangs_makes_nobody_wait(tmp_path, caplog):
    trackers = Trackers(run="demo", tracking=TrackingConfig(), folder=tmp_path)
    trackers.command = (sys.executable, "-c", "import time; time.sleep(900)")
    large = {"text": "x" * 100_000}  # more than a pipe holds

    trackers.stage_started("sft", kind="sft", key=KEY, config=large, parents={})
    trackers.stage_started("sft", kind="sft", key=KEY, config=large, parents={})
    child = trackers.child
    assert child is not None
    began = time.monotonic()
    trackers.close(wait_seconds=0.2)
    child.kill()
    child.wait()

    assert trackers.lost
    assert len(caplog.records) == 1
    assert time.monotonic() - began < 300


def test_a_follower_that_waits_for_a_dead_address_ends_by_itself(tmp_path):
    # The follower is told that its run ended, while a tracker hangs.
    code = (
        "import sys, time, threading; import pipeline.tracking.follower as f; "
        "f.LAST_SECONDS = 0.2; f.make = lambda *a, **k: time.sleep(900); f.main()"
    )
    opening = {"tracking": {}, "folder": str(tmp_path / "runs" / "demo"), "trackers": ["wandb"]}
    stage = TrackedStage("demo", "sft", "sft", KEY, {}).to_json()
    lines = [opening, message("stage_started", stage=stage)]

    done = subprocess.run(
        [sys.executable, "-c", code],
        input="".join(json.dumps(line) + "\n" for line in lines),
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 1


class Recording:
    """A tracker that notes its calls, and may fail at one of them."""

    name = "recording"

    def __init__(self, fails_at: str = "") -> None:
        self.calls: list[str] = []
        self.steps: list[int] = []
        self.fails_at = fails_at

    def note(self, call: str) -> None:
        self.calls.append(call)
        if call == self.fails_at:
            raise ConnectionError("no\nroute")

    def start(self, stage: TrackedStage) -> None:
        self.note("start")

    def log(self, lines: Sequence[MetricLine]) -> None:
        self.steps += [line.step for line in lines]
        self.note("log")

    def finish(self, status: str, record: Mapping[str, Any]) -> None:
        self.note("finish")


def message(do: str, **fields: Any) -> dict[str, Any]:
    return {"do": do, **fields}


@pytest.mark.parametrize("fails_at", ["start", "log", "finish"])
def test_a_tracker_that_raises_is_dropped_and_the_others_go_on(tmp_path, fails_at):
    said: list[str] = []
    bad, good = Recording(fails_at), Recording()
    follower = Follower(
        [Guarded("bad", lambda: bad, said.append), Guarded("good", lambda: good, said.append)],
        published=lambda key: tmp_path / key,
    )
    stage = TrackedStage("demo", "sft", "sft", KEY, {}).to_json()

    for part in ("a", "b"):
        metrics = tmp_path / f"{part}.jsonl"
        write(metrics, [1, 2])
        follower.handle(message("stage_started", stage=stage))
        follower.handle(message("tail", path=str(metrics)))
        follower.poll()
        follower.handle(message("stage_ended", status="complete", record={}))

    assert good.calls == ["start", "log", "finish"] * 2
    assert good.steps == [1, 2, 1, 2]
    assert bad.calls[-1] == fails_at
    assert bad.calls.count(fails_at) == 1
    assert said == ["bad is left out from here on (ConnectionError: no route); metrics.jsonl has everything"]


def test_a_stage_committed_before_its_file_was_opened_is_read_where_it_was_published(tmp_path):
    good = Recording()
    follower = Follower([Guarded("good", lambda: good, print)], published=lambda key: tmp_path / key)
    write(tmp_path / KEY, [1, 2, 3])

    stage = TrackedStage("demo", "sft", "sft", KEY, {}).to_json()
    follower.handle(message("stage_started", stage=stage))
    follower.handle(message("tail", path=str(tmp_path / "work.jsonl")))
    follower.handle(message("stage_ended", status="complete", record={}))

    assert good.steps == [1, 2, 3]


def test_steps_that_a_resumed_stage_repeats_are_sent_once(tmp_path):
    good = Recording()
    follower = Follower([Guarded("good", lambda: good, print)], published=lambda key: tmp_path / key)
    write(tmp_path / "work.jsonl", [1, 2, 3, 2, 3, 4])

    stage = TrackedStage("demo", "sft", "sft", KEY, {}).to_json()
    follower.handle(message("stage_started", stage=stage))
    follower.handle(message("tail", path=str(tmp_path / "work.jsonl")))
    follower.handle(message("stage_ended", status="complete", record={}))

    # The second 3 has the step of the last line, as two lines of one step may.
    assert good.steps == [1, 2, 3, 3, 4]


def test_a_package_that_is_not_installed_drops_its_tracker_only(tmp_path):
    said: list[str] = []

    def missing() -> Recording:
        raise ModuleNotFoundError("No module named 'mlflow'")

    good = Recording()
    follower = Follower(
        [Guarded("mlflow", missing, said.append), Guarded("good", lambda: good, said.append)],
        published=lambda key: tmp_path / key,
    )
    follower.handle(message("stage_started", stage=TrackedStage("r", "sft", "sft", KEY, {}).to_json()))

    assert good.calls == ["start"]
    assert "mlflow is left out" in said[0]


@pytest.mark.parametrize(
    ("setting", "environment", "expected"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "x"}, "online"),
        ("auto", {"WANDB_API_KEY": "x", "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "disabled"}, "disabled"),
        ("online", {}, "online"),
        ("offline", {"WANDB_API_KEY": "x"}, "offline"),
        ("off", {"WANDB_API_KEY": "x"}, "disabled"),
    ],
)
def test_wandb_goes_online_only_when_told_or_when_a_key_is_set(setting, environment, expected):
    assert mode(TrackingConfig(wandb=setting), environment) == expected


def test_the_tracking_block_names_the_trackers():
    assert enabled(TrackingConfig()) == ["wandb"]
    assert enabled(TrackingConfig(wandb="off")) == []
    assert enabled(TrackingConfig(tensorboard=True, mlflow="http://x")) == ["wandb", "tensorboard", "mlflow"]


def test_the_run_id_follows_from_the_stage_key_alone():
    one = TrackedStage("a", "sft", "sft", KEY, {}).run_id

    assert TrackedStage("b", "other", "sft", KEY, {"x": 1}).run_id == one
    assert TrackedStage("a", "sft", "sft", PARENT, {}).run_id != one
