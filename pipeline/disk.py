"""Durable file operations, one place for all. Tests stop or fail a process at each of them."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.errors import DiskFull, StoreError

BeforeOperation = Callable[[str, Path], None]

_FULL = {errno.ENOSPC, errno.EDQUOT}
_CANNOT_SYNC_FOLDERS = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}
_TAKEN = {errno.EEXIST, errno.ENOTEMPTY}


class Disk:
    """Writes, renames and removes so that a crash at any moment leaves old or new, never half.

    Args:
        before: called with the operation's name and path ahead of each one; it may raise
            OSError. The real program passes nothing.
    """

    def __init__(self, before: BeforeOperation | None = None) -> None:
        self._before = before

    def write(self, path: Path, data: bytes) -> None:
        """Replace a small file whole: draft beside it, fsync, rename, fsync the folder.

        One process at a time may write into the folder; the caller holds its lock.
        """
        draft = path.with_name(f".{path.name}.draft")
        with self._operation("write", draft):
            draft.write_bytes(data)
        self.sync_file(draft)
        with self._operation("rename", path):
            draft.replace(path)
        self.sync_folder(path.parent)

    def copy(self, source: Path, target: Path) -> None:
        """Copy a file's bytes and flush them; the folder is flushed by the caller."""
        with self._operation("copy", target):
            shutil.copyfile(source, target)
        self.sync_file(target)

    def make_folder(self, path: Path) -> None:
        """Make a folder and those above it, and flush each parent that gained one."""
        if path.is_dir():
            return
        self.make_folder(path.parent)
        with self._operation("mkdir", path):
            path.mkdir(exist_ok=True)
        self.sync_folder(path.parent)

    def sync_file(self, path: Path) -> None:
        """Flush a file's bytes to the disk."""
        with self._operation("fsync", path), path.open("rb") as stream:
            os.fsync(stream.fileno())

    def sync_folder(self, path: Path) -> None:
        """Flush a folder's names to the disk, where the file system can."""
        with self._operation("fsync", path):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            except OSError as error:
                if error.errno not in _CANNOT_SYNC_FOLDERS:
                    raise
            finally:
                os.close(descriptor)

    def protect(self, path: Path) -> None:
        """Make a file readable by all and writable by nobody."""
        with self._operation("chmod", path):
            path.chmod(0o444)

    def publish(self, source: Path, target: Path) -> bool:
        """Give a finished folder its final name; False when that name is taken."""
        try:
            with self._operation("rename", target):
                source.rename(target)
        except StoreError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in _TAKEN:
                return False
            raise
        self.sync_folder(target.parent)
        self.sync_folder(source.parent)
        return True

    def remove(self, path: Path) -> None:
        """Delete a file; a missing one is fine."""
        with self._operation("unlink", path):
            path.unlink(missing_ok=True)

    def remove_tree(self, path: Path) -> None:
        """Delete a folder and all below it; a missing one is fine."""
        if not path.exists():
            return
        with self._operation("rmtree", path):
            shutil.rmtree(path)

    @contextlib.contextmanager
    def _operation(self, name: str, path: Path) -> Iterator[None]:
        try:
            if self._before is not None:
                self._before(name, path)
            yield
        except OSError as error:
            raise explain(error, name, path) from error


def explain(error: OSError, operation: str, path: Path) -> StoreError:
    """Return what a failed file operation means to a person."""
    if error.errno in _FULL:
        message, code = f"the disk is full ({free_text(path)} free)", "disk-full"
        hint = "make room, then run the same command; nothing committed is lost"
        return DiskFull(message, where=str(path), hint=hint, code=code)
    if error.errno == errno.EROFS:
        message, code, hint = "the file system is read-only", "read-only", "--store <a folder you can write>"
    elif error.errno in (errno.EACCES, errno.EPERM):
        message, code = f"no permission to {operation} here", "no-permission"
        hint = "check the owner and mode of this path, or use another store"
    else:
        message, code = f"{operation} failed: {error.strerror or error}", "io-error"
        hint = "run the same command again; nothing committed is lost"
    return StoreError(message, where=str(path), hint=hint, code=code)


def free_bytes(path: Path) -> int:
    """Return the free bytes where a path is or will be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def free_text(path: Path) -> str:
    """Return the free space in words."""
    try:
        return size_text(free_bytes(path))
    except OSError:
        return "unknown space"


def size_text(num_bytes: float) -> str:
    """Return a number of bytes in the unit that suits it."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "bytes" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"
