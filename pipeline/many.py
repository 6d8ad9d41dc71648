"""Several processes for one stage, by `accelerate launch`: the command, their pids, how they ended."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config.accelerate import AccelerateConfig
from pipeline.errors import Finding
from pipeline.work import Failure, WorkFolder

LOST_RANK = "lost-rank"
"Code of a rank that failed only because another one was gone."
_ENDED = re.compile(r"rank\s*:\s*(\d+) \(local_rank: \d+\)\s*exitcode\s*:\s*(-?\d+)")
"One failure in the table that torch's launcher prints."
_FIRST = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+)")
_LARGEST_LOG_BYTES = 4 * 2**20


def launch_command(request: Path, accelerate: AccelerateConfig, *, progress: Path, lock: Path) -> list[str]:
    """Return the command that starts every rank of a stage on this machine.

    Args:
        request: request.json of the work folder.
        accelerate: the stage's block.
        progress: named pipe that ranks write to.
        lock: held by rank 0 for its life.
    """
    command = [sys.executable, "-P", "-u", "-m", "accelerate.commands.launch"]
    if accelerate.config_file is not None:
        command += ["--config_file", accelerate.config_file]
    else:
        command += _BACKENDS[accelerate.backend]
        command += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--num_processes", str(accelerate.num_processes)]
    command += ["--num_machines", str(accelerate.num_machines)]
    command += ["--machine_rank", str(accelerate.machine_rank)]
    if accelerate.main_process_ip is not None:
        command += ["--main_process_ip", accelerate.main_process_ip]
    # Port 0 takes a free one; accelerate's own default is one fixed port for every run of the machine.
    command += ["--main_process_port", str(accelerate.main_process_port or 0)]
    if accelerate.num_machines > 1:
        command += ["--same_network"]
    command += ["--num_cpu_threads_per_process", str(_threads(accelerate))]
    command += ["--module", "pipeline.worker", str(request.resolve())]
    return [*command, "--progress", str(progress), "--lock", str(lock.resolve())]


_BACKENDS: Mapping[str, list[str]] = {
    "ddp": ["--multi_gpu"],
    # The stage cuts the layers itself: accelerate would wrap what is trained as well.
    "fsdp2": ["--multi_gpu"],
    "deepspeed": ["--use_deepspeed", "--zero_stage", "3", "--zero3_init_flag", "false"],
}
"Flags of `accelerate launch`, the same as in configs/accelerate/."


def rank_environment(given: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the launcher and its ranks: `-P` and `-u` do not reach ranks, these do."""
    return {**given, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}


def rank_folder(work: WorkFolder, rank: int) -> WorkFolder:
    """Return where a rank works: rank 0 in the stage's folder, others in folders that are thrown away."""
    return work if rank == 0 else WorkFolder(work.path / "ranks" / f"rank-{rank}")


@dataclass(slots=True)
class Ranks:
    """The launcher of a stage's ranks and what is known of them."""

    launcher: subprocess.Popen[bytes]
    pids: dict[int, int] = field(default_factory=dict)
    "Rank -> process, as each one said."
    _asked: bool = False

    def ask_to_stop(self) -> None:
        """Ask one rank to save and stop; all agree at their next step. The launcher would kill them."""
        self._asked = True
        for pid in list(self.pids.values())[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def kill(self) -> None:
        """End the launcher and every rank; each rank leads a session of its own."""
        for pid in (self.launcher.pid, *self.pids.values()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)

    def note(self, line: bytes) -> bool:
        """Take a line in which a rank says its pid; False for any other line."""
        try:
            said = json.loads(line)
            self.pids[int(said["rank"])] = int(said["pid"])
        except (ValueError, KeyError, TypeError):
            return False
        if self._asked:
            self.ask_to_stop()
        return True


class ProgressPipe:
    """A named pipe that every rank may write a line to. The launcher would close an inherited one."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="triptych-"))
        self.path = self._folder / "progress"
        os.mkfifo(self.path, 0o600)
        self.reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(self.reader, True)
        # Held open here, so that the pipe does not end before its last writer is there.
        self._writer = os.open(self.path, os.O_WRONLY)

    def close(self) -> None:
        """Close and remove it."""
        os.close(self._writer)
        os.close(self.reader)
        shutil.rmtree(self._folder, ignore_errors=True)


def verdict(
    work: WorkFolder,
    count: int,
    *,
    returncode: int,
    log: str,
    started: bool,
    died: Callable[[int, str], Failure],
) -> Failure | None:
    """Say why ranks gave no result, naming the rank that was the first to fail.

    A killed rank leaves no word, and the others fail because it is gone: what the launcher saw of
    signals counts before what ranks wrote.

    Args:
        work: the stage's work folder.
        count: ranks in all.
        returncode: of the launcher.
        log: what this attempt printed.
        started: whether any rank ever said that it lives.
        died: exit code and a name -> the failure of a process that left no word.

    Returns:
        None when every rank ended well.
    """
    said = {rank: failure for rank in range(count) if (failure := rank_folder(work, rank).read_failure())}
    if returncode == 0 and not said:
        return None
    ended = {int(rank): int(code) for rank, code in _ENDED.findall(log)}
    ended |= {int(rank): int(code) for code, rank in _FIRST.findall(log)[:1] if not ended}
    own = {rank: failure for rank, failure in said.items() if failure.findings[0].code != LOST_RANK}
    for rank, code in sorted(ended.items()):
        # The launcher ends the ranks that are left over with SIGTERM.
        if code < 0 and code != -signal.SIGTERM and rank not in own:
            return died(code, f"rank {rank} of {count}")
    if own:
        # All ranks say the same of a mistake that all see; rank 0 speaks for them.
        rank = min(own, key=lambda rank: (own[rank].outcome == "interrupted", rank))
        return own[rank] if rank == 0 and len(own) == count else _named(own[rank], rank, count)
    if returncode < 0 or not (started or ended or said):
        return died(returncode, "accelerate launch")
    silent = [rank for rank in range(count) if rank not in said]
    rank = next((rank for rank in ended if rank in silent), silent[0] if silent else 0)
    return died(ended.get(rank, returncode), f"rank {rank} of {count}")


def tail(path: Path, start: int) -> str:
    """Return what was added to a log since it had `start` bytes, at most its last few megabytes."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - _LARGEST_LOG_BYTES))
        return file.read().decode("utf-8", errors="replace")


def _named(failure: Failure, rank: int, count: int) -> Failure:
    """Return a failure whose every finding names the rank."""
    findings = tuple(
        Finding(f"rank {rank} of {count}: {finding.message}", finding.where, finding.hint, finding.code)
        for finding in failure.findings
    )
    return Failure(failure.outcome, findings, failure.exit_code)


def _threads(accelerate: AccelerateConfig) -> int:
    """Return the threads a rank computes with: what the user says, else an even share of the cores."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    local = max(1, accelerate.num_processes // accelerate.num_machines)
    return max(1, (os.cpu_count() or 1) // local)
