"""Folders that are whole or absent, whatever happens to the machine. No torch here."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.disk import Disk

TEMPORARY = ".tmp-"


def sync_tree(disk: Disk, folder: Path) -> None:
    """Flush every file of a folder, and the folders themselves, innermost first."""
    for path in sorted(folder.rglob("*"), key=lambda found: len(found.parts), reverse=True):
        if path.is_dir():
            disk.sync_folder(path)
        else:
            disk.sync_file(path)
    disk.sync_folder(folder)


@contextmanager
def publish(folder: Path, disk: Disk | None = None) -> Iterator[Path]:
    """Give an empty temporary folder; on a clean exit it becomes `folder` by one rename.

    A folder of that name is replaced. After an error nothing is left behind.

    Raises:
        StoreError: the disk is full, read-only or failing.
    """
    disk = disk or Disk()
    temporary = folder.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    disk.make_folder(temporary)
    try:
        yield temporary
        sync_tree(disk, temporary)
        disk.remove_tree(folder)
        disk.publish(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_leftovers(root: Path) -> None:
    """Delete what an interrupted write left in a folder."""
    for path in root.glob(f"{TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)
