"""Locks say who holds them, wait or refuse, and never vanish."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pipeline.errors import BusyError, ExitCode, StoreError
from pipeline.locks import Holder, held, is_held

ANNA = Holder(17, "triptych run of 'demo'", "2026-01-01T00:00:00.000Z")


def test_who_does_not_wait_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "key.lock"
    with (
        held(path, ANNA),
        pytest.raises(BusyError, match=r"run of 'demo' \(process 17, since 2026") as caught,
        held(path, ANNA),
    ):
        pass

    assert caught.value.exit_code == ExitCode.BUSY


def test_who_waits_is_told_once_and_then_holds_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "key.lock"
    told: list[str] = []
    entered = threading.Event()
    leave = threading.Event()

    def first() -> None:
        with held(path, ANNA):
            entered.set()
            leave.wait(10)

    def tell(other: str) -> None:
        told.append(other)
        leave.set()

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait(10)
    with held(path, Holder(18, "another", "later"), waiting=tell):
        assert is_held(path)
    thread.join()

    assert told == ["triptych run of 'demo' (process 17, since 2026-01-01T00:00:00.000Z)"]
    assert path.exists()
    assert not is_held(path)


def test_a_lock_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "key.lock").mkdir()

    with pytest.raises(StoreError) as caught, held(tmp_path / "key.lock", ANNA):
        pass

    assert "key.lock" in caught.value.findings[0].where
