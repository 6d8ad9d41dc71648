"""Real file systems that are full or read-only. They need the right to mount; else they are skipped."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import preflight
from pipeline.cli.main import main
from pipeline.errors import ExitCode, StoreError
from pipeline.manifest import previous_manifest
from tests.fakes.engine import VALUES, Engine


def _mount(*options: str, at: Path) -> bool:
    if shutil.which("mount") is None:
        return False
    answer = subprocess.run(["mount", *options, str(at)], capture_output=True, check=False)
    return answer.returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if not _mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", at=folder):
        pytest.skip("mounting a small tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize(
    ("points", "step_kib"), [pytest.param(8, 9), pytest.param(20, 4, marks=pytest.mark.slow)]
)
def test_a_disk_that_fills_at_any_point_loses_nothing_and_the_run_goes_on(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, points: int, step_kib: int
) -> None:
    monkeypatch.setattr(preflight, "LEAST_FREE_BYTES", 0)
    full = 0
    for point in range(1, points + 1):
        assert _mount("-o", f"remount,size={point * step_kib}k", at=small_disk)
        engine = Engine(small_disk.parent / f"point-{point}")
        (engine.folder / "store").symlink_to(small_disk)
        full += _starved(engine)

        assert _mount("-o", "remount,size=8m", at=small_disk)
        assert engine.run_here() == ExitCode.OK
        assert engine.values() == VALUES
        for entry in small_disk.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    assert full >= points - 2


def _starved(engine: Engine) -> bool:
    """Run on a disk that may be too small; say whether it was, in clear words."""
    try:
        code = engine.run_here()
    except StoreError as error:
        return error.findings[0].code == "disk-full" and "the disk is full" in str(error)
    if code == ExitCode.OK:
        return False
    manifest = previous_manifest(engine.store, engine.name)
    assert manifest is not None
    assert "out-of-disk" in {status.failure for status in manifest.stages.values()}
    return True


def test_a_read_only_store_can_be_read_and_refuses_to_run(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _mount("-o", "remount,size=8m", at=small_disk)
    monkeypatch.setattr(preflight, "LEAST_FREE_BYTES", 0)
    engine = Engine(small_disk.parent / "work")
    (engine.folder / "store").symlink_to(small_disk)
    engine.run_here()
    assert _mount("-o", "remount,ro", at=small_disk)
    monkeypatch.chdir(engine.folder)

    for words in (["status", "chain"], ["verify"], ["verify", "chain"], ["lineage", "chain"]):
        assert main([*words, "--store", "store"]) == ExitCode.OK
    assert main(["plan", engine.file.name, "--store", "store"]) == ExitCode.OK
    assert "3 reused, 0 to run" in capsys.readouterr().out

    assert main(["run", engine.file.name, "--store", "store"]) == ExitCode.USER_ERROR
    assert "the file system is read-only" in capsys.readouterr().err
