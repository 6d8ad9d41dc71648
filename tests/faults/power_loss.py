"""Pulls the plug on a run at every disk operation: what was not flushed may be old, new, zero or cut.

python -m tests.faults.power_loss --choices 26          every operation, 26 disks each
python -m tests.faults.power_loss --without-flushes     the same on a disk that ignores flushes; must fail

A model, not a plug: each file that was not flushed since its last change, and each name in a
folder that was not flushed, survives or not by itself. Real file systems promise more.
Invariants on every disk: a result that the run reported is there and whole; nothing damaged is
ever served; the next run gets through and ends with the bytes of an undisturbed run.
"""

from __future__ import annotations

import argparse
import random
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.disk import Disk
from pipeline.errors import UserError
from pipeline.fingerprint import file_digest
from pipeline.runner import Runner
from pipeline.store import Store
from pipeline.verify import verify_store
from tests.fakes.engine import Engine, InProcess, Recorder
from tests.faults.sweep import CHAIN

Entries = dict[str, int]
"Names in a folder -> inode."
Bytes = dict[str, dict[str, str]]
"Stage -> file of an output -> sha256."


@dataclass
class Image:
    """What the kernel knows and what the disk is sure to hold, at one moment."""

    folders: dict[int, Entries]
    files: dict[int, bytes]
    sure_folders: dict[int, Entries]
    sure_files: dict[int, bytes]
    reported: tuple[str, ...]
    "Stages that the run has called complete."


@dataclass
class Plug:
    """Watches a store and keeps an image of it before each disk operation."""

    root: Path
    display: Recorder
    images: list[Image] = field(default_factory=list)
    sure_folders: dict[int, Entries] = field(default_factory=dict)
    sure_files: dict[int, bytes] = field(default_factory=dict)

    def before(self, name: str, path: Path) -> None:
        """Keep an image; called ahead of each operation."""
        folders: dict[int, Entries] = {}
        files: dict[int, bytes] = {}
        if self.root.exists():
            _walk(self.root, folders, files)
        reported = tuple(name for name, state in self.display.now().items() if state == "complete")
        sure_folders, sure_files = dict(self.sure_folders), dict(self.sure_files)
        self.images.append(Image(folders, files, sure_folders, sure_files, reported))


class WatchedDisk(Disk):
    """Tells the plug what was flushed, once it was."""

    def __init__(self, plug: Plug, *, flushes: bool) -> None:
        super().__init__(plug.before)
        self._plug, self._flushes = plug, flushes

    def sync_file(self, path: Path) -> None:
        super().sync_file(path)
        if self._flushes:
            self._plug.sure_files[path.stat().st_ino] = path.read_bytes()

    def sync_folder(self, path: Path) -> None:
        super().sync_folder(path)
        if self._flushes:
            self._plug.sure_folders[path.stat().st_ino] = _entries(path)


def watched_run(engine: Engine, *, flushes: bool = True) -> tuple[list[Image], int]:
    """Run a chain in this process; return an image before each operation, and the store's inode."""
    plug = Plug(engine.folder / "store", engine.display)
    # The folder above the store is the user's: a new store's own name must be flushed into it.
    plug.sure_folders[engine.folder.stat().st_ino] = {}
    disk = WatchedDisk(plug, flushes=flushes)
    store = Store(engine.folder / "store", disk=disk)
    code = Runner(engine.load(), store, engine.display, start=InProcess(disk)).go()
    if code != 0:
        raise RuntimeError(f"the undisturbed run ended with {code}")
    return plug.images, store.root.stat().st_ino


def disk_after(image: Image, inode: int, target: Path, *, chance: random.Random) -> None:
    """Write one of the disks that a loss of power at this moment may leave."""
    target.mkdir()
    now, sure = image.folders.get(inode, {}), image.sure_folders.get(inode, {})
    for name in sorted({*now, *sure}):
        kept = chance.choice((now.get(name), sure.get(name)))
        if kept is None:
            continue
        if kept in image.folders or kept in image.sure_folders:
            disk_after(image, kept, target / name, chance=chance)
        else:
            (target / name).write_bytes(_content(image, kept, chance))


def states(
    folder: Path, *, choices: int, flushes: bool, stride: int = 1, first: int = 0
) -> Iterator[str | None]:
    """Yield one answer a disk: None, or what is wrong with it."""
    reference = Engine(folder / "reference", text=CHAIN)
    images, inode = watched_run(reference, flushes=flushes)
    expected = served(reference.store)
    for number, image in list(enumerate(images))[first::stride]:
        for choice in range(choices):
            place = folder / f"state-{number}-{choice}"
            engine = Engine(place, text=CHAIN)
            if image.folders:
                disk_after(image, inode, place / "store", chance=random.Random(f"{number}.{choice}"))
            yield _fault(engine, image, expected, label=f"operation {number}, disk {choice}")
            shutil.rmtree(place)


def _fault(engine: Engine, image: Image, expected: Bytes, *, label: str) -> str | None:
    try:
        held = served(engine.store)
        lost = [name for name in image.reported if name not in held]
        if lost:
            return f"{label}: {lost} was reported and is gone"
        wrong = [name for name, files in held.items() if files != expected[name]]
        if wrong:
            return f"{label}: {wrong} is served with other bytes"
        code = engine.run_here()
    except UserError as error:
        return f"{label}: the next run stopped: {error}"
    verdict = verify_store(engine.store, hash_file=file_digest, show=lambda _: None)
    if code != 0 or served(engine.store) != expected:
        return f"{label}: exit code {code}, other outputs"
    return f"{label}: {verdict.findings[0]}" if verdict.findings else None


def served(store: Store) -> Bytes:
    """Return the bytes that the store would hand to a run: stage -> file of an output -> digest."""
    found: Bytes = {}
    for key in store.keys():  # noqa: SIM118 - Store is no mapping
        try:
            record = store.find(key)
        except UserError:
            continue
        if record is not None:
            folder = store.stage_folder(key)
            files = [file.path for output in record.outputs.values() for file in output.files]
            found[record.stage] = {name: file_digest(folder / name) for name in files}
    return found


def _content(image: Image, inode: int, chance: random.Random) -> bytes:
    now, sure = image.files.get(inode), image.sure_files.get(inode)
    if now is None or now == sure:
        return sure or b""
    return chance.choice((sure or b"", now, bytes(len(now)), now[: len(now) // 2]))


def _walk(folder: Path, folders: dict[int, Entries], files: dict[int, bytes]) -> None:
    folders[folder.stat().st_ino] = _entries(folder)
    for path in folder.iterdir():
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode):
            _walk(path, folders, files)
        else:
            files[status.st_ino] = path.read_bytes()


def _entries(folder: Path) -> Entries:
    return {path.name: path.lstat().st_ino for path in folder.iterdir()}


def run(*, choices: int, flushes: bool = True, stride: int = 1, first: int = 0) -> tuple[int, list[str]]:
    """Try every disk; return how many there were and what was wrong."""
    # A tmpfs never gives an inode number twice, on which the images rely.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        answers = list(states(Path(folder), choices=choices, flushes=flushes, stride=stride, first=first))
    return len(answers), [answer for answer in answers if answer]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--choices", type=int, default=26, help="disks a moment")
    parser.add_argument("--without-flushes", action="store_true")
    args = parser.parse_args()
    number, faults = run(choices=args.choices, flushes=not args.without_flushes)
    for fault in faults[:10]:
        sys.stdout.write(f"{fault}\n")
    sys.stdout.write(f"{number} disks, {len(faults)} wrong\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
