"""The content-addressed folder of committed stages. One rename publishes; nothing is changed after."""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.canonical import read_sealed, sealed
from pipeline.contract import ArtifactKind, Checkpoint
from pipeline.disk import Disk, explain
from pipeline.errors import Finding, StoreError, VerificationFailed
from pipeline.fingerprint import DigestCache, FileDigest, HashFile, describe, file_digest, list_folder
from pipeline.locks import Holder, held
from pipeline.paths import is_digest
from pipeline.record import StageRecord, read_record, timestamp

STORE_TYPE = "stage-store"
STORE_VERSION = 1
RECORD_NAME = "record.json"
METRICS_NAME = "metrics.jsonl"
SHARED_NAME = "shared-stores.txt"
"Stores of others, one folder a line, absolute or relative to this store. They are only read."

logger = logging.getLogger(__name__)


class Store:
    """Committed stages by key, work in progress, locks and the runs that name them.

    Args:
        root: the store's folder.
        disk: durable operations; tests pass one that fails on purpose.
    """

    def __init__(self, root: Path, *, disk: Disk | None = None) -> None:
        self.root = root
        self.disk = disk or Disk()
        self.digests = DigestCache(root / "cache" / "digests.json")
        self._shared: tuple[Store, ...] | None = None

    def exists(self) -> bool:
        """Say whether the folder is a store."""
        return (self.root / "STORE.json").is_file()

    def create(self) -> None:
        """Make the store when it is not there yet; several processes may try at once.

        Raises:
            StoreError: the folder cannot be written, or holds something else.
        """
        if self.exists():
            self.check()
            return
        if self.root.exists() and not (self.root / "locks").exists() and _has_entries(self.root):
            raise StoreError(
                "the folder is not empty and is no store",
                where=str(self.root),
                hint="name an empty or a new folder as store",
                code="not-a-store",
            )
        for name in (".", "locks", "stages", "work", "tmp", "runs", "cache"):
            self.disk.make_folder(self.root / name)
        holder = Holder(os.getpid(), "making the store", timestamp())
        with held(self.lock_path("store"), holder, waiting=lambda _: None):
            if not self.exists():
                document = {
                    "type": STORE_TYPE,
                    "version": STORE_VERSION,
                    "id": str(uuid.uuid4()),
                    "hash": "sha256",
                }
                self.disk.write(self.root / "STORE.json", sealed(document))

    def check(self) -> None:
        """Check that the folder is a store that this program can read.

        Raises:
            StoreError: no store, a damaged one, or one of a newer version.
        """
        if not self.exists():
            raise StoreError(
                "there is no store here", where=str(self.root), hint="triptych run <file>", code="no-store"
            )
        read_sealed(self.root / "STORE.json", type_name=STORE_TYPE, version=STORE_VERSION)

    def own_folder(self, key: str) -> Path:
        """Return where a stage lies, or will lie, in this store."""
        _require_key(key)
        return self.root / "stages" / key[:2] / key

    def stage_folder(self, key: str) -> Path:
        """Return where a committed stage lies, here or in a shared store, or will lie here."""
        own = self.own_folder(key)
        if own.is_dir():
            return own
        shared = (store.own_folder(key) for store in self.shared_stores())
        return next((folder for folder in shared if folder.is_dir()), own)

    def owns(self, key: str) -> bool:
        """Say whether a stage lies in this store itself, whole or damaged."""
        return self.own_folder(key).is_dir()

    def shared_stores(self) -> tuple[Store, ...]:
        """Return the stores of others whose stages count as if they were here.

        Raises:
            StoreError: one of them is not there, or is no store.
        """
        if self._shared is None:
            path = self.root / SHARED_NAME
            named = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
            stores = tuple(Store(self.root / line.strip()) for line in named if line.strip())
            for store in stores:
                _require_store(store, path)
            self._shared = stores
        return self._shared

    def share(self, folders: Sequence[Path], *, remember: bool) -> None:
        """Count the stages of other stores as if they were here. Nothing is ever written there.

        Args:
            folders: the other stores.
            remember: write them down, so that every later command looks there too.

        Raises:
            StoreError: one of the folders is no store, or is this one.
        """
        for folder in folders:
            Store(folder).check()
            if folder.resolve() == self.root.resolve():
                raise StoreError("a store cannot share itself", where=str(folder), code="shared-store")
        roots = [store.root.resolve() for store in self.shared_stores()]
        wanted = tuple(dict.fromkeys([*roots, *(folder.resolve() for folder in folders)]))
        if remember and len(wanted) > len(roots):
            self.disk.write(self.root / SHARED_NAME, "".join(f"{root}\n" for root in wanted).encode())
        self._shared = tuple(Store(root) for root in wanted)

    def work_folder(self, key: str) -> Path:
        """Return where a stage works before it is committed."""
        _require_key(key)
        return self.root / "work" / key

    @property
    def shared_cache(self) -> Path:
        """Return where stages keep results by content that any of them may use; gc sweeps it."""
        return self.root / "cache" / "stages"

    def run_folder(self, name: str) -> Path:
        """Return the folder of a run's manifest and config."""
        return self.root / "runs" / name

    def lock_path(self, name: str) -> Path:
        """Return a lock file: `store`, `run-<name>`, `key-<key>` or `worker-<key>`."""
        return self.root / "locks" / f"{name}.lock"

    def load(self, key: str) -> StageRecord:
        """Read a committed stage's record.

        Raises:
            StoreError: there is none, or it is damaged.
        """
        record = read_record(self.stage_folder(key) / RECORD_NAME)
        if record.key != key:
            raise StoreError(
                "the record is of another key", where=str(self.stage_folder(key)), code="damaged"
            )
        return record

    def has(self, key: str) -> bool:
        """Say whether a stage of this key was published, whole or damaged."""
        return self.stage_folder(key).is_dir()

    def find(self, key: str) -> StageRecord | None:
        """Return the record of a committed stage whose files are as recorded, or None.

        Files whose size and times did not change since they were last hashed are trusted;
        the others are read.

        Raises:
            VerificationFailed: there is one, and it is damaged.
        """
        if not self.has(key):
            return None
        findings = self.damages(key, hash_file=self.digests)
        if findings:
            raise VerificationFailed.from_findings(findings)
        return self.load(key)

    def damages(self, key: str, *, hash_file: HashFile = file_digest) -> list[Finding]:
        """Return everything that is wrong with a committed stage; an empty list means whole."""
        folder = self.stage_folder(key)
        try:
            record = self.load(key)
            present = set(list_folder(folder)) - {RECORD_NAME}
        except StoreError as error:
            return list(error.findings)
        recorded = {file.path: file for file in record.all_files()}
        findings = [
            _damage(folder, name, "is not in the record") for name in sorted(present - recorded.keys())
        ]
        findings += [_damage(folder, name, "is missing") for name in sorted(recorded.keys() - present)]
        for name in sorted(present & recorded.keys()):
            findings += _file_damage(folder, recorded[name], hash_file)
        return findings

    def keys(self) -> Iterator[str]:
        """Yield the key of every committed stage, in order."""
        for entry in sorted((self.root / "stages").glob("??/*")):
            if is_digest(entry.name) and entry.is_dir():
                yield entry.name

    def checkpoint(self, record: StageRecord, role: str) -> Checkpoint:
        """Return an output of a committed stage as the next stage receives it."""
        output = record.outputs[role]
        return Checkpoint(
            kind=ArtifactKind(output.kind),
            path=(self.stage_folder(record.key) / output.path).resolve(),
            fingerprint=output.digest,
            producer=record.stage,
            source=record.stage,
        )

    def commit(self, record: StageRecord) -> StageRecord:
        """Publish a sealed output folder with its record. The rename is the commit point.

        Another process may have committed the same key: its result stands when it is
        whole, and is set aside when it is not.

        Returns:
            The record that is now in the store.
        """
        work = self.work_folder(record.key)
        output, target = work / "output", self.own_folder(record.key)
        self.disk.write(output / RECORD_NAME, record.to_bytes())
        self.disk.protect(output / RECORD_NAME)
        self.disk.make_folder(target.parent)
        if not self.disk.publish(output, target):
            try:
                theirs = self.find(record.key)
            except VerificationFailed:
                self.quarantine(record.key)
                theirs = None if self.disk.publish(output, target) else self.load(record.key)
            record = theirs or record
        self.discard_work(record.key)
        return record

    def discard_work(self, key: str) -> None:
        """Delete what a committed stage left in its work folder; a failure only leaves garbage."""
        try:
            self.disk.remove_tree(self.work_folder(key))
        except StoreError as error:
            logger.warning("leftovers of a finished stage stay: %s", error)

    def quarantine(self, key: str) -> Path:
        """Set a damaged stage aside so that it can be made again; nothing is deleted."""
        aside = self.root / "quarantine" / f"{key}-{uuid.uuid4().hex[:8]}"
        self.disk.make_folder(aside.parent)
        self.disk.publish(self.own_folder(key), aside)
        return aside

    @contextlib.contextmanager
    def explained(self, operation: str, path: Path) -> Iterator[None]:
        """Turn an OSError of the block into a StoreError that a person understands."""
        try:
            yield
        except OSError as error:
            raise explain(error, operation, path) from error


def _require_key(key: str) -> None:
    if not is_digest(key):
        raise StoreError(f"{key!r} is not a stage key", code="bad-key")


def _require_store(store: Store, named_in: Path) -> None:
    if not store.exists():
        raise StoreError(
            f"the shared store {store.root} is not there",
            where=str(named_in),
            hint="mount it, or take its line out of this file",
            code="shared-store",
        )
    store.check()


def _has_entries(folder: Path) -> bool:
    return next(folder.iterdir(), None) is not None


def _damage(folder: Path, name: str, what: str) -> Finding:
    return Finding(f"{name} {what}", where=str(folder / name), code="damaged")


def _file_damage(folder: Path, recorded: FileDigest, hash_file: HashFile) -> list[Finding]:
    try:
        size = (folder / recorded.path).lstat().st_size
        if size != recorded.size:
            return [_damage(folder, recorded.path, f"has {size} bytes in place of {recorded.size}")]
        found = describe(folder, recorded.path, hash_file=hash_file)
    except (OSError, StoreError) as error:
        return [_damage(folder, recorded.path, f"cannot be read: {error}")]
    return [] if found == recorded else [_damage(folder, recorded.path, "changed since it was committed")]
