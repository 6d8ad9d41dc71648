"""Takes a run out of a store as a folder that is itself a store, and takes such a folder in."""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
import uuid
from pathlib import Path

from pipeline.canonical import read_bounded
from pipeline.config.run import RUN_NAME
from pipeline.errors import Finding, StoreError, VerificationFailed
from pipeline.fingerprint import FileDigest, file_digest
from pipeline.gc import with_ancestors
from pipeline.manifest import (
    CONFIG_NAME,
    LOCK_NAME,
    MANIFEST_NAME,
    RunManifest,
    config_damages,
    read_manifest,
    run_names,
)
from pipeline.record import StageRecord
from pipeline.seal import ALLOWED_SUFFIXES, check_weights
from pipeline.store import RECORD_NAME, SHARED_NAME, Store

LARGEST_RUN_STAGES = 10_000


def export_run(store: Store, name: str, folder: Path) -> int:
    """Copy a run and every stage it needs into a new folder that verifies by itself.

    Returns:
        The number of stages copied.

    Raises:
        StoreError: the folder exists, or something to be copied is damaged.
    """
    if folder.exists():
        raise StoreError("the folder exists", where=str(folder), hint="name a new one", code="exists")
    manifest = read_manifest(store, name)
    keys = _keys_of(store, manifest)
    findings = [finding for key in keys for finding in store.damages(key)]
    if findings:
        raise VerificationFailed.from_findings(findings)
    target = Store(folder, disk=store.disk)
    target.create()
    for key in keys:
        _copy_stage(store, target, store.load(key))
    # Where the run file lay here means nothing elsewhere.
    _write_run(store.run_folder(name), target, manifest.model_copy(update={"config_folder": ""}))
    return len(keys)


def import_run(store: Store, folder: Path, *, rename: str | None = None) -> tuple[str, int]:
    """Take in the one run of an exported folder. Nothing in the folder is trusted.

    Every name is checked, every byte is hashed after it is copied, and only then is a stage
    published. A refused folder gives no run; stages that were whole before the fault stay.

    Returns:
        The run's name here and the number of stages that were new.

    Raises:
        StoreError: whatever is wrong with the folder.
    """
    source = Store(folder)
    _refuse_links(folder)
    source.check()
    names = run_names(source)
    if len(names) != 1:
        raise StoreError(f"the folder holds {len(names)} runs, not one", where=str(folder), code="bad-import")
    manifest = read_manifest(source, names[0])
    _check_manifest(source, manifest, names[0])
    name = rename or manifest.name
    if re.fullmatch(RUN_NAME, name) is None:
        raise StoreError(f"{name!r} is not a name for a run", code="bad-name")
    store.create()
    if (store.run_folder(name) / MANIFEST_NAME).exists():
        raise StoreError(f"there is a run {name!r} already", hint="--name <another>", code="exists")
    keys = _keys_of(source, manifest)
    records = [_checked_record(source, key) for key in keys]
    new = [record for record in records if not store.has(record.key)]
    for record in new:
        _copy_stage(source, store, record)
    changed = manifest.model_copy(update={"name": name, "config_folder": ""})
    _write_run(source.run_folder(manifest.name), store, changed)
    return name, len(new)


def _keys_of(store: Store, manifest: RunManifest) -> list[str]:
    complete = {
        status.key
        for status in manifest.stages.values()
        if status.key is not None and status.state == "complete" and store.has(status.key)
    }
    return sorted(key for key in with_ancestors(store, complete) if store.has(key))


def _copy_stage(source: Store, target: Store, record: StageRecord) -> None:
    """Copy a stage's files to a draft, hash what arrived, then publish it."""
    draft = target.root / "tmp" / uuid.uuid4().hex
    target.disk.make_folder(draft)
    folder = source.stage_folder(record.key)
    try:
        for file in record.all_files():
            _copy_file(folder, draft, file, target=target)
        target.disk.write(draft / RECORD_NAME, record.to_bytes())
        target.disk.protect(draft / RECORD_NAME)
        for path in sorted((path for path in draft.rglob("*") if path.is_dir()), reverse=True):
            target.disk.sync_folder(path)
        place = target.own_folder(record.key)
        target.disk.make_folder(place.parent)
        target.disk.publish(draft, place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _copy_file(folder: Path, draft: Path, file: FileDigest, *, target: Store) -> None:
    path = draft / file.path
    target.disk.make_folder(path.parent)
    _copy_bounded(folder / file.path, path, file.size)
    target.disk.sync_file(path)
    if path.stat().st_size != file.size or file_digest(path) != file.sha256:
        raise VerificationFailed(
            f"{file.path} is not what the record says", where=str(folder), code="damaged"
        )
    if file.path.endswith(".safetensors"):
        check_weights(path)
    target.disk.protect(path)


def _copy_bounded(source: Path, target: Path, size: int) -> None:
    """Copy at most one byte more than expected from a regular file; links are not followed."""
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(descriptor, "rb") as reader, target.open("xb") as writer:
            left = size + 1
            while left > 0 and (block := reader.read(min(left, 2**20))):
                writer.write(block)
                left -= len(block)
    except OSError as error:
        raise StoreError(
            f"cannot be copied: {error.strerror}", where=str(source), code="bad-import"
        ) from error


def _write_run(origin: Path, target: Store, manifest: RunManifest) -> None:
    """Copy a run's configuration, and last the manifest, which makes the run known."""
    folder = target.run_folder(manifest.name)
    target.disk.make_folder(folder)
    for part in (CONFIG_NAME, LOCK_NAME):
        target.disk.write(folder / part, read_bounded(origin / part))
    target.disk.write(folder / MANIFEST_NAME, manifest.to_bytes())


def _check_manifest(source: Store, manifest: RunManifest, name: str) -> None:
    findings = list(config_damages(source, manifest))
    if manifest.name != name:
        findings.append(Finding(f"the run {name!r} calls itself {manifest.name!r}", code="bad-import"))
    if set(manifest.order) != set(manifest.stages) or len(manifest.order) > LARGEST_RUN_STAGES:
        findings.append(Finding("the order of stages is not that of its stages", code="bad-import"))
    if _steers_terminals(manifest.model_dump(mode="json")):
        findings.append(Finding("the manifest holds control characters", code="bad-import"))
    if findings:
        raise StoreError.from_findings(findings)


def _checked_record(source: Store, key: str) -> StageRecord:
    record = source.load(key)
    odd = [file.path for file in record.all_files() if not file.path.endswith(ALLOWED_SUFFIXES)]
    if odd:
        message = f"stage {key[:12]} holds {odd[0]!r}, a kind of file that results do not carry"
        raise StoreError(message, where=str(source.root), code="bad-import")
    if _steers_terminals(record.model_dump(mode="json")):
        raise StoreError(f"stage {key[:12]} holds control characters", code="bad-import")
    return record


def _steers_terminals(value: object) -> bool:
    """Say whether any text of a document holds control characters other than line ends and tabs."""
    if isinstance(value, str):
        return any(unicodedata.category(sign) == "Cc" and sign not in "\n\t" for sign in value)
    if isinstance(value, dict):
        return any(_steers_terminals(name) or _steers_terminals(item) for name, item in value.items())
    return isinstance(value, list) and any(map(_steers_terminals, value))


def _refuse_links(folder: Path) -> None:
    if (folder / SHARED_NAME).exists():
        message = "an exported run holds all its stages; this folder points to another store"
        raise StoreError(message, where=str(folder / SHARED_NAME), code="bad-import")
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise StoreError("a link in an imported folder is refused", where=str(path), code="bad-import")
