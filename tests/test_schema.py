"""Documents of every version that was ever released can be read, and newer ones say so."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.canonical import migrated, sealed
from pipeline.errors import StoreError
from pipeline.manifest import MANIFEST_VERSION, read_manifest
from pipeline.record import RECORD_VERSION, read_record
from pipeline.store import Store

RELEASED = Path(__file__).parent / "released"


@pytest.mark.parametrize("version", range(1, RECORD_VERSION + 1))
def test_a_record_of_every_released_version_is_read(version: int) -> None:
    record = read_record(RELEASED / f"record-{version}.json")

    assert record.stage == "second"
    assert record.inputs["parent"].producer == "first"
    assert record.metrics["value"] == 17.0


@pytest.mark.parametrize("version", range(1, MANIFEST_VERSION + 1))
def test_a_manifest_of_every_released_version_is_read(tmp_path: Path, version: int) -> None:
    folder = tmp_path / "runs" / "chain"
    folder.mkdir(parents=True)
    shutil.copy(RELEASED / f"manifest-{version}.json", folder / "manifest.json")

    assert read_manifest(Store(tmp_path), "chain").order == ("first", "second", "third")


def test_a_record_of_the_next_version_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(sealed({"type": "stage-record", "version": RECORD_VERSION + 1}))

    with pytest.raises(StoreError, match="newer than this program reads") as caught:
        read_record(path)

    assert caught.value.findings[0].hint == "upgrade triptych"


def test_migrations_run_one_after_another_and_leave_the_file_alone() -> None:
    old = {"type": "sample", "version": 1, "seconds": 2}

    new = migrated(
        old,
        version=3,
        migrations={
            1: lambda document: {**document, "minutes": document["seconds"] / 60},
            2: lambda document: {name: value for name, value in document.items() if name != "seconds"},
        },
    )

    assert new == {"type": "sample", "version": 3, "minutes": 2 / 60}
    assert old == {"type": "sample", "version": 1, "seconds": 2}


def test_a_version_without_a_way_up_is_refused() -> None:
    with pytest.raises(StoreError, match="version 1 of sample is not read any more"):
        migrated({"type": "sample", "version": 1}, version=2, migrations={})
