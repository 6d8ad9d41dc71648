"""A record says why the same settings may give other bytes another time."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import make
from pipeline.record import AttemptRecord, EnvironmentRecord, reasons_for_other_bits
from tests.fakes.engine import Engine

HERE = EnvironmentRecord(python="3.11.7", system="Linux", machine="x86_64", packages={"torch": "2.13.0"})


def _attempts(*versions: str) -> tuple[AttemptRecord, ...]:
    return tuple(
        AttemptRecord(
            number=number,
            started="2026-11-21T00:00:00.000Z",
            environment=HERE.model_copy(update={"packages": {"torch": version}}),
        )
        for number, version in enumerate(versions, start=1)
    )


def test_one_environment_on_a_cpu_gives_no_reason() -> None:
    assert reasons_for_other_bits(HERE, _attempts("2.13.0", "2.13.0")) == []


def test_a_device_other_than_a_cpu_is_a_reason() -> None:
    (reason,) = reasons_for_other_bits(HERE.model_copy(update={"device": "NVIDIA H200"}), ())

    assert "NVIDIA H200" in reason


def test_a_stage_that_goes_on_in_another_environment_says_so_in_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(tmp_path / "work")
    monkeypatch.setattr(make, "environment", lambda: HERE)
    engine.run_here("first.trouble=memory")
    monkeypatch.setattr(
        make, "environment", lambda: HERE.model_copy(update={"packages": {"torch": "2.14.0"}})
    )

    engine.run_here()

    notes = engine.store.load(engine.stage_folders()["first"].name).notes
    expected = "went on in another environment (torch 2.13.0 -> 2.14.0): not an exact resume"
    assert expected in notes
    second = engine.store.load(engine.stage_folders()["second"].name)
    assert not [note for note in second.notes if "environment" in note]
