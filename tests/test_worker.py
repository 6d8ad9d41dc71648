"""How a child says what went wrong, and how the parent reads a death without words."""

from __future__ import annotations

import errno
import signal
from pathlib import Path

import pytest

from pipeline.contract import ArtifactKind
from pipeline.disk import Disk
from pipeline.errors import ExitCode, HandOverError, Interrupted, StoreError
from pipeline.launch import DISK_FULL_EXIT_CODE, child_environment, died
from pipeline.work import InputRequest, Request, WorkFolder
from pipeline.worker import StopSignal, classify, perform


class OutOfMemoryError(RuntimeError):
    """Has the name of the class that torch raises on a GPU."""


@pytest.mark.parametrize(
    ("error", "outcome", "code"),
    [
        (HandOverError("another base"), "user-error", ExitCode.USER_ERROR),
        (Interrupted("saved at step 3"), "interrupted", ExitCode.INTERRUPTED),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out-of-memory", 5),
        (MemoryError(), "out-of-memory", 5),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out-of-memory", 5),
        (OSError(errno.ENOSPC, "No space left on device"), "out-of-disk", 6),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "out-of-disk", 6),
        (RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)"), "out-of-disk", 6),
        (StoreError("the disk is full", where="x", code="disk-full"), "out-of-disk", 6),
        (KeyError("prompt"), "bug", 1),
        (FileNotFoundError("x"), "bug", 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_a_stage_raises_is_told_apart(error: BaseException, outcome: str, code: int) -> None:
    failure = classify(error)

    assert (failure.outcome, failure.exit_code) == (outcome, code)
    assert failure.findings[0].message


@pytest.mark.parametrize(
    ("returncode", "oom", "outcome", "code", "words"),
    [
        (-signal.SIGKILL, True, "out-of-memory", 5, "the operating system killed the stage: out of memory"),
        (-signal.SIGKILL, False, "killed", 7, "the stage was killed by SIGKILL"),
        (-signal.SIGTERM, False, "killed", 7, "the stage was killed by SIGTERM"),
        (-signal.SIGSEGV, False, "bug", 1, "the stage crashed with SIGSEGV"),
        (DISK_FULL_EXIT_CODE, False, "out-of-disk", 6, "the disk is full"),
        (1, False, "bug", 1, "the stage ended with exit code 1 and left no result"),
    ],
)
def test_a_death_without_words_is_read_from_how_it_ended(
    returncode: int, oom: bool, outcome: str, code: int, words: str
) -> None:
    failure = died(returncode, oom=oom)

    assert (failure.outcome, failure.exit_code) == (outcome, code)
    assert failure.findings[0].message == words


def test_the_childs_environment_fixes_the_hash_seed_and_finds_this_package() -> None:
    environment = child_environment({"PYTHONPATH": "/one", "HOME": "/x", "PYTHONHASHSEED": "7"})

    assert environment["PYTHONHASHSEED"] == "0"
    assert environment["HOME"] == "/x"
    root = str(Path(__file__).resolve().parents[1])
    assert environment["PYTHONPATH"].split(":") == [root, "/one"]


def _work(folder: Path, kind: str, **config: object) -> WorkFolder:
    work = WorkFolder(folder)
    (folder / "corpus.txt").write_text("hello\n")
    given = InputRequest(kind=ArtifactKind.TEXT, path=str(folder / "corpus.txt"), fingerprint="0" * 64)
    request = Request(name="first", kind=kind, key="a" * 64, config=config, inputs={"text": given})
    work.write_request(Disk(), request)
    return work


def test_a_stage_that_is_asked_to_stop_stops_after_the_step_it_is_in(tmp_path: Path) -> None:
    work = _work(tmp_path, "tests.fakes.source", steps=5)
    stop = StopSignal()

    code = perform(work, stop=stop, progress=lambda *_: stop.request())

    failure = work.read_failure()
    assert code == ExitCode.INTERRUPTED
    assert failure is not None
    assert failure.findings[0].message == "stopped at step 1 of 5"
    assert work.read_result("a" * 64) is None


def test_a_stage_starts_with_an_empty_output_folder_and_its_old_scratch(tmp_path: Path) -> None:
    work = _work(tmp_path, "tests.fakes.source")
    for folder in (work.output, work.scratch):
        folder.mkdir()
        (folder / "old.txt").write_text("old")
    # The stage makes this folder itself, and cannot when it is there.
    (work.output / "model").mkdir()

    assert perform(work, stop=StopSignal()) == 0

    assert not (work.output / "old.txt").exists()
    assert (work.scratch / "old.txt").exists()


def test_a_result_whose_files_changed_is_not_taken_for_finished(tmp_path: Path) -> None:
    work = _work(tmp_path, "tests.fakes.source")
    perform(work, stop=StopSignal())
    assert work.finished_before("a" * 64) is not None

    assert work.finished_before("b" * 64) is None
    config = work.output / "model" / "config.json"
    config.chmod(0o644)
    config.write_text("{}")
    assert work.finished_before("a" * 64) is None


def test_a_kind_that_is_no_stage_is_a_users_mistake(tmp_path: Path) -> None:
    work = _work(tmp_path, "tests.fakes.engine")

    assert perform(work, stop=StopSignal()) == ExitCode.USER_ERROR

    failure = work.read_failure()
    assert failure is not None
    assert "defines no SPEC" in failure.findings[0].message


def test_how_idle_threads_wait_is_left_to_the_user():
    assert "OMP_WAIT_POLICY" not in child_environment({})
    assert child_environment({"OMP_WAIT_POLICY": "passive"})["OMP_WAIT_POLICY"] == "passive"
