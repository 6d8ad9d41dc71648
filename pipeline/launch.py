"""Starts the child process of a stage, listens to it, passes signals on, says how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import site
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import BinaryIO, Protocol

from pipeline.config.accelerate import AccelerateConfig
from pipeline.disk import explain
from pipeline.errors import ExitCode, Finding
from pipeline.many import ProgressPipe, Ranks, launch_command, rank_environment, tail, verdict
from pipeline.work import Failure, WorkFolder

POLL_SECONDS = 0.2
DISK_FULL_EXIT_CODE = 74
"What a child says that could not even write failure.json; EX_IOERR of sysexits.h."
_BLOCK_BYTES = 65536


class Listener(Protocol):
    """Who is told how far the child is."""

    def __call__(self, step: int, total: int, text: str) -> None:
        """Show one progress report."""


class Stoppable(Protocol):
    """What runs a stage: one process, or the launcher of several."""

    def ask_to_stop(self) -> None:
        """Ask it to save and stop."""

    def kill(self) -> None:
        """End it and everything that it started."""


class StopRequests:
    """Ctrl-C and SIGTERM to the runner: the first asks the stage to save, the second ends all."""

    def __init__(self) -> None:
        self.requested = False
        self._child: Stoppable | None = None
        self._on_first: Callable[[], None] | None = None

    @contextlib.contextmanager
    def listening(self, on_first: Callable[[], None] | None = None) -> Iterator[None]:
        """Handle both signals for the length of a block; `on_first` is called at the first."""
        self._on_first = on_first
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def guarding(self, child: Stoppable) -> Iterator[None]:
        """Pass signals on to this child for the length of a block."""
        self._child = child
        if self.requested:
            child.ask_to_stop()
        try:
            yield
        finally:
            self._child = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if self._child is not None:
                self._child.kill()
            raise SystemExit(128 + number)
        self.requested = True
        if self._child is not None:
            self._child.ask_to_stop()
        if self._on_first is not None:
            self._on_first()


def launch(work: WorkFolder, *, listen: Listener, stop: StopRequests, lock: Path) -> Failure | None:
    """Run a work folder's request in a child process, or in several where the request asks for them.

    Args:
        work: its request.json is written; result.json or failure.json will be.
        listen: told the child's progress.
        stop: passes signals on.
        lock: held by the child for its life.

    Returns:
        None when the child left a result, else why it did not.
    """
    accelerate = work.read_request().accelerate
    if accelerate.is_many:
        return launch_many(work, accelerate, listen=listen, stop=stop, lock=lock)
    ooms_before = oom_kills()
    reader, writer = os.pipe()
    command = [sys.executable, "-P", "-u", "-m", "pipeline.worker", str(work.request.resolve())]
    command += ["--progress", str(writer), "--lock", str(lock.resolve())]
    with _opened_log(work.log) as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(writer,),
            env=child_environment(os.environ),
            start_new_session=True,
        )
    os.close(writer)
    try:
        _follow(child, _OneProcess(child), reader, take=partial(_show, listen=listen), stop=stop)
    finally:
        os.close(reader)
    if child.returncode == 0:
        return None
    return work.read_failure() or died(child.returncode, oom=oom_kills() > ooms_before)


def launch_many(
    work: WorkFolder, accelerate: AccelerateConfig, *, listen: Listener, stop: StopRequests, lock: Path
) -> Failure | None:
    """Run a request in several ranks; failure.json names the one that was the first to fail.

    Machine 0 keeps the work folder; the others only start their ranks and read how they ended.
    """
    ooms_before, keeps = oom_kills(), accelerate.machine_rank == 0
    log_path = work.log if keeps else work.path / f"log-{accelerate.machine_rank}.txt"
    if keeps:
        shutil.rmtree(work.path / "ranks", ignore_errors=True)
    pipe = ProgressPipe()
    command = launch_command(work.request, accelerate, progress=pipe.path, lock=lock)
    with _opened_log(log_path) as log:
        log_start = log.tell()
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=rank_environment(child_environment(os.environ)),
            start_new_session=True,
        )
    ranks = Ranks(child)

    def take(line: bytes) -> None:
        if not ranks.note(line):
            _show(line, listen=listen)

    try:
        _follow(child, ranks, pipe.reader, take=take, stop=stop)
    finally:
        pipe.close()
    oom = oom_kills() > ooms_before
    failure = verdict(
        work,
        accelerate.num_processes,
        returncode=child.returncode,
        log=tail(log_path, log_start),
        started=bool(ranks.pids),
        died=lambda code, who: died(code, oom=oom, who=who),
    )
    if keeps and failure is not None:
        (work.path / "failure.json").write_bytes(failure.to_bytes())
    if keeps:
        shutil.rmtree(work.path / "ranks", ignore_errors=True)
    return failure


def died(returncode: int, *, oom: bool, who: str = "the stage") -> Failure:
    """Say why a child ended that left no word."""
    if returncode == -signal.SIGKILL and oom:
        hint = "a smaller per_device_train_batch_size, or a machine with more memory"
        message = f"the operating system killed {who}: out of memory"
        finding = Finding(message, hint=hint, code="out-of-memory")
        return Failure("out-of-memory", (finding,), ExitCode.OUT_OF_MEMORY)
    if returncode in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP):
        name = signal.Signals(-returncode).name
        hint = "the same command goes on from the last checkpoint; the kernel's log may say who killed it"
        finding = Finding(f"{who} was killed by {name}", hint=hint, code="killed")
        return Failure("killed", (finding,), ExitCode.KILLED)
    if returncode == DISK_FULL_EXIT_CODE:
        hint = "make room, then run the same command; it goes on from the last checkpoint"
        finding = Finding("the disk is full", hint=hint, code="disk-full")
        return Failure("out-of-disk", (finding,), ExitCode.OUT_OF_DISK)
    if returncode < 0:
        message = f"{who} crashed with {signal.Signals(-returncode).name}"
    else:
        message = f"{who} ended with exit code {returncode} and left no result"
    return Failure("bug", (Finding(message, code="bug"),))


def child_environment(given: Mapping[str, str]) -> dict[str, str]:
    """Return the child's environment: fixed hash seed, and this package findable.

    How idle threads wait is left to the user: OMP_WAIT_POLICY=passive helps where other processes want
    the same cores, and costs a third of the speed of small models where none does.
    """
    chosen = {**given, "PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "false"}
    root = Path(__file__).resolve().parents[1]
    installed = {Path(folder).resolve() for folder in (*site.getsitepackages(), site.getusersitepackages())}
    if root not in installed:
        # A checkout that is not installed: `-P` keeps the working folder off the path.
        paths = [str(root), *filter(None, given.get("PYTHONPATH", "").split(os.pathsep))]
        chosen["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    return chosen


def oom_kills() -> int:
    """Return how many processes the kernel killed for memory in this cgroup; 0 when it does not say."""
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
        unified = next(line[3:] for line in groups if line.startswith("0::"))
        events = Path("/sys/fs/cgroup" + unified, "memory.events").read_text().split()
        return int(events[events.index("oom_kill") + 1])
    except (OSError, StopIteration, ValueError):
        return 0


def _opened_log(path: Path) -> BinaryIO:
    try:
        return path.open("ab")
    except OSError as error:
        raise explain(error, "write", path) from error


@dataclass(frozen=True, slots=True)
class _OneProcess:
    """A stage that is one process."""

    child: subprocess.Popen[bytes]

    def ask_to_stop(self) -> None:
        # Only the worker: its data loader processes must live while it saves.
        with contextlib.suppress(ProcessLookupError):
            self.child.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.child.pid, signal.SIGKILL)


def _follow(
    child: subprocess.Popen[bytes],
    running: Stoppable,
    reader: int,
    *,
    take: Callable[[bytes], None],
    stop: StopRequests,
) -> None:
    """Listen to a child until it ends; whatever it left behind, such as data loader processes, ends too."""
    try:
        with stop.guarding(running):
            _listen_until_end(child, reader, take)
    except BaseException:
        running.kill()
        child.wait()
        raise
    finally:
        if child.stdin is not None:
            child.stdin.close()
    running.kill()


def _listen_until_end(child: subprocess.Popen[bytes], reader: int, take: Callable[[bytes], None]) -> None:
    rest = b""
    open_pipe = True
    with selectors.DefaultSelector() as selector:
        selector.register(reader, selectors.EVENT_READ)
        while child.poll() is None:
            if not open_pipe:
                time.sleep(POLL_SECONDS)
                continue
            if selector.select(POLL_SECONDS):
                block = os.read(reader, _BLOCK_BYTES)
                open_pipe = bool(block)
                *lines, rest = (rest + block).split(b"\n")
                for line in lines:
                    take(line)


def _show(line: bytes, *, listen: Listener) -> None:
    # The pipe is for people: a line that is not one of ours is passed over.
    with contextlib.suppress(ValueError, KeyError, TypeError):
        report = json.loads(line)
        listen(int(report["step"]), int(report["total"]), str(report["text"]))
