"""Locks of the store: held by the kernel, freed by the kernel, and they say who holds them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.disk import explain
from pipeline.errors import BusyError

POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock. For people only; the kernel alone decides."""

    pid: int
    command: str
    "What the process does, such as `run demo`."
    since: str
    "UTC time, RFC 3339."

    def __str__(self) -> str:
        return f"{self.command} (process {self.pid}, since {self.since})"


@contextlib.contextmanager
def held(
    path: Path,
    holder: Holder,
    *,
    waiting: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Hold a lock for the length of a block.

    A lock of a dead process is free: the kernel drops it with the process.

    Args:
        path: the lock file; made when missing, never removed.
        holder: who to name to others.
        waiting: told once who holds the lock, before waiting for it; None refuses to wait.

    Raises:
        BusyError: another process holds the lock and waiting is None.
        StoreError: the lock file cannot be made.
    """
    lock = FileLock(path, fallback_to_soft=False, preserve_lock_file=True, poll_interval=POLL_SECONDS)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            other = who_holds(path)
            if waiting is None:
                raise BusyError(
                    f"busy: {other}", where=path.name, hint="wait for it, or end that process", code="busy"
                ) from error
            waiting(other)
            lock.acquire()
    except OSError as error:
        raise explain(error, "lock", path) from error
    try:
        with contextlib.suppress(OSError):
            path.write_text(json.dumps(asdict(holder)))
        yield
    finally:
        with contextlib.suppress(OSError):
            os.truncate(path, 0)
        lock.release()


def is_held(path: Path) -> bool:
    """Say whether a live process holds a lock now."""
    if not path.exists():
        return False
    lock = FileLock(path, fallback_to_soft=False, preserve_lock_file=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False


def who_holds(path: Path) -> str:
    """Return who wrote their name into a lock file, in words."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return str(Holder(**json.loads(path.read_text())))
    return "another process"
