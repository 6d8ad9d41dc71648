"""Durable operations: what is renamed into place was flushed before, and errors speak plainly."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pipeline.disk import Disk, explain, size_text
from pipeline.errors import StoreError
from tests.fakes.engine import Engine


def _trace(folder: Path) -> list[tuple[str, Path]]:
    trace: list[tuple[str, Path]] = []
    Engine(folder).run_here(before=lambda name, path: trace.append((name, path)))
    return trace


def test_no_document_gets_its_name_before_its_bytes_are_flushed(tmp_path: Path) -> None:
    trace = _trace(tmp_path / "work")

    documents = [
        (number, path) for number, (name, path) in enumerate(trace) if name == "rename" and path.suffix
    ]
    assert len(documents) > 20
    for number, path in documents:
        draft = path.with_name(f".{path.name}.draft")
        # write, fsync, rename, fsync of the folder: four operations without another between.
        assert trace[number - 2] == ("write", draft)
        assert trace[number - 1] == ("fsync", draft)
        assert trace[number + 1] == ("fsync", path.parent)


def test_a_stage_is_published_after_every_file_and_folder_of_it_is_flushed(tmp_path: Path) -> None:
    trace = _trace(tmp_path / "work")
    store = tmp_path / "work" / "store"

    published = [
        (number, path) for number, (name, path) in enumerate(trace) if name == "rename" and not path.suffix
    ]
    assert len(published) == 3
    for number, target in published:
        output = store / "work" / target.name / "output"
        before = trace[:number]
        for path in (path for path in target.rglob("*") if path.is_file()):
            source = output / path.relative_to(target)
            flushed = (
                "fsync",
                source.with_name(".record.json.draft") if path.name == "record.json" else source,
            )
            assert flushed in before, f"{path.name} was not flushed"
            assert ("fsync", source.parent) in before[before.index(flushed) :], f"folder of {path.name}"
        assert ("fsync", target.parent.parent) in before, "the folder that gained stages/<xx>"
        assert trace[number + 1] == ("fsync", target.parent)
        assert trace[number + 2] == ("fsync", output.parent)


def test_a_write_that_fails_leaves_the_old_document(tmp_path: Path) -> None:
    path = tmp_path / "document.json"
    path.write_text("old")

    def full(name: str, where: Path) -> None:
        if name == "rename":
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StoreError, match="the disk is full"):
        Disk(full).write(path, b"new")

    assert path.read_text() == "old"


def test_a_name_that_is_taken_is_no_error_and_nothing_is_lost(tmp_path: Path) -> None:
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "who").write_text(name)

    assert Disk().publish(tmp_path / "mine", tmp_path / "theirs") is False

    assert (tmp_path / "theirs" / "who").read_text() == "theirs"
    assert (tmp_path / "mine" / "who").read_text() == "mine"


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (errno.ENOSPC, "disk-full", "the disk is full ("),
        (errno.EDQUOT, "disk-full", "the disk is full ("),
        (errno.EROFS, "read-only", "the file system is read-only"),
        (errno.EACCES, "no-permission", "no permission to write here"),
        (errno.EIO, "io-error", "write failed: Input/output error"),
    ],
)
def test_an_error_of_the_system_names_path_and_remedy(
    tmp_path: Path, number: int, code: str, words: str
) -> None:
    error = explain(OSError(number, "Input/output error"), "write", tmp_path / "x")

    (finding,) = error.findings
    assert finding.code == code
    assert finding.message.startswith(words)
    assert finding.where == str(tmp_path / "x")
    assert finding.hint


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (2**50, "1024.0 TiB")]
)
def test_sizes_are_in_the_unit_that_suits_them(num_bytes: int, text: str) -> None:
    assert size_text(num_bytes) == text
