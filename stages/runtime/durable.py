"""Write files and folders that are whole or absent, whatever happens to the machine. No torch here."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".tmp-"


def sync_file(path: Path) -> None:
    """Force a file's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Force every file of a folder, and the folders themselves, to the disk, innermost first."""
    for path in sorted(folder.rglob("*"), key=lambda p: len(p.parts), reverse=True):
        sync_file(path)
    sync_file(folder)


def write_file(path: Path, content: bytes) -> None:
    """Write a small file so that a reader sees the old content or the new, never a part."""
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    with temporary.open("xb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)
    sync_file(path.parent)


@contextmanager
def publish(folder: Path) -> Iterator[Path]:
    """Give an empty temporary folder; on a clean exit it becomes `folder` by one rename.

    A folder of that name is replaced. After an error nothing is left behind.
    """
    temporary = folder.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        sync_tree(temporary)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
        sync_file(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_leftovers(root: Path) -> None:
    """Delete what an interrupted write left in a folder."""
    for path in root.glob(f"{TEMPORARY}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
