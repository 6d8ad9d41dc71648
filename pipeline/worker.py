"""The child process of one stage: loads its card, runs it, seals what it wrote, says how it ended."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from pipeline import registry
from pipeline.canonical import finite
from pipeline.config.accelerate import AccelerateConfig
from pipeline.contract import StageContext, StageResult
from pipeline.cost import measure
from pipeline.disk import Disk
from pipeline.errors import ExitCode, Finding, Interrupted, UserError
from pipeline.launch import DISK_FULL_EXIT_CODE
from pipeline.locks import Holder, held
from pipeline.many import LOST_RANK, rank_folder
from pipeline.place import ONLY, Place
from pipeline.record import RowsRecord, environment, timestamp
from pipeline.seal import seal
from pipeline.tracking.jsonl import MetricsFile, NoMetrics
from pipeline.work import Failure, Result, WorkFolder

ORPHANED_EXIT_CODE = 70
_MEMORY_CLASSES = ("OutOfMemoryError", "MemoryError")
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc")
_LOST_WORDS = ("connection closed by peer", "connection reset by peer", "gloo", "nccl", "distbackenderror")
"In what collectives raise when a rank at the other end is gone."
_FULL_WORDS = ("no space left on device", "disk quota exceeded")

logger = logging.getLogger(__name__)

ReportProgress = Callable[[int, int, str], None]


class StopSignal:
    """Set by SIGTERM or Ctrl-C; the stage's loop reads it at each step."""

    def __init__(self) -> None:
        self._event = threading.Event()

    @property
    def requested(self) -> bool:
        """True once somebody asked the stage to stop."""
        return self._event.is_set()

    def request(self) -> None:
        """Ask the stage to stop at its next step."""
        self._event.set()


def main(argv: list[str] | None = None) -> int:
    """Run the stage of a request file and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.worker", description=__doc__)
    parser.add_argument("request", type=Path, help="request.json in the stage's work folder")
    parser.add_argument("--progress", help="file descriptor or named pipe for progress lines")
    parser.add_argument("--lock", type=Path, default=None, help="lock that says this stage has a live worker")
    args = parser.parse_args(argv)
    place = Place.of(os.environ)
    rank = f" rank {place.rank}" if place.count > 1 else ""
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format=f"%(asctime)s{rank} %(levelname)s %(name)s: %(message)s",
    )
    # Says at every import that an optional package of CPU kernels is not installed.
    logging.getLogger("bitsandbytes.backends").setLevel(logging.ERROR)
    stop = StopSignal()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.request())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    descriptor = _opened_pipe(args.progress, place)
    holder = Holder(os.getpid(), "a stage", timestamp())
    # A worker whose parent was killed may live for a moment: wait until it is gone. Rank 0 does so for all.
    locks = args.lock is not None and place.is_main
    with held(args.lock, holder, waiting=lambda _: None) if locks else contextlib.nullcontext():
        progress = _reporter(descriptor) if place.is_main else None
        return perform(WorkFolder(args.request.parent), stop=stop, progress=progress, place=place)


def perform(
    work: WorkFolder,
    *,
    stop: StopSignal,
    progress: ReportProgress | None = None,
    disk: Disk | None = None,
    place: Place = ONLY,
) -> int:
    """Run a work folder's stage; leave result.json, or failure.json and the reason.

    Of several ranks the main one alone answers; the others work in folders that are thrown away.

    Returns:
        The exit code: 0 with a result, else that of the failure. Ranks that all stopped when asked to
        end with 0: their launcher would kill the others at the first that does not.

    Raises:
        Exception: a bug, after failure.json is written, so that its traceback reaches the log.
    """
    disk = disk or Disk()
    shared, work = work, rank_folder(work, place.rank)
    with _answered(work, place) as answer:
        request = shared.read_request()
        place = replace(place, in_parts=request.accelerate.in_parts)
        spec = registry.find(request.kind)
        for folder in (work.output, work.scratch):
            if folder == work.output and folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(exist_ok=True, parents=True)
        metrics_file = MetricsFile(work.metrics, progress) if place.is_main else NoMetrics()
        context = StageContext(
            name=request.name,
            config=spec.config_type.model_validate(request.config),
            inputs={role: given.checkpoint() for role, given in request.inputs.items()},
            output_dir=work.output,
            scratch_dir=work.scratch,
            logger=metrics_file,
            stop=stop,
            cache_dir=Path(request.cache) if request.cache else None,
            place=place,
        )
        started = time.monotonic()
        try:
            result = spec.run(context)
        finally:
            metrics_file.close()
        worked = time.monotonic() - started
        logger.info("stage %s ended after %.1f s", request.name, worked)
        if not isinstance(result, StageResult):
            raise TypeError(f"{spec.kind}.run() returned {type(result).__name__}, not StageResult")
        if not place.is_main:
            return answer.exit_code
        sealed = seal(disk, work.output, declared=spec.outputs_with(context.config), given=result.outputs)
        left_out = [f"left out of the result: {name}" for name in sealed.left_out]
        work.write_result(
            disk,
            Result(
                key=request.key,
                outputs=dict(sealed.outputs),
                metrics={name: finite(float(value)) for name, value in result.metrics.items()},
                notes=(*result.notes, *_many_note(request.accelerate), *left_out),
                environment=environment(_device(), threads=_threads(), computing=result.computing),
                rows=_rows(result, request.inputs),
                cost=measure(work.metrics, {"work": worked, "seal": time.monotonic() - started - worked}),
            ),
        )
    return answer.exit_code


def _many_note(accelerate: AccelerateConfig) -> list[str]:
    """Say in the record that several processes made a result."""
    if not accelerate.is_many:
        return []
    return [
        f"made by {accelerate.num_processes} processes ({accelerate.backend}): other last bits than by one"
    ]


def _rows(result: StageResult, inputs: Mapping[str, object]) -> dict[str, RowsRecord]:
    """Return the counts of rows that a stage gave; a role that is no input is a bug of the card."""
    if strange := sorted(set(result.rows) - set(inputs)):
        raise ValueError(f"rows of {strange[0]!r} were counted, which is no input")
    return {
        role: RowsRecord(
            read=counts.read,
            accepted=counts.accepted,
            rejected=counts.rejected,
            reasons=dict(counts.reasons),
            first_lines=tuple(counts.first_lines),
        )
        for role, counts in result.rows.items()
    }


def classify(error: BaseException) -> Failure:
    """Say what kind of failure an exception is, and what a person can do about it."""
    text = str(error).lower()
    if isinstance(error, Interrupted):
        return Failure("interrupted", error.findings, ExitCode.INTERRUPTED)
    if any(base.__name__ in _MEMORY_CLASSES for base in type(error).__mro__) or any(
        words in text for words in _MEMORY_WORDS
    ):
        hint = "a smaller per_device_train_batch_size with more gradient_accumulation_steps, or max_length"
        finding = Finding(f"out of memory: {_first_line(error)}", hint=hint, code="out-of-memory")
        return Failure("out-of-memory", (finding,), ExitCode.OUT_OF_MEMORY)
    if _has_code(error, "disk-full") and isinstance(error, UserError):
        return Failure("out-of-disk", error.findings, ExitCode.OUT_OF_DISK)
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or any(words in text for words in _FULL_WORDS):
        finding = Finding(
            f"the disk is full: {_first_line(error)}",
            hint="make room, then run the same command; it goes on from the last checkpoint",
            code="disk-full",
        )
        return Failure("out-of-disk", (finding,), ExitCode.OUT_OF_DISK)
    if isinstance(error, UserError):
        return Failure("user-error", error.findings, error.exit_code)
    message = f"a bug, {type(error).__name__}: {_first_line(error)}"
    return Failure("bug", (Finding(message, code="bug"),))


class _Answer:
    """The exit code that a block earned."""

    exit_code: int = ExitCode.OK


@contextlib.contextmanager
def _answered(work: WorkFolder, place: Place) -> Iterator[_Answer]:
    """Write failure.json for whatever the block raises; let bugs go on to the log."""
    answer = _Answer()
    try:
        yield answer
    except BaseException as error:
        failure = _of_lost_rank(error) if place.count > 1 else None
        failure = failure or classify(error)
        interrupted_together = place.count > 1 and failure.outcome == "interrupted"
        answer.exit_code = ExitCode.OK if interrupted_together else int(failure.exit_code)
        try:
            work.path.mkdir(parents=True, exist_ok=True)
            (work.path / "failure.json").write_bytes(failure.to_bytes())
        except OSError:
            answer.exit_code = DISK_FULL_EXIT_CODE
            logger.exception("the reason could not be written: %s", failure.findings[0])
            return
        if failure.outcome not in ("user-error", "interrupted"):
            raise
        logger.info("%s", error)


def _of_lost_rank(error: BaseException) -> Failure | None:
    """Return the failure of a rank that failed only because another one is gone."""
    text = f"{type(error).__name__} {error}".lower()
    if isinstance(error, UserError) or not any(word in text for word in _LOST_WORDS):
        return None
    finding = Finding(f"another rank is gone: {_first_line(error)}", code=LOST_RANK)
    return Failure("killed", (finding,), ExitCode.KILLED)


def _opened_pipe(progress: str | None, place: Place) -> int | None:
    """Return where progress goes; of several ranks each one says its pid there first."""
    if progress is None or progress.isdigit():
        return None if progress is None else int(progress)
    descriptor = os.open(progress, os.O_WRONLY)
    os.write(descriptor, json.dumps({"rank": place.rank, "pid": os.getpid()}).encode() + b"\n")
    return descriptor


def _reporter(descriptor: int | None) -> ReportProgress | None:
    """Return a reporter that writes a JSON line to the parent; a parent that is gone is ignored."""
    if descriptor is None:
        return None

    def report(step: int, total: int, text: str) -> None:
        line = json.dumps({"step": step, "total": total, "text": text}) + "\n"
        with contextlib.suppress(OSError):
            os.write(descriptor, line.encode())

    return report


def _end_with_parent() -> None:
    """End this process when its parent is gone: standard input then ends."""
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
        os._exit(ORPHANED_EXIT_CODE)


def _device() -> str:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return "cpu"
    return str(torch.cuda.get_device_name())


def _threads() -> int | None:
    torch = sys.modules.get("torch")
    return None if torch is None else int(torch.get_num_threads())


def _has_code(error: BaseException, code: str) -> bool:
    return isinstance(error, UserError) and any(finding.code == code for finding in error.findings)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


if __name__ == "__main__":
    sys.exit(main())
