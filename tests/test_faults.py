"""A run that is killed or starved at any disk operation goes on to the same bytes; the short form.

The whole sweeps are in tests/faults/sweep.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.disk import Disk
from pipeline.locks import Holder, held, is_held
from pipeline.record import StageRecord
from pipeline.store import Store
from tests.fakes.engine import CHAIN, VALUES, Engine
from tests.faults import power_loss, sweep

RACERS = 8


@pytest.mark.parametrize(
    ("mode", "stride", "least"), [("kill", 8, 15), ("torn", 4, 4), ("twice", 50, 9), ("errno", 100, 12)]
)
def test_a_disturbed_run_goes_on_to_the_same_bytes(mode: str, stride: int, least: int) -> None:
    outcome = sweep.run(mode, stride)

    assert outcome.faults == ()
    assert outcome.states >= least


def test_the_sweep_notices_a_commit_in_pieces_that_nobody_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    def publish_in_pieces(disk: Disk, source: Path, target: Path) -> bool:
        target.mkdir(exist_ok=True)
        for path in sorted(source.rglob("*"), reverse=True):
            if path.is_file():
                disk.make_folder((target / path.relative_to(source)).parent)
                disk.copy(path, target / path.relative_to(source))
        return True

    def find_unchecked(store: Store, key: str) -> StageRecord | None:
        return store.load(key) if (store.stage_folder(key) / "record.json").exists() else None

    monkeypatch.setattr(Disk, "publish", publish_in_pieces)
    monkeypatch.setattr(Store, "find", find_unchecked)

    assert sweep.run("torn", 2).faults


def test_a_loss_of_power_at_any_moment_loses_nothing_that_was_reported() -> None:
    number, faults = power_loss.run(choices=1, stride=3)

    assert faults == []
    assert number >= 40


def test_the_model_of_power_loss_notices_a_disk_that_ignores_flushes() -> None:
    _, faults = power_loss.run(choices=1, stride=6, flushes=False)

    assert any("was reported and is gone" in fault for fault in faults)


def test_the_model_of_power_loss_notices_names_that_are_not_flushed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_loss.WatchedDisk, "sync_folder", Disk.sync_folder)

    _, faults = power_loss.run(choices=2, stride=6)

    assert any("was reported and is gone" in fault for fault in faults)


def test_the_model_of_power_loss_notices_bytes_that_nobody_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_by_size(store: Store, key: str) -> StageRecord | None:
        if not (store.stage_folder(key) / "record.json").exists():
            return None
        record = store.load(key)
        sizes = {
            file.path: (store.stage_folder(key) / file.path).stat().st_size for file in record.all_files()
        }
        return record if sizes == {file.path: file.size for file in record.all_files()} else None

    monkeypatch.setattr(Store, "find", find_by_size)
    monkeypatch.setattr(power_loss.WatchedDisk, "sync_file", Disk.sync_file)

    _, faults = power_loss.run(choices=12, first=-10)

    assert any("is served with other bytes" in fault for fault in faults)


def test_eight_runs_at_once_compute_each_step_once_and_agree(tmp_path: Path) -> None:
    names = [f"racer-{number}" for number in range(RACERS - 1)]
    engines = [Engine(tmp_path / "work", name=name, text=sweep.CHAIN) for name in names]
    # Two of the eight have the same name, so they also share the run's lock.
    racers = [engine.start() for engine in [*engines, engines[0]]]

    for racer in racers:
        racer.communicate(timeout=120)

    assert [racer.returncode for racer in racers] == [0] * RACERS
    assert engines[0].values() == {"first": VALUES["first"], "second": VALUES["second"]}
    steps = [f"{name} {step}" for name in ("first", "second") for step in (1, 2, 3)]
    assert sorted(engines[0].tally) == steps


def test_a_committer_that_comes_second_keeps_the_first_result(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "work", text=CHAIN)
    engine.run_here()
    first = engine.store.load(engine.stage_folders()["first"].name)
    work = engine.store.work_folder(first.key)
    (work / "output").mkdir(parents=True)
    (work / "output" / "other.txt").write_text("another answer")

    kept = engine.store.commit(first.model_copy(update={"notes": ("another answer",)}))

    assert kept == first
    assert engine.store.damages(first.key) == []
    assert not work.exists()


def test_a_lock_of_a_dead_process_is_free_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    program = (
        "import os, sys, pathlib\n"
        "from pipeline.locks import Holder, held\n"
        "with held(pathlib.Path(sys.argv[1]), Holder(os.getpid(), 'a test', 'now')):\n"
        "    os.kill(os.getpid(), 9)\n"
    )

    subprocess.run([sys.executable, "-c", program, str(path)], check=False)

    assert not is_held(path)
    with held(path, Holder(1, "a test", "now")):
        assert is_held(path)
